"""Exact duplicates: rows whose address and caption both occurred before, found by 64-bit hashes of the pair.

Hashes are sorted arrays, 8 bytes a row. Among 2.3 billion rows the chance that any two different rows share a hash is
one in seven. LAION's joined tables have a hash of address and caption (`hash`, MurmurHash3). Where it exists, only rows
whose value occurs twice in the part are hashed (`Repeats`); a sample of each batch verifies the column. Across parts
(`screening.duplicates: all`), `HashWork` writes each part's hashes in buckets by their highest bits, and `RepeatWork`
finds in each bucket what an earlier part had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mav.data.shards import ShardOutput, read_array, write_array
from mav.storage import Folder

BUCKET_BITS = 7
END_BITS = 20
SAMPLE = 64  # rows of a batch whose `hash` is checked, evenly spaced
BLOCK = 8192  # rows hashed at once: their text stays in the processor's cache
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
ONE = np.uint64(1)
SEED = np.uint64(0xD6E8FEB86659FD93)
NO_HASHES = np.zeros(0, np.uint64)


def pair_hashes(table: pa.Table) -> np.ndarray:
    """Returns uint64 (rows,): one hash of `url` and `caption` together for each row. Nulls count as empty."""
    state = np.full(len(table), SEED)
    for name in ("url", "caption"):
        words, offsets = _buffers(table.column(name))
        for at in range(0, len(table), BLOCK):
            state[at : at + BLOCK] = _mix_strings(words, offsets[at : at + BLOCK + 1], state[at : at + BLOCK])
    return state


def _mix_strings(words: np.ndarray, offsets: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Mixes a string column (`_buffers`) into each row's state: its length, then its bytes, eight at a time.

    Rows are sorted longest first, so that the rows with bytes left are always a prefix: whole arrays and no masks.
    """
    left = np.diff(offsets)
    longest = int(left.max(initial=0))
    order = np.argsort((longest - left).astype(np.uint16 if longest < 1 << 16 else np.int64), kind="stable")
    left, start, state = left[order], offsets[:-1][order], state[order]
    _mix(state, left.astype(np.uint64))
    at, shift = start >> 3, ((start & 7) << 3).astype(np.uint64)  # a row's words straddle two of the buffer's
    back, low = np.uint64(63) - shift, words[at]
    steps, tails = left >> 3, ((left & 7) << 3).astype(np.uint64)
    # The counts are of the rows that have a first, a second, ... whole word.
    for count in (len(left) - np.cumsum(np.bincount(steps))[:-1]).tolist():
        at[:count] += 1
        high = words[at[:count]]
        _mix(state[:count], (low[:count] >> shift[:count]) | ((high << ONE) << back[:count]))
        low[:count] = high
    word = (low >> shift) | ((words[at + 1] << ONE) << back)
    _mix(state, word & ((ONE << tails) - ONE))
    restored = np.empty_like(state)
    restored[order] = state
    return restored


def _mix(state: np.ndarray, word: np.ndarray) -> None:
    state ^= word
    state *= MULTIPLIER
    state ^= state >> np.uint64(29)


def _buffers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns all bytes as padded little-endian uint64, and int64 (rows + 1,), the byte at which each row begins."""
    array = column.combine_chunks()
    if not len(array):
        return np.zeros(2, np.uint64), np.zeros(1, np.int64)
    array = pc.fill_null(array, "") if array.null_count else array
    _, ends, data = array.buffers()
    offsets = np.frombuffer(ends, np.int32)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    words = np.zeros((last - first) // 8 + 3, np.uint64)
    if last > first:
        words.view(np.uint8)[: last - first] = np.frombuffer(data, np.uint8)[first:last]
    return words, offsets - first


class WrongHashError(Exception):
    """A table's `hash` is not the hash of its addresses and captions."""


class Repeats:
    """Says which rows of one part can be duplicates, by its `hash` column.

    hashes: int64 (rows,), the whole column, without gaps; it is sorted in place.
    """

    def __init__(self, hashes: np.ndarray) -> None:
        hashes.sort()
        self._values = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        self._ends = np.zeros(1 << END_BITS, bool)  # lowest bits of the values: most rows need no search
        self._ends[self._values & ((1 << END_BITS) - 1)] = True

    def __call__(self, table: pa.Table) -> np.ndarray:
        """Returns bool (rows,), True where the value occurs again in the part.

        Raises WrongHashError when a row of the sample has another hash.
        """
        hashes = table.column("hash").to_numpy()
        rows = np.unique(np.linspace(0, len(table) - 1, min(SAMPLE, len(table)), dtype=np.int64))
        if not np.array_equal(hashes[rows], _murmur(table.select(["url", "caption"]).take(rows))):
            raise WrongHashError
        again = self._ends[hashes & ((1 << END_BITS) - 1)]
        again[again] = _among(hashes[again], self._values)
        return again


