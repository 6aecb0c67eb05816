"""Markers: which shards of a stage are committed, and with which bytes.

A marker is a small JSON file a worker writes after its shard's files: it is the commit point, and the truth on resume. When a walk ends,
the markers are compacted into `shards.parquet`, one row a shard, which is handed over with the artifact; while that ledger is
there nothing has changed since, so a resume reads one table instead of a file a shard.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mav.storage import TEMPORARY, Folder
from mav.storage.counts import add_counts
from mav.storage.ledger import LEDGER, LedgerWriter, Marker, read_ledger

if TYPE_CHECKING:
    from flows.engine.run import Job

MARKERS = "markers"
COMPACTED_AT_ONCE = 1_000
READERS = 32  # concurrent reads from storage that is not local


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
        facts: dict[str, dict[str, Any]] = {
            file: {"bytes": self.out.size(file), "sha256": self.out.sha256(file)} for file in files
        }
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

    def committed(self, names: Iterable[str]) -> set[str]:
        """Those of `names` whose marker and files are there in full; a torn or orphaned marker is as good as none."""
        there = (
            os.listdir(self.folder.root)
            if self.folder.local and os.path.isdir(self.folder.root)
            else self.folder.names()
        )
        marked = {file.removesuffix(".json") for file in there}.intersection(names)
        if not marked:
            return set()
        present = self.out.sizes()
        known = read_ledger(self.out, counts=False) if LEDGER in present else self._read(sorted(marked))
        return {
            marker["shard"]
            for marker in known
            if marker["shard"] in marked
            and all(present.get(file) == facts["bytes"] for file, facts in marker["files"].items())
        }

    def intact(self, name: str) -> bool:
        """Whether a shard's marker is there and its files have the very bytes that it names: two executions may have met in them."""
        for marker in self._read([name]):
            files = marker["files"].items()
            return all(self.out.exists(file) and self.out.sha256(file) == facts["sha256"] for file, facts in files)
        return False

    def compact(self, names: Sequence[str]) -> dict[str, Any]:
        """Writes the ledger of these shards (sorted), unless it is there; returns their summed counts."""
        if self.out.exists(LEDGER) and [marker["shard"] for marker in read_ledger(self.out, counts=False)] == list(
            names
        ):
            return add_counts(marker["counts"] for marker in read_ledger(self.out))
        counts = add_counts([])
        with LedgerWriter(self.out) as ledger:
            for at in range(0, len(names), COMPACTED_AT_ONCE):
                wanted = names[at : at + COMPACTED_AT_ONCE]
                part = list(self._read(wanted))
                if len(part) < len(
                    wanted
                ):  # a ledger without them would lose their rows; read anew, they count as not done
                    raise OSError(f"{len(wanted) - len(part)} markers in {self.folder.url} are gone or torn: run again")
                ledger.write(part)
                counts = add_counts([counts, *(marker["counts"] for marker in part)])
        return counts

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
