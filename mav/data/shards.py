"""Shards: what shard work hands back, deterministic tars, and random access into them.

A tar here is a WebDataset shard: the files of a sample stand together and share a key (`000000000000017.jpg`, `.json`). Keys come in
sorted order and every header field that would tell one run from another is fixed, so equal samples make equal bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mav.errors import UserError
from mav.storage import Folder


@dataclass(frozen=True)
class ShardOutput:
    """Counts of one shard (rows_in = rows_out + dropped + failed, by reason) and the files it wrote."""

    counts: dict[str, Any]
    files: tuple[str, ...] = field(default=())


def json_bytes(value: Any) -> bytes:
    """One canonical form: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


class TarWriter:
    """Writes samples in key order with fixed headers (USTAR, mode 0644, owner 0, time 0)."""

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed by __exit__)
        self._last = ""

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tar.close()

    def add(self, key: str, files: Mapping[str, bytes]) -> None:
        """One sample: extension -> bytes. Keys must grow, so that a tar's order never depends on who finished first."""
        if key <= self._last:
            raise ValueError(f"key {key} after {self._last}: samples are written in sorted order, each once")
        self._last = key
        for extension in sorted(files):
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size, info.mode = len(files[extension]), 0o644
            self._tar.addfile(info, io.BytesIO(files[extension]))


Index = dict[str, dict[str, tuple[int, int]]]


def index_tar(folder: Folder, name: str) -> Index:
    """key -> extension -> (offset, size), in the tar's order; reads headers only.

    Raises UserError naming the file when it is not a whole tar.
    """
    index: Index = {}
    try:
        size = folder.size(name)
        with folder.open(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            end = 0
            for member in tar:
                key, _, extension = member.name.partition(".")
                index.setdefault(key, {})[extension] = (member.offset_data, member.size)
                end = member.offset_data + member.size
    except FileNotFoundError:
        raise UserError(f"{folder.path(name)} is missing: rerun the stage that makes it.") from None
    except (tarfile.TarError, EOFError) as error:
        raise _corrupt(folder, name, str(error)) from None
    if end > size:
        raise _corrupt(folder, name, f"its last file ends at byte {end} of {size}")
    if _blocks(end) + 2 * tarfile.BLOCKSIZE > size:  # a whole tar closes with two empty blocks
        raise _corrupt(folder, name, "its end is missing")
    return index


def _blocks(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _corrupt(folder: Folder, name: str, what: str) -> UserError:
    return UserError(f"{folder.path(name)} is not a whole tar ({what}): rerun the stage that made it.")


def read_at(file: IO[bytes], place: tuple[int, int]) -> bytes:
    """The bytes of one indexed file from an open tar."""
    file.seek(place[0])
    return file.read(place[1])


def read_tar(folder: Folder, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples in the tar's order: key, extension -> bytes."""
    index = index_tar(folder, name)
    with folder.open(name) as file:
        for key, places in index.items():
            yield key, {extension: read_at(file, place) for extension, place in places.items()}


def tar_names(folder: Folder) -> list[str]:
    """The tars of an artifact, sorted. None is a UserError: a stage that made nothing must not be trained on."""
    names = [name for name in folder.names() if name.endswith(".tar")]
    if not names:
        raise UserError(
            f"There are no shards in {folder.url}: run the stage that makes them, or look why it kept nothing."
        )
    return names


# ---------------------------------------------------------------------------------------------- ledgers, tables, arrays

IMAGE_LEDGER = {
    "key": "string",
    "url": "string",
    "status": "string",  # ok | dropped | failed
    "reason": "string",
    "sha256": "string",  # of the bytes as they came
    "bytes": "int64",
    "content_type": "string",
    "final_url": "string",
    "width": "int32",
    "height": "int32",
}
VIDEO_LEDGER = {  # no address: stock footage carries its caption there
    "key": "string",
    "videoid": "string",
    "status": "string",
    "reason": "string",
    "sha256": "string",
    "bytes": "int64",
    "fps": "double",
    "frames": "int32",
    "width": "int32",
    "height": "int32",
}


def write_table(folder: Folder, name: str, table: pa.Table) -> None:
    """A parquet file, whole or not at all."""
    with folder.create(name) as file:
        pq.write_table(table, file, compression="zstd")


def read_table(folder: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A parquet file, or some columns of it."""
    with folder.open(name) as file:
        return pq.read_table(file, columns=columns)


def write_array(folder: Folder, name: str, array: np.ndarray) -> None:
    """An npy file, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    folder.write_bytes(name, buffer.getvalue())


def read_array(folder: Folder, name: str) -> np.ndarray:
    array: np.ndarray = np.load(io.BytesIO(folder.read_bytes(name)), allow_pickle=False)
    return array


def write_ledger(folder: Folder, name: str, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    """One row per input row, in key order."""
    schema = pa.schema([(column, pa.type_for_alias(kind)) for column, kind in columns.items()])
    write_table(folder, name, pa.Table.from_pylist(sorted(rows, key=lambda row: str(row["key"])), schema=schema))


def count(rows: Sequence[Mapping[str, Any]], **more: int) -> dict[str, Any]:
    """Counts of a ledger's rows by status and reason."""
    counts: dict[str, Any] = {"rows_in": len(rows), "rows_out": 0, "dropped": {}, "failed": {}, **more}
    for row in rows:
        if row["status"] == "ok":
            counts["rows_out"] += 1
        else:
            bucket = counts[row["status"]]
            bucket[row["reason"]] = bucket.get(row["reason"], 0) + 1
    for status in ("dropped", "failed"):
        counts[status] = dict(sorted(counts[status].items()))
    return counts
