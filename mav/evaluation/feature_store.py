"""Computes the features of any number of videos in bounded memory, one chunk of videos at a time, and stores them.

The file of a chunk appears whole or not at all, so a killed evaluation continues with the missing chunks. The folder is
named by the digest of everything that determines the features: the list of videos, their preparation and the weights of
the networks. A change of any of them therefore leads to another folder.
"""

import io
import itertools
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mav.errors import UserError
from mav.evaluation.corruptions import Corruption
from mav.evaluation.features import Networks
from mav.evaluation.protocols import Preparation
from mav.evaluation.reading import COUNTED, Entry, Views, read_views
from mav.recipes import digest
from mav.storage import Folder

CHUNK = 32  # videos of one file
BATCH = {"cpu": 4, "cuda": 16}  # videos of one forward pass, by the kind of device
LAYOUT = 1  # version of the files; another one leads to another folder
PROVENANCE = "provenance.json"
Chunk = tuple[int, tuple[Entry, ...]]


@dataclass(frozen=True)
class FeatureWork:
    """Makes the file of one chunk. It can be pickled, so that other processes can do it."""

    source: Folder
    preparation: Preparation
    networks: Networks
    out: Folder
    change: Corruption | None = None

    def __call__(self, chunk: Chunk) -> int:
        """Writes the file and returns the chunk's number. An unreadable video is stored as a reason."""
        number, entries = chunk
        arrays: dict[str, list[np.ndarray]] = {name: [] for name in self.networks.names}
        failed: dict[str, str] = {}
        kept: list[int] = []
        videos = ((index, views.prepared, self._rows(views)) for index, views in self._read(entries, failed))
        while batch := list(itertools.islice(videos, self.batch)):
            prepared = [video for _, video, _ in batch if video is not None]
            found = self.networks(prepared) if prepared else {}
            for name in arrays:
                arrays[name] += found[name] if name in found else [rows[name] for *_, rows in batch]
            kept += [index for index, *_ in batch]
        data = {f"array{i}": np.stack(arrays[name]) for i, name in enumerate(self.networks.names) if kept}
        reasons = np.frombuffer(json.dumps(failed).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, kept=np.array(kept, np.int64), failed=reasons, **data)
        self.out.write_bytes(f"{number:06d}.npz", buffer.getvalue())
        return number

    @property
    def batch(self) -> int:
        """The videos of one forward pass."""
        return BATCH[torch.device(self.networks.device).type]

    def _rows(self, views: Views) -> dict[str, np.ndarray]:
        return {} if views.whole is None else self.networks.rows(views.whole, views.fps)

    def _read(self, entries: Sequence[Entry], failed: dict[str, str]) -> Iterator[tuple[int, Views]]:
        """Yields (index, views) of the readable entries and records why the others failed.

        A thread decodes ahead while the networks work; at most two batches wait, or two whole videos.
        """
        with ThreadPoolExecutor(1) as pool:
            submitted = ((entry.index, pool.submit(self._read_one, entry)) for entry in entries)
            waiting = list(itertools.islice(submitted, 2 if self.networks.whole else 2 * self.batch))
            while waiting:
                index, future = waiting.pop(0)
                waiting += itertools.islice(submitted, 1)
                views = future.result()
                if isinstance(views, str):
                    failed[str(index)] = views
                else:
                    yield index, views

    def _read_one(self, entry: Entry) -> Views | str:
        """Returns what the networks see of the video, or the reason why it cannot be used."""
        if not entry.file:
            return "missing"
        try:
            views = read_views(self.source, entry.file, self.preparation, self.networks.prepared, self.networks.whole)
        except FileNotFoundError:
            return "missing"
        except PermissionError:  # no property of the video, so that it is not kept as one
            remedy = "change its permissions, or take it out of the folder"
            raise UserError(f"{self.source.path(entry.file)} may not be read: {remedy}.") from None
        except ValueError as error:
            return str(error) if str(error) in COUNTED else "unreadable"
        if self.change is None:
            return views
        changed = [None if video is None else self.change(video, entry.index) for video in views[:2]]
        return Views(changed[0], changed[1], views.fps)


Runner = Callable[[FeatureWork, Sequence[Chunk]], Iterable[int]]  # does chunks in any order and yields their numbers


def in_process(work: FeatureWork, chunks: Sequence[Chunk]) -> Iterator[int]:
    """Does one chunk after the other in this process."""
    yield from map(work, chunks)


