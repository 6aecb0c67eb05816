"""Weight files of others give their tensors, and nothing in them is run."""

import io
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from mav.errors import UserError
from mav.evaluation.networks.weights import read_state
from mav.models.checkpoints.weight_files import read_tensors, read_torch
from mav.models.heads import read_state as read_head_state


class Sub(nn.Module):
    """Has attributes of every sort that TorchScript stores beside parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).view(2, 3).t())  # not contiguous
        self.small = nn.Parameter(torch.ones(3).half())
        self.register_buffer("steps", torch.arange(4))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.tied = self.weight
        self.sizes, self.tensors, self.named = [1, 2], [torch.ones(1)], {"a": torch.zeros(2)}
        self.label, self.pair, self.device = "x", (1, 2.5), torch.device("cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight.sum() + self.tensors[0] + self.named["a"][0]


class Writes(nn.Module):
    """Its `__setstate__` runs when torch loads it; the file that it writes is the proof."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.weight = path, torch.ones(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[str, torch.Tensor, bool]:
        return self.path, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]) -> None:
        self.path, self.weight, self.training = state
        torch.save(self.weight, self.path)


def test_a_torchscript_gives_its_state(tmp_path):
    scripted = torch.jit.script(nn.Sequential(Sub(), nn.BatchNorm2d(2)))
    scripted.save(str(tmp_path / "some.pt"))
    found, wanted = read_state(tmp_path / "some.pt"), scripted.state_dict()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in wanted.items())


def test_no_code_of_a_torchscript_is_run(tmp_path, monkeypatch):
    path, proof = tmp_path / "writes.pt", tmp_path / "proof"
    module = torch.jit.script(nn.Sequential(Writes(str(proof))))
    module.save(str(path))
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match=r"state by code of their own.*save_file\(torch\.jit\.load"):
        read_state(path)
    with pytest.raises(UserError, match="code of their own"):
        read_head_state(str(path), "clip.nsfw_head")
    assert not proof.exists()


class Evil:
    def __reduce__(self):
        return eval, ("__import__('os').mkdir('evil')",)


def test_pickles_give_tensors_and_call_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = OrderedDict(a=torch.ones(2), b=nn.Parameter(torch.zeros(3, 2)[1:]))
    torch.save({"state_dict": state, "epoch": 3, "rate": 0.5, "evil": Evil(), "list": [1, Evil()]}, "checkpoint.pt")
    found = read_tensors("checkpoint.pt")
    assert (found["epoch"], found["rate"]) == (3, 0.5)
    assert found["state_dict"]["b"].tolist() == [[0, 0]] * 2
    torch.save(state, "old.pt", _use_new_zipfile_serialization=False)
    assert set(read_tensors("old.pt")) == {"a", "b"}
    torch.save({"evil": Evil()}, "old-evil.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"evil": Evil()}))
    for name in ("old-evil.pt", "plain.pt"):
        with pytest.raises(ValueError, match=r"[a-z]"):
            read_tensors(name)
    assert not (tmp_path / "evil").exists()
    assert torch.equal(read_torch(io.BytesIO(saved(torch.arange(5)))), torch.arange(5))


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def changed(data: bytes, name: str, make) -> io.BytesIO:
    """The archive with one member made anew from what it was."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.infolist():
            body = old.read(member)
            new.writestr(member.filename, make(body) if member.filename.endswith(name) else body)
    return out


def test_tensors_stay_within_their_storage(tmp_path):
    """torch itself reads behind a storage that is shorter than its pickle says."""
    data = saved({"a": torch.arange(1000.0)})
    with pytest.raises(ValueError, match="storage of 10"):
        read_torch(changed(data, "data/0", lambda body: body[:40]))
    with pytest.raises(ValueError, match=r"storage of 1\b"):
        read_torch(io.BytesIO(saved({"a": torch.ones(1).expand(10**12)})))
    old = io.BytesIO()
    torch.save({"a": torch.ones(1).expand(10**12)}, old, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"storage of 1\b"):
        read_torch(old)
    with pytest.raises(ValueError, match="another order"):
        read_torch(changed(data, "byteorder", lambda _: b"big"))


def test_arrays_that_unpack_to_more_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", mean=np.zeros(1 << 20))
    with pytest.raises(ValueError, match="more than its own size"):
        read_tensors(tmp_path / "bomb.npz")


@pytest.mark.parametrize("folder", ["archive", "archive/code"])
def test_storages_count_wherever_they_are(folder):
    """The code of a TorchScript may unpack to more than the file, so a bomb may call itself code."""
    whole, bomb = saved({"a": torch.zeros(1 << 20)}), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(f"{folder}/{member.filename.partition('/')[2]}", old.read(member))
    with pytest.raises(ValueError, match="more than its own size"):
        read_torch(bomb)


# Forty pairs, each of the one before twice: a trillion ones for whoever compares, hashes or writes them.
PAIRS = b"K\1" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(40))
STORAGE = b"X\7\0\0\0storage"
FLOATS, ZERO = b"ctorch\nFloatStorage\n", b"X\1\0\0\x000"
MODULE = b"c__torch__\nA\n)\x81q\0}X\x11\x27\0\0" + b"n" * 10_001 + b"h\0sb"  # within itself, with a long name
SHAPE = b"ctorch._utils\n_rebuild_tensor_v2\n((" + STORAGE + FLOATS + ZERO + ZERO + b"tQK\0(%st(%stNNtR"


ENDLESS = {
    "class": PAIRS + b")\x81",
    "function": PAIRS + b")R",
    "name": PAIRS + PAIRS + b"\x93",
    "type of storage": b"(" + STORAGE + PAIRS + ZERO + b"tQ",
    "key of storage": b"(" + STORAGE + FLOATS + PAIRS + b"tQ",
    "module": MODULE,
    "dimensions": SHAPE % (b"J\xff\xff\xff\x7f" * 100_000, b"K\0" * 100_000),
}
READ_ALL = """
import sys
from mav.models.checkpoints.weight_files import read_torch
for path in sys.argv[1:]:
    try:
        read_torch(open(path, "rb"))
    except ValueError:
        pass
    print(path)
"""


def test_pickles_that_would_take_for_ever_are_done_in_a_moment(tmp_path):
    """In a process of its own: what hangs in them does not let itself be interrupted."""
    for name, pickled in ENDLESS.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\2" + pickled + b".")
            archive.writestr("archive/data/0", bytes(4))
    paths = [str(tmp_path / name) for name in ENDLESS]
    command = [sys.executable, "-c", READ_ALL, *paths]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.split("\n")[:-1] == paths, ended.stderr


def test_modules_within_each_other_end(tmp_path):
    """Forty levels, each with the next one twice, have a trillion names."""
    lines = b"\x80\x02"
    for level in range(40):
        lines += b"c__torch__\nA\n)\x81q" + bytes([level])
        lines += b"}(X\1\0\0\0a" + (b"h" + bytes([level - 1]) if level else b"N")
        lines += b"X\1\0\0\0b" + (b"h" + bytes([level - 1]) if level else b"N") + b"ub"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", lines + b".")
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
    with pytest.raises(ValueError, match="more than 100,000 attributes"):
        read_torch(out)


def test_nobody_is_told_to_run_what_is_in_a_file(tmp_path):
    """torch's own sentence has its reader set weights_only to False, which runs the file's code."""
    torch.save({"evil": Evil()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("old.pt", "raw.pt"):
        with pytest.raises(ValueError, match="holds more than tensors, whose code is never run"):
            read_tensors(tmp_path / name)
