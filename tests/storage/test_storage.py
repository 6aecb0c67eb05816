"""Artifacts on S3-compatible storage, over HTTP: published without a rename, read by others at once, checked as on a
disk."""

import ctypes
import errno
import gc
import os
import subprocess
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.services.ports import reserve_port
from mav.data.loading.places import clip_places, row_counts
from mav.errors import UserError
from mav.storage import MANIFEST, Artifact, Folder
from mav.storage.ledger import LEDGER, read_ledger, write_ledger

FACTS: dict[str, Any] = {"stage": "s", "version": 1, "fingerprint": "f" * 64, "recipe": "r", "config": {}, "inputs": {}}


@pytest.fixture
def folder(s3: str) -> Folder:
    return Folder(f"{s3}/{uuid.uuid4().hex}")


def test_the_manifest_is_written_last_and_without_it_there_is_nothing(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    opened = folder.fs.open

    def watched(path: str, mode: str = "rb", **more: Any) -> Any:
        order.extend([os.path.basename(path)] if "w" in mode else [])
        return opened(path, mode, **more)

    monkeypatch.setattr(folder.fs, "open", watched)
    folder.write_bytes("data/one.bin", b"abc")
    with pytest.raises(UserError, match="no finished artifact"):
        Artifact.open(Folder(folder.url))
    made = Artifact.publish(folder, **FACTS)
    assert order == ["one.bin", MANIFEST], "no temporary name, no rename"
    assert Artifact.open(folder.url).manifest == made.manifest


def test_what_one_process_writes_another_sees_at_once(folder: Folder) -> None:
    assert folder.names() == []
    assert not folder.exists("late.bin")
    code = f"from mav.storage.artifact import Folder; Folder({folder.url!r}).write_bytes('late.bin', b'1234')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert folder.exists("late.bin")
    assert folder.sizes() == {"late.bin": 4}
    code = f"from mav.storage.artifact import Folder; Folder({folder.url!r}).remove('late.bin')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert folder.names() == []


@pytest.mark.parametrize("size", [10, 60 << 20], ids=["one request", "several parts"])
def test_an_interrupted_write_publishes_nothing(folder: Folder, size: int) -> None:
    def interrupted() -> None:
        with folder.create("x") as file:
            file.write(b"0" * size)
            raise KeyboardInterrupt

    folder.write_bytes("x", b"whole")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    gc.collect()
    assert folder.read_bytes("x") == b"whole"
    bucket = folder.root.partition("/")[0]
    assert folder.fs.list_multipart_uploads(bucket) == [], "no parts that nobody will ever join"


@pytest.mark.slow
def test_two_stages_on_s3(s3: str, tmp_path: Path) -> None:
    """By the commands a user types: run, status, verify with a changed bit, clean, report."""
    runs = f"{s3}/runs-{uuid.uuid4().hex}"
    environment = os.environ | {"PREFECT_HOME": str(tmp_path), "NO_COLOR": "1"}
    for name in ("PREFECT_API_URL", "RAY_ADDRESS"):
        environment.pop(name, None)
    options = [
        "--runs",
        runs,
        "--set",
        f"world={{images: 60, clips: 1, clip_frames: 8, evaluation_clips: 8, port: {reserve_port()}}}",
    ]

    def mav(*arguments: str, expect: int = 0) -> str:
        done = CliRunner().invoke(app, [*arguments, *options])
        assert done.exit_code == expect, done.output
        return done.output

    command = [sys.executable, "-m", "flows.cli", "run", "tiny", "--until", "image-metadata", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert mav("status", "tiny", "--json").count('"done"') == 2
    assert "2 of" in mav("verify", "tiny")
    shard = sorted(fsspec.filesystem("s3").glob(f"{runs}/artifacts/image-metadata/*/shards/*.parquet"))[0]
    data = bytearray(fsspec.filesystem("s3").cat_file(shard))
    data[len(data) // 2] ^= 1
    fsspec.filesystem("s3").pipe_file(shard, bytes(data))
    assert f"{shard} was changed" in mav("verify", "tiny", expect=1)
    assert "Nothing to remove" in mav("clean", "tiny", "--delete")
    assert mav("report", "tiny").strip().endswith("index.html")


@pytest.mark.parametrize("where", ["disk", pytest.param("s3", marks=pytest.mark.slow)])
def test_a_folder_is_replaced_as_a_whole(request: pytest.FixtureRequest, tmp_path: Path, where: str) -> None:
    folder = request.getfixturevalue("folder") if where == "s3" else Folder(str(tmp_path / "parent/folder"))
    before, parent = Folder(f"{folder.url}.before"), Folder(os.path.dirname(folder.url))

    def replace(**files: bytes) -> None:
        with folder.replacing() as new:
            for name, data in files.items():
                new.write_bytes(f"inner/{name}", data)

    replace(one=b"1", two=b"2")
    replace(one=b"1", two=b"2")
    assert not before.exists(), "nothing was replaced"
    replace(one=b"1")
    assert (folder.names(), before.names()) == (["inner/one"], ["inner/one", "inner/two"])

    def fail() -> None:
        with folder.replacing() as new:
            new.write_bytes("inner/one", b"broken")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert folder.read_bytes("inner/one") == b"1"
    own = os.path.basename(folder.url)
    assert {name.split("/")[0] for name in parent.sizes(temporary=True) if own in name} == {own, f"{own}.before"}


def test_a_flush_is_believed_only_when_it_succeeds_and_is_of_the_named_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, flushed = Folder(str(tmp_path / "out")), list[str]()
    for name in ("shards/1.tar", "shards/2.tar"):
        folder.write_bytes(name, b"1")
    fsync = os.fsync

    def watched(handle: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{handle}").removeprefix(str(tmp_path)))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", watched)
        patch.setattr("mav.storage.folder._libc", SimpleNamespace(syncfs=None))
        folder.sync(["shards/2.tar"])
    assert sorted(flushed) == ["", "/out", "/out/shards", "/out/shards/2.tar"]

    def fails(*_: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    with monkeypatch.context() as patch:
        patch.setattr("mav.storage.folder._libc", SimpleNamespace(syncfs=fails))
        with pytest.raises(OSError, match="could not be flushed") as raised:
            folder.sync()
    assert raised.value.errno == errno.EIO
    folder.sync()


def _of_samples(folder: Folder) -> Any:
    return row_counts(folder, "rows_out")


def _whole(folder: Folder) -> Any:
    return list(read_ledger(folder))


@pytest.mark.parametrize(
    ("damage", "readers"),
    [
        *((damage, (_whole, _of_samples, clip_places)) for damage in (b"", b"PAR1", b"x" * 500, 0.5)),
        *(({"counts": text}, (_whole, _of_samples)) for text in ("{", "[]", KeyError)),
        ({"files": "x"}, (_whole,)),
        ({"places": b"x" * 23}, (clip_places,)),
    ],
)
def test_a_damaged_ledger_is_a_sentence_whoever_reads_it(tmp_path: Path, damage: Any, readers: Any) -> None:
    """Damaged as a whole, cut to half, or in a cell or column that these readers read."""
    folder = Folder(str(tmp_path))
    write_ledger(folder, [[{"shard": "00000", "counts": {}, "files": {}}]])
    Artifact.publish(folder, **FACTS)
    whole, table = folder.read_bytes(LEDGER), pq.read_table(folder.path(LEDGER))
    if isinstance(damage, dict):
        cells = {name: [damage.get(name, table[name][0].as_py())] for name in table.schema.names}
        kept = {
            name: pa.array(cell, table.schema.field(name).type) for name, cell in cells.items() if cell != [KeyError]
        }
        pq.write_table(pa.table(kept), folder.path(LEDGER))
    else:
        folder.write_bytes(LEDGER, whole[: len(whole) // 2] if damage == 0.5 else damage)
    for read in readers:
        with pytest.raises(UserError, match=r"shards.parquet is not a readable ledger .*rerun its stage"):
            read(folder)


def test_a_ledger_that_cannot_be_written_to_its_end_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(writer: Any) -> None:
        writer.is_open = False
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = Folder(str(tmp_path))
    monkeypatch.setattr(pq.ParquetWriter, "close", full)  # the end of the file is written here
    with pytest.raises(OSError, match="No space left"):
        write_ledger(folder, [])
    assert folder.sizes(temporary=True) == {}


def test_storage_that_does_not_answer_says_nothing_about_a_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> Any:
        raise OSError(errno.EIO, "storage is away")

    monkeypatch.setattr(Folder, "open", away)
    with pytest.raises(OSError, match="storage is away"):
        list(read_ledger(Folder(str(tmp_path))))


def test_links_to_folders_that_hold_them_are_not_followed_without_end(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/other").symlink_to(tmp_path / "b")
    (tmp_path / "b/other").symlink_to(tmp_path / "a")
    (tmp_path / "b/gone").symlink_to("nowhere")
    assert Folder(str(tmp_path)).names() == ["a/file", "a/other/file", "b/file", "b/other/file"]
    assert Folder(str(tmp_path / "a")).names() == ["file", "other/file", "up/b/file"]
