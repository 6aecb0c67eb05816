import io
import tarfile

import pyarrow.parquet as pq
import pytest

from mav.data.shards import IMAGE_ROWS, TarWriter, count, index_tar, read_tar, tar_names, write_rows
from mav.errors import UserError
from mav.storage import Folder

SAMPLES = {f"{i:015d}": {"jpg": bytes([i]) * (i * 300), "json": b"{}"} for i in range(5)}


def write(folder: Folder, name: str = "0.tar") -> bytes:
    with folder.create(name) as file, TarWriter(file) as tar:
        for key, files in SAMPLES.items():
            tar.add(key, files)
    return folder.read_bytes(name)


def test_tar_is_deterministic_and_webdataset_shaped(tmp_path):
    folder = Folder(str(tmp_path))
    data = write(folder)
    assert data == write(folder, "1.tar")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [m.name for m in members][:3] == ["000000000000000.jpg", "000000000000000.json", "000000000000001.jpg"]
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}


def test_webdataset_itself_reads_it(tmp_path):
    import webdataset

    write(Folder(str(tmp_path)))
    found = {s["__key__"]: s["jpg"] for s in webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False)}
    assert found == {key: files["jpg"] for key, files in SAMPLES.items()}


def test_keys_must_grow(tmp_path):
    with TarWriter(io.BytesIO()) as tar:
        tar.add("2", {"jpg": b""})
        for key in ("1", "2"):
            with pytest.raises(ValueError, match="sorted order"):
                tar.add(key, {"jpg": b""})


def test_index_and_reading(tmp_path):
    folder = Folder(str(tmp_path))
    write(folder)
    assert list(index_tar(folder, "0.tar")) == list(SAMPLES)
    assert dict(read_tar(folder, "0.tar")) == SAMPLES
    assert tar_names(folder) == ["0.tar"]


@pytest.mark.parametrize("cut", [0, 300, 2000, -1100, -1])
def test_a_cut_tar_is_named(tmp_path, cut):
    folder = Folder(str(tmp_path))
    data = write(folder)
    end = index_tar(folder, "0.tar")["000000000000004"]["json"]
    whole = -(-(end[0] + end[1]) // 512) * 512 + 1024  # two empty blocks; what follows is padding
    folder.write_bytes("0.tar", data[: whole + cut if cut < 0 else cut])
    with pytest.raises(UserError, match=r"0\.tar"):
        index_tar(folder, "0.tar")


def test_a_scribbled_header_is_named(tmp_path):
    folder = Folder(str(tmp_path))
    data = bytearray(write(folder))
    data[0:300] = b"\xff" * 300
    folder.write_bytes("0.tar", bytes(data))
    with pytest.raises(UserError, match=r"0\.tar"):
        index_tar(folder, "0.tar")


def test_no_tars_and_missing_tars(tmp_path):
    with pytest.raises(UserError, match="no shards"):
        tar_names(Folder(str(tmp_path)))
    with pytest.raises(UserError, match="missing"):
        index_tar(Folder(str(tmp_path)), "7.tar")


def test_ledger_and_counts(tmp_path):
    rows = [
        {"key": "2", "status": "failed", "reason": "dns"},
        {"key": "1", "status": "ok", "reason": ""},
        {"key": "3", "status": "dropped", "reason": "opted_out"},
    ]
    folder = Folder(str(tmp_path))
    write_rows(folder, "a.parquet", IMAGE_ROWS, rows)
    write_rows(folder, "b.parquet", IMAGE_ROWS, rows[::-1])
    assert folder.read_bytes("a.parquet") == folder.read_bytes("b.parquet")
    assert pq.read_table(tmp_path / "a.parquet").column("key").to_pylist() == ["1", "2", "3"]
    assert count(rows, bytes=7) == {
        "rows_in": 3,
        "rows_out": 1,
        "dropped": {"opted_out": 1},
        "failed": {"dns": 1},
        "bytes": 7,
    }


def test_a_member_that_leads_back_to_an_earlier_one_is_named(tmp_path):
    """Its size is negative; the reader would go round for ever."""
    folder = Folder(str(tmp_path))
    note = b"14 size=-1536\n"
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(note)
    member = tarfile.TarInfo("0.jpg").tobuf()
    folder.write_bytes("0.tar", header.tobuf() + note.ljust(512, b"\0") + member + bytes(1024))
    with pytest.raises(UserError, match=r"0\.tar is not a whole tar \(.*-1536"):
        index_tar(folder, "0.tar")
