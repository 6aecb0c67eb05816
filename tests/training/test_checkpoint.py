"""A kill between steps, inside a save or by SIGTERM changes nothing in the result; and which checkpoints stay."""

import json
import multiprocessing
import os
import signal
import time

import pytest
import torch
from small_training import run, small_recipe

from flows.engine.lease import Lease
from mav.errors import TakenOverError, UserError
from mav.storage import Folder
from mav.training.checkpoint import COMMITTED, Checkpoints
from mav.training.export import CURVES, WEIGHTS
from mav.training.stages import INPUTS
from mav.training.validation import Validation

RECIPE = small_recipe(samples=12, checkpoint_every=4, log_every=8, cooldown_samples=8)
QUICK = ("train-prior", "train-decoder", "train-sr-low-video")

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def processes():
    """Forks of a process that has torch imported and nothing running: quick to start, and free to be killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mav.training.stages", "small_training"])
    return context


def train_until_killed(root: str, stage: str, where: str) -> None:
    """Trains, and is killed by the system as soon as the training is where it is to be killed."""
    torch.set_num_threads(1)
    if where == "inside a save":  # all is written but the word that it is
        from torch.distributed.checkpoint._fsspec_filesystem import FileSystem

        FileSystem.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    work = Folder(f"{root}/broken/{stage}")

    def report(line):
        if where == "between saves" and line["samples"] == 8:
            while Checkpoints(work, "", keep=2).finished() != [4]:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    run(Folder(root), stage, RECIPE, work="broken", out=f"broken-{stage}", report=report)


@pytest.mark.parametrize(
    "stage", [stage if stage in QUICK else pytest.param(stage, marks=pytest.mark.slow) for stage in sorted(INPUTS)]
)
def test_killed_and_resumed_is_bit_equal_to_undisturbed(stage, processes, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "stages"  # one for all: a stage's parents are trained once
    root = Folder(str(path))
    run(root, stage, RECIPE, work="whole", out=f"whole-{stage}")
    work = root.child(f"broken/{stage}")
    for where, finished in (("between saves", [4]), ("inside a save", [4])):
        process = processes.Process(target=train_until_killed, args=(str(path), stage, where))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, where
        assert Checkpoints(work, "", keep=2).finished() == finished, where
    assert f"{8:012d}/__0_0.distcp" in work.names(), "a checkpoint that was being written"
    assert not root.exists(f"broken-{stage}/{WEIGHTS}")
    run(root, stage, RECIPE, work="broken", out=f"broken-{stage}")
    for name in root.child(f"whole-{stage}").names():
        assert root.read_bytes(f"broken-{stage}/{name}") == root.read_bytes(f"whole-{stage}/{name}"), name


def test_the_last_ones_and_the_best_stay(tmp_path):
    folder = Folder(str(tmp_path))
    checkpoints = Checkpoints(folder, "id", keep=2)
    tensors = {"a": torch.zeros(3)}
    for samples in (2, 4, 6, 8, 10):
        tensors["a"].fill_(samples)
        checkpoints.save(samples, tensors, {}, best=min(samples, 4))
        tensors["a"].fill_(-1)  # what is written is the copy
    checkpoints.wait()
    assert checkpoints.finished() == [4, 8, 10]
    assert {name.split("/")[0] for name in folder.names()} == {f"{n:012d}" for n in (4, 8, 10)}
    assert checkpoints.restore(tensors) == {"identity": "id"}
    assert tensors["a"].tolist() == [10, 10, 10]
    checkpoints.load(4, tensors)
    assert tensors["a"].tolist() == [4, 4, 4]
    folder.remove(f"{10:012d}/{COMMITTED}")
    Checkpoints(folder, "id", keep=2).restore(tensors)
    assert tensors["a"].tolist() == [8, 8, 8]


def test_the_best_of_before_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    """And as long as a checkpoint stays that would be continued with it."""
    from torch.distributed.checkpoint._fsspec_filesystem import FileSystem

    checkpoints, tensors = Checkpoints(Folder(str(tmp_path)), "id", keep=2), {"a": torch.zeros(3)}
    for samples in (2, 4, 6):
        checkpoints.save(samples, tensors, {}, best=2)
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr(FileSystem, "rename", lambda *_: (_ for _ in ()).throw(OSError("away")))
        checkpoints.save(8, tensors, {}, best=8)
        with pytest.raises(OSError, match="away"):
            checkpoints.wait()
    assert checkpoints.finished() == [2, 4, 6]
    for samples, left in ((8, [2, 6, 8]), (10, [8, 10])):
        checkpoints.save(samples, tensors, {}, best=8)
        checkpoints.wait()
        assert checkpoints.finished() == left


def test_a_late_writer_neither_harms_nor_replaces_a_checkpoint(tmp_path, monkeypatch):
    """It was taken for dead inside a save and wakes up when another has saved the same samples."""
    from torch.distributed.checkpoint._fsspec_filesystem import FileSystem

    root, rename, old, new = Folder(str(tmp_path)), FileSystem.rename, torch.ones(3), torch.ones(3) * 2
    monkeypatch.setattr("flows.engine.lease.dead", lambda *_: True)

    def writer() -> Checkpoints:
        lease = Lease(root.child("work"), "train-prior")
        assert lease.acquire()
        return Checkpoints(lease.fenced(root.child("work/checkpoints")), "id", keep=1)

    late, others = writer(), []

    def asleep(self, *names):
        if late.mark in str(names[0]):
            others.append(writer())
            others[0].save(8, {"a": new}, {"of": "the present"})
            others[0].wait()
        rename(self, *names)

    monkeypatch.setattr(FileSystem, "rename", asleep)
    late.save(8, {"a": old}, {"of": "the late"})
    with pytest.raises(TakenOverError, match="took train-prior over"):
        late.wait()
    read = {"a": torch.zeros(3)}
    assert Checkpoints(root.child("work/checkpoints"), "id", keep=1).restore(read)["of"] == "the present"
    assert read["a"].tolist() == [2, 2, 2]
    present = others[0]
    present.save(16, {"a": new}, {})
    present.wait()
    left = {name.split("/")[0] for name in root.child("work/checkpoints").names()}
    assert left == {f"{16:012d}{present.mark}"}, "what the late one left is gone, too"


def test_a_save_that_fails_is_raised_at_the_next(tmp_path, monkeypatch):
    from torch.distributed.checkpoint._fsspec_filesystem import FileSystem

    def full(*names):
        raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(Folder(str(tmp_path)), "id", keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(FileSystem, "rename", full)
        checkpoints.save(2, {"a": torch.zeros(3)}, {})
        with pytest.raises(OSError, match="No space left"):
            checkpoints.wait()
    assert checkpoints.finished() == []


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """Blocked for the copy alone: the writing, made to take half a second here, is beside the training."""
    from torch.distributed.checkpoint._fsspec_filesystem import FileSystem

    rename = FileSystem.rename
    monkeypatch.setattr(FileSystem, "rename", lambda self, *names: (time.sleep(0.5), rename(self, *names))[1])
    checkpoints = Checkpoints(Folder(str(tmp_path)), "id", keep=2)
    tensors = {f"a{i}": torch.zeros(64, 64) for i in range(200)}
    checkpoints.save(1, tensors, {})
    checkpoints.wait()
    began = time.monotonic()
    checkpoints.save(2, tensors, {})
    blocked = time.monotonic() - began
    assert checkpoints.finished() == [1]
    checkpoints.wait()
    assert checkpoints.finished() == [1, 2]
    assert blocked < 0.4


def test_checkpoints_lie_on_any_storage():
    folder = Folder("memory://checkpoints-anywhere")
    checkpoints = Checkpoints(folder, "id", keep=1)
    for samples in (1, 2):
        checkpoints.save(samples, {"a": torch.full((3,), float(samples))}, {"n": samples})
    checkpoints.wait()
    tensors = {"a": torch.zeros(3)}
    assert Checkpoints(folder, "id", keep=1).restore(tensors) == {"identity": "id", "n": 2}
    assert tensors["a"].tolist() == [2, 2, 2]
    assert checkpoints.finished() == [2]


def test_storage_that_does_not_answer_makes_no_checkpoint_a_damaged_one(monkeypatch):
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

    folder = Folder("memory://checkpoints-out-of-reach")
    checkpoints = Checkpoints(folder, "id", keep=1)
    checkpoints.save(1, {"a": torch.ones(3)}, {})
    checkpoints.wait()
    tensors = {"a": torch.zeros(3)}
    with monkeypatch.context() as patch:  # torch hides what is raised here behind an exception of its own
        patch.setattr(FsspecReader, "read_data", lambda *_: (_ for _ in ()).throw(TimeoutError("away")))
        for read in (checkpoints.restore, lambda into: checkpoints.try_load(1, into)):
            with pytest.raises(TimeoutError, match="away"):
                read(tensors)
    assert checkpoints.restore(tensors) == {"identity": "id"}


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    root = Folder(str(tmp_path))
    run(root, "train-decoder", small_recipe())
    with pytest.raises(UserError, match="checkpoint of another recipe"):
        run(root, "train-decoder", small_recipe(learning_rate=2e-3))


def test_held_out_loss_by_noise_level(tmp_path):
    """The same samples, steps and noise every time: numbers that fall with learning."""
    root, recipe = Folder(str(tmp_path)), small_recipe(samples=16, checkpoint_every=8, held_out=4, learning_rate=3e-3)
    metrics = run(root, "train-decoder", recipe)
    lines = [json.loads(line) for line in root.read_bytes(f"train-decoder/{CURVES}").splitlines()]
    measured = {line["samples"]: line for line in lines if "validation" in line}
    assert sorted(measured) == [8, 16]
    levels = [name for name in measured[8] if name.startswith("validation/")]
    assert levels == [f"validation/{level}" for level in (0.125, 0.375, 0.625, 0.875)]
    assert all(
        line["validation"] == pytest.approx(sum(line[name] for name in levels) / 4) for line in measured.values()
    )
    assert metrics["validation"] == measured[16]["validation"] < measured[8]["validation"]


def test_the_best_average_is_handed_on(tmp_path, monkeypatch):
    """The average of the checkpoint with the lowest loss: what a training that ended there would have handed on."""
    root, losses = Folder(str(tmp_path)), {4: 3.0, 8: 1.0, 12: 2.0, 16: 2.5}
    measured = iter(losses.values())
    monkeypatch.setattr(Validation, "__call__", lambda *_: {"validation": next(measured)})
    metrics = run(root, "train-prior", small_recipe(samples=16, held_out=4, export="best"), out="best")
    assert (metrics["validation"], metrics["validation_samples"]) == (1.0, 8)
    run(root, "train-prior", small_recipe(samples=8), work="short", out="short")
    assert root.read_bytes(f"best/{WEIGHTS}") == root.read_bytes(f"short/{WEIGHTS}")
    assert Checkpoints(root.child("work/train-prior"), "", keep=2).finished() == [8, 12, 16]


def test_measuring_changes_nothing_that_is_learned(tmp_path):
    root = Folder(str(tmp_path))
    for count in (0, 4):
        run(root, "train-sr-low", small_recipe(held_out=count), work=f"w{count}", out=f"o{count}")
    assert root.read_bytes(f"o0/{WEIGHTS}") == root.read_bytes(f"o4/{WEIGHTS}")