@dataclass(frozen=True)
class Features:
    """The stored features of a list of videos."""

    folder: Folder
    entries: tuple[Entry, ...]
    names: tuple[str, ...]
    chosen: frozenset[int] | None = None  # the videos, by index, that count; None = all

    def of(self, indices: Iterable[int]) -> "Features":
        """Returns the features of some of the videos."""
        return replace(self, chosen=frozenset(indices))

    def _chunks(self) -> Iterator[Any]:
        for number in range(-(-len(self.entries) // CHUNK)):
            # From an open file, numpy reads only the array that is asked for.
            with self.folder.open(f"{number:06d}.npz") as file, np.load(file, allow_pickle=False) as arrays:
                yield arrays

    def stream(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (indices, arrays) of the readable videos, one chunk at a time."""
        key = f"array{self.names.index(name)}"
        for arrays in self._chunks():
            kept = arrays["kept"]
            if self.chosen is None and len(kept):
                yield kept, arrays[key]
            elif (those := np.isin(kept, list(self.chosen or ()))).any():
                yield kept[those], arrays[key][those]

    def load(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns (indices, arrays) of all readable videos; both are empty when no video could be read."""
        parts = list(self.stream(name)) or [(np.zeros(0, np.int64), np.zeros((0, 1, 1), np.float32))]
        return np.concatenate([indices for indices, _ in parts]), np.concatenate([array for _, array in parts])

    @cached_property
    def unusable(self) -> dict[int, str]:
        """Why videos could not be used, by index."""
        found: dict[int, str] = {}
        for arrays in self._chunks():
            reasons = json.loads(arrays["failed"].tobytes().decode())
            found |= {int(index): reason for index, reason in reasons.items()}
        return found if self.chosen is None else {i: why for i, why in found.items() if i in self.chosen}

    @property
    def failed(self) -> dict[str, int]:
        """The number of videos that could not be used, by reason."""
        return dict(sorted(Counter(self.unusable.values()).items()))

    @property
    def readable(self) -> int:
        return len(self.entries if self.chosen is None else self.chosen) - len(self.unusable)


def compute(
    entries: Sequence[Entry], source: Folder, preparation: Preparation, networks: Networks, keep: Folder,
    report: Callable[[int, int], None] = lambda done, total: None, run: Runner = in_process,
    change: Corruption | None = None,
) -> Features:  # fmt: skip
    """Returns the features of all entries and computes those that `keep` lacks. report(done, total) counts videos.

    `change` is done to each prepared video before the networks see it.
    """
    # The folder: its name covers everything but the place of the videos.
    listed = [[entry.index, entry.file, _identity(source, entry.file)] for entry in entries]
    shaped = {
        "layout": LAYOUT,
        "list": digest(listed),
        "videos": len(entries),
        "preparation": asdict(preparation),
        "networks": {name: each["sha256"] for name, each in networks.describe().items()},
    } | ({"change": asdict(change)} if change else {})
    out = keep.child(digest(shaped)[:24])
    if not out.exists(PROVENANCE):
        out.write_json(PROVENANCE, shaped | {"source": source.url})
    # The chunks that are not there. Those of which no file exists need no network and no other process.
    present = {name for name in out.names() if name.endswith(".npz") and _whole(out, name)}
    chunks = [(n, tuple(entries[start : start + CHUNK])) for n, start in enumerate(range(0, len(entries), CHUNK))]
    todo = [chunk for chunk in chunks if f"{chunk[0]:06d}.npz" not in present]
    work = FeatureWork(source, preparation, networks, out, change)
    existing = {index for index, _, identity in listed if identity}
    empty = [chunk for chunk in todo if not any(entry.index in existing for entry in chunk[1])]
    for chunk in empty:
        work(chunk)
    todo = [chunk for chunk in todo if chunk not in empty]
    done = len(entries) - sum(len(part) for _, part in todo)
    report(done, len(entries))
    for number in run(work, todo):
        done += len(chunks[number][1])
        report(done, len(entries))
    return Features(out, tuple(entries), networks.names)


def _whole(out: Folder, name: str) -> bool:
    """Says whether a chunk's file has all of its bytes; one that lost some is made again."""
    try:
        with out.open(name) as file, zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError):
        return False


def _identity(source: Folder, file: str) -> list[Any]:
    """Returns what distinguishes a video from one that replaced it: its size and time; [] when it does not exist.

    Of a folder of frames it is that of every frame, since a folder's time does not change with what is in its files.
    """
    try:
        info = source.fs.info(source.path(file)) if file else {}
    except FileNotFoundError:
        info = {}
    if info.get("type") != "directory":
        return _version(info) if info else []
    inside = source.child(file)
    if inside.local:  # a listing would say of links when they were made, not what they lead to
        return [[name, *_version(inside.fs.info(inside.path(name)))] for name in inside.names()]
    return [[name, *_version(each)] for name, each in sorted(inside.fs.find(inside.root, detail=True).items())]


def _version(info: dict[str, Any]) -> list[Any]:
    return [info.get("size"), info.get("mtime") or str(info.get("ETag") or "")]
