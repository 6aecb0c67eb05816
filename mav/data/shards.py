"""Shards: the output of shard work, deterministic tars, random access into them, tables of rows, arrays.

A tar is a WebDataset shard: the files of a sample stand together and share a key (`000000000000017.jpg`, `.json`). Keys
are sorted and all header fields that could differ between runs are fixed, so equal samples make equal bytes. The
webdataset library reads them as they are: `webdataset.WebDataset(path, shardshuffle=False).decode("rgb8")`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mav.errors import UserError
from mav.storage import Folder

Index = dict[str, dict[str, tuple[int, int]]]  # key -> extension -> (offset, size)


@dataclass(frozen=True)
class ShardOutput:
    """Counts of one shard (rows_in = rows_out + dropped + failed, by reason), and the files it wrote.

    `places` says where its samples are, for its readers; it is kept in the shard's row of the stage's ledger.
    """

    counts: dict[str, Any]
    files: tuple[str, ...] = ()
    places: bytes | None = None


def json_bytes(value: Any) -> bytes:
    """Returns one canonical form: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


class TarWriter(contextlib.AbstractContextManager["TarWriter"]):
    """Writes samples in key order with fixed headers (USTAR, mode 0644, owner 0, time 0).

    index: what `index_tar` will find in the tar.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._last = ""
        self.index: Index = {}

    def __exit__(self, *exception: Any) -> None:
        self._tar.close()

    def add(self, key: str, files: Mapping[str, bytes]) -> None:
        """Writes one sample: extension -> bytes. Keys must increase, so that the order of completion has no effect."""
        if key <= self._last:
            raise ValueError(f"key {key} after {self._last}: samples are written in sorted order, each once")
        self._last = key
        self.index[key] = {}
        for extension in sorted(files):
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size, info.mode = len(files[extension]), 0o644
            self.index[key][extension] = (self._tar.offset + tarfile.BLOCKSIZE, info.size)  # behind its header
            self._tar.addfile(info, io.BytesIO(files[extension]))


def index_tar(folder: Folder, name: str) -> Index:
    """Returns key -> extension -> (offset, size), in the tar's order; reads headers only.

    Raises UserError naming the file when it is not a whole tar.
    """
    index: Index = {}
    end, problem = 0, ""
    try:
        size = folder.size(name)
        with folder.open(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.size < 0:  # would lead back to an earlier member, for ever
                    raise ValueError(f"its file {member.name!r} has a size of {member.size}")
                key, _, extension = member.name.partition(".")
                index.setdefault(key, {})[extension] = (member.offset_data, member.size)
                end = member.offset_data + member.size
    except FileNotFoundError:
        raise UserError(f"{folder.path(name)} is missing: rerun the stage that makes it.") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place that no file can have
            raise
        problem = str(error)
    except Exception as error:  # beside its own, tarfile raises what numbers and texts raise that are none
        problem = str(error)
    else:
        if end > size:
            problem = f"its last file ends at byte {end} of {size}"
        elif (-(-end // tarfile.BLOCKSIZE) + 2) * tarfile.BLOCKSIZE > size:  # a whole tar ends with two empty blocks
            problem = "its end is missing"
    if problem:
        raise UserError(f"{folder.path(name)} is not a whole tar ({problem}): rerun the stage that made it.")
    return index


def read_at(file: IO[bytes], place: tuple[int, int]) -> bytes:
    """Returns the bytes of one indexed file from an open tar."""
    file.seek(place[0])
    return file.read(place[1])


def read_tar(folder: Folder, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields samples in the tar's order: key, extension -> bytes."""
    index = index_tar(folder, name)
    with folder.open(name) as file:
        for key, places in index.items():
            yield key, {extension: read_at(file, place) for extension, place in places.items()}


def shard_names(folder: Folder) -> list[str]:
    """Returns the names of an artifact's shards, sorted, without `.tar`. Raises UserError for none."""
    return sorted(name.removesuffix(".tar") for name in tar_names(folder))


def tar_names(folder: Folder) -> list[str]:
    """Returns the tars of an artifact, sorted. Raises UserError for none: nothing can be trained on an empty stage."""
    names = [name for name in folder.names() if name.endswith(".tar")]
    if not names:
        raise UserError(
            f"There are no shards in {folder.url}: run the stage that makes them, or look why it kept nothing."
        )
    return names


# ------------------------------------------------------------------------------------------------------- tables, arrays

# The columns of the table beside a tar: what became of each row that came in. status: ok, dropped or failed; sha256: of
# the fetched bytes; hash: `mav.data.images.hashes`, of a picture.
IMAGE_ROWS = {
    "key": "string", "url": "string", "status": "string", "reason": "string", "sha256": "string", "bytes": "int64",
    "content_type": "string", "final_url": "string", "width": "int32", "height": "int32",
    "hash": "uint64",
}  # fmt: skip
# It has no address, because addresses of stock footage contain the caption.
VIDEO_ROWS = {
    "key": "string", "videoid": "string", "status": "string", "reason": "string", "sha256": "string", "bytes": "int64",
    "fps": "double", "frames": "int32", "width": "int32", "height": "int32",
}  # fmt: skip


def write_table(folder: Folder, name: str, table: pa.Table) -> None:
    """Writes a parquet file, whole or not at all."""
    with folder.create(name) as file:
        pq.write_table(table, file, compression="zstd")


def read_table(folder: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a parquet file, or some columns of it."""
    with folder.open(name) as file:
        return pq.read_table(file, columns=columns)


def write_array(folder: Folder, name: str, array: np.ndarray) -> None:
    """Writes an npy file, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    folder.write_bytes(name, buffer.getvalue())


def read_array(folder: Folder, name: str) -> np.ndarray:
    """Reads an npy file. Raises ValueError for a damaged one."""
    try:
        array: np.ndarray = np.load(io.BytesIO(folder.read_bytes(name)), allow_pickle=False)
    except EOFError:
        raise ValueError(f"{folder.path(name)} is empty") from None
    return array


def write_rows(folder: Folder, name: str, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes what became of each row that came in, in key order.

    columns: arrow's types, such as int32, or []int32 for lists of it.
    """
    types = {column: pa.type_for_alias(kind.removeprefix("[]")) for column, kind in columns.items()}
    types |= {column: pa.list_(types[column]) for column, kind in columns.items() if kind.startswith("[]")}
    schema = pa.schema(list(types.items()))
    write_table(folder, name, pa.Table.from_pylist(sorted(rows, key=lambda row: str(row["key"])), schema=schema))


def count(rows: Sequence[Mapping[str, Any]], **more: int) -> dict[str, Any]:
    """Returns the counts of rows by status and reason."""
    found = Counter((row["status"], row["reason"]) for row in rows)
    counts: dict[str, Any] = {"rows_in": len(rows), "rows_out": sum(row["status"] == "ok" for row in rows)}
    for status in ("dropped", "failed"):
        counts[status] = {reason: n for (of, reason), n in sorted(found.items()) if of == status}
    return counts | more
