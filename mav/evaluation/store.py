"""Features of any number of videos in bounded memory: computed a chunk at a time, kept in files, read back as a stream.

A chunk's file appears whole or not at all, so a killed evaluation goes on with the chunks that are not there. The folder's name is the
digest of all that shapes the features: the list of videos, their preparation, the networks' weights. What changes is thus never mixed.
"""

import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mav.evaluation.features import Networks
from mav.evaluation.protocols import Preparation
from mav.evaluation.reading import Entry, read_video
from mav.recipes import digest
from mav.storage import Folder

CHUNK = 32  # videos a file
BATCH = 4  # videos a forward: enough for a CPU
LAYOUT = 1  # of the files; another one is another folder
PROVENANCE = "provenance.json"
Chunk = tuple[int, tuple[Entry, ...]]


@dataclass(frozen=True)
class FeatureWork:
    """Makes the file of one chunk. Picklable, so that it can be an actor's."""

    source: Folder
    preparation: Preparation
    networks: Networks
    out: Folder

    def __call__(self, chunk: Chunk) -> int:
        """Returns the chunk's number. What cannot be read is kept as a reason beside the others' features."""
        number, entries = chunk
        arrays: dict[str, list[np.ndarray]] = {name: [] for name in self.networks.names}
        failed: dict[str, str] = {}
        kept: list[int] = []
        videos = self._read(entries, failed)
        while batch := list(itertools.islice(videos, BATCH)):
            for name, found in self.networks([video for _, video in batch]).items():
                arrays[name] += found
            kept += [index for index, _ in batch]
        data = {f"array{i}": np.stack(arrays[name]) for i, name in enumerate(self.networks.names) if kept}
        buffer = io.BytesIO()
        np.savez(
            buffer,
            allow_pickle=False,
            kept=np.array(kept, np.int64),
            failed=np.frombuffer(json.dumps(failed).encode(), np.uint8),
            **data,
        )
        self.out.write_bytes(f"{number:06d}.npz", buffer.getvalue())
        return number

    def _read(self, entries: Sequence[Entry], failed: dict[str, str]) -> Iterator[tuple[int, np.ndarray]]:
        """Decodes ahead in a thread while the networks work; at most two batches wait."""

        def read(entry: Entry) -> np.ndarray | str:
            if not entry.file:
                return "missing"
            try:
                return read_video(self.source, entry.file, self.preparation)
            except FileNotFoundError:
                return "missing"
            except ValueError as error:
                reason = str(error)
                return reason if reason in COUNTED else "unreadable"

        with ThreadPoolExecutor(1) as pool:
            waiting = []
            for entry in entries:
                waiting.append((entry, pool.submit(read, entry)))
                if len(waiting) > 2 * BATCH:
                    yield from _one(*waiting.pop(0), failed)
            for entry, future in waiting:
                yield from _one(entry, future, failed)


COUNTED = frozenset(
    ["too few frames", "frames of several sizes", "an unreadable frame", "not finite", "neither bytes nor floats", "not a readable tensor",
     "not of the shape (F, H, W, 3) or (F, 3, H, W)", "floats must lie in 0 to 1 or -1 to 1", "not a readable GIF"]
)  # fmt: skip


def _one(entry: Entry, future: Any, failed: dict[str, str]) -> Iterator[tuple[int, np.ndarray]]:
    result = future.result()
    if isinstance(result, str):
        failed[str(entry.index)] = result
    else:
        yield entry.index, result


Runner = Callable[
    [FeatureWork, Sequence[Chunk]], Iterable[int]
]  # does chunks in any order and says each one's number when it is done


def in_process(work: FeatureWork, chunks: Sequence[Chunk]) -> Iterator[int]:
    """One chunk after the other, here."""
    for chunk in chunks:
        yield work(chunk)


@dataclass(frozen=True)
class Features:
    """Finished features of a list of videos."""

    folder: Folder
    entries: tuple[Entry, ...]
    names: tuple[str, ...]

    def _chunks(self) -> Iterator[Any]:
        for number in range(-(-len(self.entries) // CHUNK)):
            # Through the file, so that only the array that is asked for is read.
            with self.folder.open(f"{number:06d}.npz") as file, np.load(file, allow_pickle=False) as arrays:
                yield arrays

    def stream(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(indices, arrays) of the readable videos, a chunk at a time."""
        key = f"array{self.names.index(name)}"
        for arrays in self._chunks():
            if len(arrays["kept"]):
                yield arrays["kept"], arrays[key]

    def load(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """All of them at once. Arrays are empty when no video could be read."""
        parts = list(self.stream(name))
        if not parts:
            return np.zeros(0, np.int64), np.zeros((0, 1, 1), np.float32)
        return np.concatenate([indices for indices, _ in parts]), np.concatenate([array for _, array in parts])

    @cached_property
    def failed(self) -> dict[str, int]:
        """How many videos could not be used, by reason."""
        reasons: Counter[str] = Counter()
        for arrays in self._chunks():
            reasons.update(json.loads(arrays["failed"].tobytes().decode()).values())
        return dict(sorted(reasons.items()))

    @property
    def readable(self) -> int:
        return len(self.entries) - sum(self.failed.values())


def compute(
    entries: Sequence[Entry],
    source: Folder,
    preparation: Preparation,
    networks: Networks,
    keep: Folder,
    report: Callable[[int, int], None] = lambda done, total: None,
    run: Runner = in_process,
) -> Features:
    """Features of all entries, those that `keep` has from before included. report(done, total) counts videos."""
    facts = {name: each["sha256"] for name, each in networks.facts().items()}
    listed = [[entry.index, entry.file, _identity(source, entry.file)] for entry in entries]
    provenance = {
        "layout": LAYOUT,
        "list": digest(listed),
        "videos": len(entries),
        "source": source.url,
        "preparation": asdict(preparation),
        "networks": facts,
    }
    shaped = {
        key: value for key, value in provenance.items() if key != "source"
    }  # the same files elsewhere are the same
    out = keep.child(digest(shaped)[:24])
    if not out.exists(PROVENANCE):
        out.write_json(PROVENANCE, provenance)
    present = set(out.names())
    chunks = [(n, tuple(entries[start : start + CHUNK])) for n, start in enumerate(range(0, len(entries), CHUNK))]
    todo = [chunk for chunk in chunks if f"{chunk[0]:06d}.npz" not in present]
    work = FeatureWork(source, preparation, networks, out)
    there = {index for index, _, identity in listed if identity}
    empty = [chunk for chunk in todo if not any(entry.index in there for entry in chunk[1])]
    for chunk in empty:  # of a set that is here in part; no network is needed to say so
        work(chunk)
    todo = [chunk for chunk in todo if chunk not in empty]
    done = len(entries) - sum(len(part) for _, part in todo)
    report(done, len(entries))
    for number in run(work, todo):
        done += len(chunks[number][1])
        report(done, len(entries))
    return Features(out, tuple(entries), networks.names)


def _identity(source: Folder, file: str) -> list[Any]:
    """What tells a file from one that replaced it: its size, and on a disk its time."""
    if not file:
        return []
    try:
        info = source.fs.info(source.path(file))
    except FileNotFoundError:
        return []
    return [info.get("size"), info.get("mtime") or str(info.get("ETag") or "")]
