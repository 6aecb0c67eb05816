"""Markers: which shards of a stage are done, and with which bytes.

A marker is a small JSON file that a worker writes after its shard's files. It is the commit point of the shard, and
what a resumed pass believes. At the end of a pass the markers are compacted into the ledger `shards.parquet`, one row a
shard, which becomes part of the artifact. While that ledger exists nothing has changed since it was written, so a
resumed pass reads one table instead of one file for each shard.
"""

from __future__ import annotations

import base64
import bisect
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from flows.engine.run import Job
from mav.errors import UserError
from mav.recipes.identity import deadlines
from mav.storage import TEMPORARY, Folder
from mav.storage.counts import add_counts
from mav.storage.ledger import LEDGER, Marker, read_ledger, write_ledger

MARKERS = "markers"
COMPACTED_AT_ONCE = 1_000
READERS = 32  # concurrent reads from remote storage


@dataclass(frozen=True)
class Markers:
    """The markers in `folder` of shards whose files are in `out`.

    deadlines: the recipe's values, by key, that decide which rows of a shard come through in time. told: those that the
    artifact's manifest names. The ledger names a shard's own where they differ from these, as they do when a deadline
    was changed in the middle of a stage.
    """

    out: Folder
    folder: Folder
    deadlines: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job) -> Markers:
        """Returns the markers of a stage that is being built, or of a retry pass over a finished one."""
        now = deadlines(job.recipe, job.node.stage.reads_of(job.recipe))
        finished = job.told or now
        return cls(job.out, job.work.child(MARKERS), now, {key: finished.get(key) for key in now})

    def commit(
        self, name: str, counts: dict[str, Any], files: Sequence[str], places: bytes | None = None,
        *, fsync: bool = True,
    ) -> int:  # fmt: skip
        """Records that a shard is complete and returns its bytes.

        With `fsync` its files are flushed to the disk before, so that after a power failure no marker lacks its files.
        """
        entries: dict[str, dict[str, Any]] = {}
        for file in files:
            entries[file] = {"bytes": self.out.size(file), "sha256": self.out.sha256(file)}
        if fsync and files:
            self.out.sync(files)
        marker: Marker = {"shard": name, "counts": counts, "files": entries}
        if places is not None:
            marker["places"] = base64.b64encode(places).decode()
        if self.folder.fence:
            marker["lease"] = self.folder.fence.token
        if self.deadlines:
            marker["deadlines"] = dict(self.deadlines)
        self._write(f"{name}.json", json.dumps(marker, sort_keys=True, separators=(",", ":")).encode())
        return sum(int(entry["bytes"]) for entry in entries.values())

    def _write(self, name: str, data: bytes) -> None:
        """Writes a marker atomically, on a local disk at less cost than `Folder.create`, which is for any storage."""
        if not self.folder.local:
            self.folder.write_bytes(name, data)
            return
        fence, temporary = self.folder.fence, f"{self.folder.root}/{TEMPORARY}{os.getpid()}-{name}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            handle = os.open(temporary, flags, 0o644)
        except FileNotFoundError:
            if fence:
                fence.check()
            os.makedirs(self.folder.root, exist_ok=True)
            handle = os.open(temporary, flags, 0o644)
        with os.fdopen(handle, "wb", buffering=0) as file:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, "No space left on device")
        if fence:
            fence.check()
        os.replace(temporary, f"{self.folder.root}/{name}")

    def committed(self, names: Iterable[str]) -> set[str]:
        """Returns those of `names` whose marker and files are all there. A torn or orphaned marker counts as none."""
        local = self.folder.local and os.path.isdir(self.folder.root)
        listed = os.listdir(self.folder.root) if local else self.folder.names()
        marked = {file.removesuffix(".json") for file in listed}.intersection(names)
        if not marked:
            return set()
        present = self.out.sizes()
        ledger = self._ledger() if LEDGER in present else None
        known = self._read(sorted(marked)) if ledger is None else ledger
        return {
            marker["shard"]
            for marker in known
            if marker["shard"] in marked
            and all(present.get(file) == entry["bytes"] for file, entry in marker["files"].items())
        }

    def _ledger(self) -> list[Marker] | None:
        """Returns the ledger's shards without their counts; None when it cannot be read, and the markers must do."""
        try:
            return list(read_ledger(self.out, counts=False))
        except UserError:
            self.forget_ledger()
            return None

    def intact(self, name: str) -> bool:
        """Says whether a shard's files have the bytes that its marker names: two attempts may have written them."""
        for marker in self._read([name]):
            files = marker["files"].items()
            return all(self.out.exists(file) and self.out.sha256(file) == entry["sha256"] for file, entry in files)
        return False

    def compact(self, names: Sequence[str], made: Sequence[str] = ()) -> dict[str, Any]:
        """Writes the ledger of these shards (sorted), unless it exists, and returns their summed counts.

        made: those that were made under the present lease, sorted. Raises OSError when a marker is missing or torn: a
        ledger without it would lose the shard's rows. Raises it too when a run that has lost the lease marked one of
        `made` late, as the shard's files may then be either run's; such a shard is forgotten, and so made again.
        """
        # An earlier pass that wrote a ledger may have had other deadlines, which the ledger told without naming them.
        known = self._ledger() if self.out.exists(LEDGER) and not self.deadlines else None
        if known is not None and [marker["shard"] for marker in known] == list(names):
            return add_counts(marker["counts"] for marker in read_ledger(self.out))
        counts = add_counts([])

        def batches() -> Iterator[list[Marker]]:
            nonlocal counts
            for at in range(0, len(names), COMPACTED_AT_ONCE):
                wanted = names[at : at + COMPACTED_AT_ONCE]
                markers = list(self._read(wanted))
                foreign = [marker["shard"] for marker in markers if self._foreign(marker)]
                if late := [name for name in foreign if _among(name, made)]:
                    self.forget(late)
                    raise OSError(f"another run wrote shard {late[0]} after it had lost its lease: run again")
                if len(markers) < len(wanted):
                    missing = len(wanted) - len(markers)
                    raise OSError(f"{missing} markers in {self.folder.url} are gone or torn: run again")
                counts = add_counts([counts, *(marker["counts"] for marker in markers)])
                yield [self._named(marker) for marker in markers]

        write_ledger(self.out, batches())
        return counts

    def _foreign(self, marker: Marker) -> bool:
        """Says whether another lease's holder wrote a marker."""
        return self.folder.fence is not None and marker.get("lease") != self.folder.fence.token

    def _named(self, marker: Marker) -> Marker:
        """Returns a marker with its deadlines only where they are not those that the manifest tells."""
        own = marker.get("deadlines", self.told)
        return {name: value for name, value in marker.items() if name != "deadlines" or own != self.told}

    def counts_of(self, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the name and the counts of each of these shards whose marker can be read."""
        for at in range(0, len(names), COMPACTED_AT_ONCE):
            yield from (
                (marker["shard"], marker["counts"]) for marker in self._read(names[at : at + COMPACTED_AT_ONCE])
            )

    def forget_ledger(self) -> None:
        """Removes the ledger before anything changes: from here on only the markers are true."""
        self.out.remove(LEDGER)

    def forget(self, names: Iterable[str]) -> None:
        """Removes the markers of these shards, so that they are made again."""
        gone = list(names)
        if gone:
            self.forget_ledger()
        for name in gone:
            self.folder.remove(f"{name}.json")

    def _read(self, names: Sequence[str]) -> Iterator[Marker]:
        """Yields the readable markers among `names`, in order."""

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


class ShardNames(Sequence[str]):
    """Names in sorted order, kept as bytes of one array: a tenth of what a list of strings takes."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = np.array([name.encode() for name in names], dtype=bytes)
        self._names.sort()  # UTF-8 sorts as the strings do

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> list[str]: ...

    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [name.decode() for name in self._names[at].tolist()]
        return bytes(self._names[at]).decode()


def _among(name: str, names: Sequence[str]) -> bool:
    """Says whether a name is one of these, sorted ones; a set of 230,000 would take 8 MB."""
    at = bisect.bisect_left(names, name)
    return at < len(names) and names[at] == name
