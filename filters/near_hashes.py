"""Pairs of pictures or clips whose perceptual hashes nearly agree, as they are or mirrored, within and across tables.

Hashes that differ in fewer than n of their 64 bits agree in one of n bands of bits at least, so only rows with an equal
band are compared.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from filters.groups import Rows, join, row_numbers
from mav.data.images.hashes import HASH_BITS, mirrored
from mav.data.shards import ShardOutput, read_array, write_array
from mav.storage import Folder

SLICE_SHARDS = 256  # for so many shards, the rows of a band are taken in one slice more, which bounds their memory
BLOCK = 1 << 20  # pairs compared at once


@dataclass(frozen=True)
class HashWork:
    """Shard work: writes `NAME.npy`, uint64 (rows,), the hashes of a shard's rows."""

    rows: Rows
    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        hashes = self.rows.hashes(name)
        write_array(self.out, f"{name}.npy", hashes)
        return ShardOutput({"rows": len(hashes)}, (f"{name}.npy",))


@dataclass(frozen=True)
class HashPairWork:
    """Shard work, a slice of a band a call: writes `BAND-SLICE.npy`, uint64 (pairs, 2), rows that are near duplicates.

    Of each group of rows with an equal band there are as many pairs as connect it. bits: the hashes of near duplicates
    differ in fewer.
    """

    shards: tuple[str, ...]
    hashes: Folder
    bits: int
    out: Folder

    def names(self) -> list[str]:
        return [f"{band}-{part:05d}" for band in range(self.bits) for part in range(self._slices())]

    def __call__(self, name: str) -> ShardOutput:
        band, part = map(int, name.split("-"))
        rows, hashes = self._slice(band, part)
        order = np.lexsort((rows, _band(hashes, band, self.bits)))
        rows, hashes = rows[order], hashes[order]
        _, firsts = np.unique(_band(hashes, band, self.bits), return_index=True)
        found = [np.zeros((0, 2), np.uint64)]
        for first, end in itertools.pairwise([*firsts, len(rows)]):
            if end - first > 1:
                # Equal hashes are compared once: a placeholder has the same a hundred thousand times.
                values, once, same = np.unique(hashes[first:end], return_index=True, return_inverse=True)
                group = once[_groups(values, self.bits)[same]]
                found.append(np.stack([rows[first + group], rows[first:end]], axis=1))
        pairs = np.unique(np.concatenate(found), axis=0)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        write_array(self.out, f"{name}.npy", pairs)
        return ShardOutput({"pairs": len(pairs)}, (f"{name}.npy",))

    def _slices(self) -> int:
        return 1 + len(self.shards) // SLICE_SHARDS

    def _slice(self, band: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows and hashes, each row as it is and mirrored, of those whose band is in this slice."""
        rows, found = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
        for number, shard in enumerate(self.shards):
            hashes = read_array(self.hashes, f"{shard}.npy")
            numbers, hashes = row_numbers(number, len(hashes))[hashes != 0], hashes[hashes != 0]
            for each in (hashes, mirrored(hashes)):
                inside = _band(each, band, self.bits) % np.uint64(self._slices()) == part
                rows.append(numbers[inside])
                found.append(each[inside])
        return np.concatenate(rows), np.concatenate(found)


def _band(hashes: np.ndarray, band: int, bands: int) -> np.ndarray:
    """Returns the bits of one band of each hash."""
    low, high = HASH_BITS * band // bands, HASH_BITS * (band + 1) // bands
    return (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)


def _groups(values: np.ndarray, bits: int) -> np.ndarray:
    """Returns the first of the group of each of these hashes."""
    group = np.arange(len(values))
    for at in range(0, len(values), step := max(BLOCK // len(values), 1)):
        near = np.bitwise_count(values[at : at + step, None] ^ values[None]) < bits
        row, other = np.nonzero(near)
        join(group, row + at, other)
    return group