def _murmur(table: pa.Table) -> np.ndarray:
    import mmh3

    pairs = (pc.fill_null(pc.cast(table[name], "binary"), b"").to_pylist() for name in ("url", "caption"))
    return np.array([mmh3.hash64(url + caption)[0] for url, caption in zip(*pairs, strict=True)], np.int64)


class SeenRows:
    """A set of hashes in few sorted arrays, each at least twice as long as the next: each row moves few times."""

    def __init__(self, hashes: np.ndarray = NO_HASHES) -> None:
        self._runs = [np.sort(hashes)] if len(hashes) else []

    def repeated(self, hashes: np.ndarray) -> np.ndarray:
        """Adds the hashes. Returns bool (rows,), True where a hash was in the set or in an earlier row of `hashes`."""
        values = np.sort(hashes)
        new = np.ones(len(values), bool)
        new[1:] = values[1:] != values[:-1]
        twice = values[~new]
        values = values[new]
        known = np.zeros(len(values), bool)
        for run in self._runs:
            known |= _among(values, run)
        self._add(values[~known])
        again = np.zeros(len(hashes), bool)
        if known.any():
            again |= _among(hashes, values[known])
        if len(twice):  # the first of several equal rows is no repetition
            rows = np.flatnonzero(_among(hashes, twice))
            _, first = np.unique(hashes[rows], return_index=True)
            again[np.delete(rows, first)] = True
        return again

    def _add(self, values: np.ndarray) -> None:
        if len(values):
            self._runs.append(values)
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._merge_last()

    def _merge_last(self) -> None:
        both = np.concatenate(self._runs[-2:])
        both.sort(kind="stable")  # a merge, since both runs are sorted
        self._runs[-2:] = [both]

    def sorted(self) -> np.ndarray:
        """Returns all hashes of the set in order."""
        while len(self._runs) > 1:
            self._merge_last()
        return self._runs[0] if self._runs else NO_HASHES


def _among(values: np.ndarray, run: np.ndarray) -> np.ndarray:
    """Says for each value whether the sorted run holds it."""
    if not len(values):
        return np.zeros(0, bool)
    return np.asarray(run[np.minimum(np.searchsorted(run, values), len(run) - 1)] == values)


# --------------------------------------------------------------------------------------------------------- across parts


@dataclass(frozen=True)
class HashWork:
    """Shard work: writes the sorted hashes of the rows that one part would keep as `PPPPP/BB.npy`, BB being the bucket.

    kept: yields the tables of the rows that are kept of the part with this name.
    """

    kept: Callable[[str], Iterator[pa.Table]]
    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        seen = SeenRows()
        for table in self.kept(name):
            seen.repeated(pair_hashes(table))
        hashes = seen.sorted()
        edges = np.searchsorted(hashes, np.arange(1, 1 << BUCKET_BITS, dtype=np.uint64) << np.uint64(64 - BUCKET_BITS))
        files = {_file(name, bucket): part for bucket, part in enumerate(np.split(hashes, edges))}
        for file, part in files.items():
            write_array(self.out, file, part)
        return ShardOutput({"hashes": len(hashes)}, tuple(files))


@dataclass(frozen=True)
class RepeatWork:
    """Shard work, one bucket a call: writes for each part the hashes that an earlier part had as `PPPPP/BB.npy`."""

    parts: tuple[str, ...]
    hashes: Folder
    out: Folder

    @staticmethod
    def names() -> list[str]:
        """Returns the names of the buckets."""
        return [f"{bucket:02x}" for bucket in range(1 << BUCKET_BITS)]

    def __call__(self, name: str) -> ShardOutput:
        seen, repeats = SeenRows(), 0
        files = tuple(_file(part, int(name, 16)) for part in self.parts)
        for file in files:
            hashes = read_array(self.hashes, file)
            again = hashes[seen.repeated(hashes)]
            repeats += len(again)
            write_array(self.out, file, again)
        return ShardOutput({"repeats": repeats}, files)


def repeats_of(folder: Folder, part: str) -> np.ndarray:
    """Returns the hashes of one part that `RepeatWork` found in earlier parts."""
    return np.concatenate([read_array(folder, _file(part, bucket)) for bucket in range(1 << BUCKET_BITS)])


def _file(part: str, bucket: int) -> str:
    return f"{part}/{bucket:02x}.npy"
