"""Markers: which shards of a stage are committed, and with which bytes.

A marker is a small JSON file a worker writes after its shard's files: it is the commit point, and the truth on resume. When a walk ends,
the markers are compacted into `shards.parquet`, one row a shard, which is handed over with the artifact; while that ledger is
there nothing has changed since, so a resume reads one table instead of a file a shard.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mav.artifact import TEMPORARY, Folder, add_counts

if TYPE_CHECKING:
    from flows.stage import Job

MARKERS = "markers"
LEDGER = "shards.parquet"
COMPACTED_AT_ONCE = 1_000
READERS = 32  # concurrent reads from storage that is not local

Marker = dict[str, Any]  # {"shard", "counts", "files": {name: {"bytes", "sha256"}}}


@dataclass
class Summary:
    """A whole stage: summed counts, and every file with its size and digest."""

    counts: dict[str, Any] = field(default_factory=lambda: add_counts([]))
    digests: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, markers: Iterable[Marker]) -> None:
        markers = list(markers)
        self.counts = add_counts([self.counts, *(marker["counts"] for marker in markers)])
        for marker in markers:
            self.digests.update(marker["files"])


@dataclass(frozen=True)
class Markers:
    """The markers in `folder` of shards whose files are in `out`."""

    out: Folder
    folder: Folder

    @classmethod
    def of(cls, job: Job) -> Markers:
        return cls(job.out, job.work.child(MARKERS))

    def commit(self, name: str, counts: dict[str, Any], files: Sequence[str], *, fsync: bool = True) -> int:
        """Says that a shard is whole; returns its bytes.

        With `fsync` its files are on the disk before, so that a power failure leaves no empty promise.
        """
        facts: dict[str, dict[str, Any]] = {file: {"bytes": self.out.size(file), "sha256": self.out.sha256(file)} for file in files}
        if fsync and files:
            self.out.sync()
        marker = {"shard": name, "counts": counts, "files": facts}
        self._write(f"{name}.json", json.dumps(marker, sort_keys=True, separators=(",", ":")).encode())
        return sum(int(fact["bytes"]) for fact in facts.values())

    def _write(self, name: str, data: bytes) -> None:
        """Whole or not at all, as `Folder.create` does; on a disk without what that costs for every kind of storage."""
        if not self.folder.local:
            self.folder.write_bytes(name, data)
            return
        temporary = f"{self.folder.root}/{TEMPORARY}{os.getpid()}-{name}"
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        except FileNotFoundError:
            os.makedirs(self.folder.root, exist_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        with os.fdopen(handle, "wb", buffering=0) as file:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, "No space left on device")
        os.replace(temporary, f"{self.folder.root}/{name}")

    def committed(self, names: set[str]) -> set[str]:
        """Those of `names` whose marker and files are there in full; a torn or orphaned marker is as good as none."""
        there = os.listdir(self.folder.root) if self.folder.local and os.path.isdir(self.folder.root) else self.folder.names()
        marked = {file.removesuffix(".json") for file in there} & names
        if not marked:
            return set()
        present = self.out.sizes()
        known = self.ledger(counts=False) if LEDGER in present else self._read(sorted(marked))
        return {
            marker["shard"]
            for marker in known
            if marker["shard"] in marked and all(present.get(file) == facts["bytes"] for file, facts in marker["files"].items())
        }

    def compact(self, names: Sequence[str]) -> Summary:
        """Writes the ledger of these shards (sorted), unless it is there, and sums it up."""
        summary = Summary()
        if self.out.exists(LEDGER):
            kept = set(names)
            summary.add(marker for marker in self.ledger() if marker["shard"] in kept)
            return summary
        with LedgerWriter(self.out) as ledger:
            for at in range(0, len(names), COMPACTED_AT_ONCE):
                wanted = names[at : at + COMPACTED_AT_ONCE]
                part = list(self._read(wanted))
                if len(part) < len(wanted):  # a ledger without them would lose their rows; read anew, they count as not done
                    raise OSError(f"{len(wanted) - len(part)} markers in {self.folder.url} are gone or torn: run again")
                ledger.write(part)
                summary.add(part)
        return summary

    def counts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(shard, counts) of the compacted stage."""
        for marker in self.ledger():
            yield marker["shard"], marker["counts"]

    def ledger(self, counts: bool = True) -> Iterator[Marker]:
        """The compacted markers, without their counts where those are not asked for."""
        import pyarrow.parquet as pq

        with self.out.open(LEDGER) as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=["shard", "files", *(["counts"] if counts else [])]):
                columns = batch.to_pydict()
                for shard, files, text in zip(columns["shard"], columns["files"], columns.get("counts", columns["shard"]), strict=True):
                    yield {"shard": shard, "counts": json.loads(text) if counts else {}, "files": json.loads(files)}

    def forget_ledger(self) -> None:
        """Before anything changes: from here on the markers alone are the truth."""
        self.out.remove(LEDGER)

    def forget(self, names: Iterable[str]) -> None:
        """These shards are to be done again."""
        gone = list(names)
        self.forget_ledger()
        for name in gone:
            self.folder.remove(f"{name}.json")

    def _read(self, names: Sequence[str]) -> Iterator[Marker]:
        def one(name: str) -> Marker | None:
            try:
                if self.folder.local:
                    with open(f"{self.folder.root}/{name}.json", "rb") as file:
                        data = file.read()
                else:
                    data = self.folder.read_bytes(f"{name}.json")
                marker: Marker = json.loads(data)
                return marker if marker["shard"] == name and isinstance(marker["files"], dict) else None
            except (ValueError, KeyError, TypeError, FileNotFoundError):
                return None

        if self.folder.local:
            found: Iterable[Marker | None] = map(one, names)
        else:
            with ThreadPoolExecutor(READERS) as pool:
                found = list(pool.map(one, names))
        return (marker for marker in found if marker is not None)


class LedgerWriter:
    """`shards.parquet`: a row a shard with its counts and files. No times and no attempts: equal shards, equal bytes."""

    def __init__(self, out: Folder) -> None:
        import pyarrow as pa

        self.schema = pa.schema(
            [("shard", pa.string()), ("rows_in", pa.int64()), ("rows_out", pa.int64()),
             ("counts", pa.string()), ("files", pa.string()), ("digest", pa.string())]
        )  # fmt: skip
        self._creating = out.create(LEDGER)

    def __enter__(self) -> LedgerWriter:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(self._creating.__enter__(), self.schema, compression="zstd")
        return self

    def __exit__(self, *exception: Any) -> None:
        self._writer.close()
        self._creating.__exit__(*exception)

    def write(self, markers: Sequence[Marker]) -> None:
        import pyarrow as pa

        files = [json.dumps(marker["files"], sort_keys=True) for marker in markers]
        columns = [
            [marker["shard"] for marker in markers],
            [int(marker["counts"].get("rows_in", 0)) for marker in markers],
            [int(marker["counts"].get("rows_out", 0)) for marker in markers],
            [json.dumps(marker["counts"], sort_keys=True) for marker in markers],
            files,
            [hashlib.sha256(text.encode()).hexdigest() for text in files],
        ]
        self._writer.write_table(pa.table(columns, schema=self.schema))
