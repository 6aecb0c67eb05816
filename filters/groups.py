"""Which of the rows that are near duplicates of each other are dropped: all of a connected group but the best.

Pairs come from embeddings (`filters.near_duplicates`) and from perceptual hashes (`filters.near_hashes`). A row is
named by a number: that of its shard among the sorted names, times 2^32, plus its place in the shard.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from mav.data.shards import ShardOutput, read_array, write_array
from mav.storage import Folder

SHARD_BITS = np.uint64(32)
FAILS = 2.0**40  # outweighs any worth
DROPPED = np.dtype([("place", "<u4"), ("kept", "<u8")])  # a dropped row's place in its shard, the kept row's number


class Rows(Protocol):
    """What a selection chooses from: the rows of shards, with what is stored about them."""

    def names(self) -> list[str]:
        """Returns the sorted names of the shards."""

    def read(self, name: str) -> pa.Table:
        """Returns key and scores of the rows of a shard, in the order of its tar."""

    def failures(self, scores: pa.Table) -> dict[str, np.ndarray]:
        """Returns for each reason which of the rows that `read` returned have it by their scores, bool (rows,)."""

    def worth(self, name: str, scores: pa.Table) -> np.ndarray:
        """Returns by what the best of near duplicates is found, float (rows,): the more the better."""

    def hashes(self, name: str) -> np.ndarray:
        """Returns the perceptual hashes of a shard's rows, uint64 (rows,)."""


def row_numbers(shard: int, count: int) -> np.ndarray:
    """Returns uint64 (count,), the numbers of a shard's rows."""
    return (np.uint64(shard) << SHARD_BITS) + np.arange(count, dtype=np.uint64)


def unit_rows(array: np.ndarray) -> np.ndarray:
    """Returns float32 rows of unit norm; rows of zeros stay."""
    rows = array.astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return rows


def join(group: np.ndarray, one: np.ndarray, other: np.ndarray) -> None:
    """Joins the groups of rows `one` and of rows `other`, in place. A group is named by its first row."""
    while True:
        low, high = np.minimum(group[one], group[other]), np.maximum(group[one], group[other])
        apart = low != high
        if not apart.any():
            return
        one, other = one[apart], other[apart]
        np.minimum.at(group, high[apart], low[apart])
        while not np.array_equal(group, above := group[group]):
            group[:] = above


@dataclass(frozen=True)
class ScoreWork:
    """Shard work: writes `NAME.npy`, float64 (rows,), by which the best of a group is found.

    A row that is dropped for its scores comes after all others, or it would take its near duplicates with it.
    """

    rows: Rows
    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        scores = self.rows.read(name)
        failing = np.any([np.zeros(len(scores), bool), *self.rows.failures(scores).values()], axis=0)
        worth = self.rows.worth(name, scores).astype(np.float64)
        write_array(self.out, f"{name}.npy", worth - FAILS * failing)
        return ShardOutput({"rows": len(scores)}, (f"{name}.npy",))


@dataclass(frozen=True)
class GroupWork:
    """Shard work of a single shard: writes `NAME.npy` for each shard of rows, DROPPED (n,), those to drop.

    A row is kept if it has the highest score of its group, the first of several. Memory grows with the rows that have
    near duplicates, not with the others. pairs: folders, and the ends of the names of their files of pairs.
    """

    shards: tuple[str, ...]
    scores: Folder
    pairs: tuple[tuple[Folder, str], ...]
    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        found = [np.zeros((0, 2), np.uint64)]
        for folder, end in self.pairs:
            found += [read_array(folder, file) for file in folder.names() if file.endswith(end)]
        rows, places = np.unique(np.concatenate(found), return_inverse=True)
        places = places.reshape(-1, 2)
        group = np.arange(len(rows))
        join(group, places[:, 0], places[:, 1])
        # Sort each group by score, and drop all of it but the first.
        shard = (rows >> SHARD_BITS).astype(np.int64)
        place = (rows & np.uint64(2**32 - 1)).astype(np.int64)
        firsts = np.searchsorted(shard, np.arange(len(self.shards) + 1))
        score = np.zeros(len(rows))
        for each, first, last in zip(self.shards, firsts, firsts[1:], strict=False):
            if first < last:
                score[first:last] = read_array(self.scores, f"{each}.npy")[place[first:last]]
        order = np.lexsort((rows, -score, group))
        _, best, members = np.unique(group[order], return_index=True, return_inverse=True)
        kept = np.empty(len(rows), np.int64)
        kept[order] = order[best[members]]
        # Write of each row that is not kept which one is.
        files = tuple(f"{each}.npy" for each in self.shards)
        for file, first, last in zip(files, firsts, firsts[1:], strict=False):
            lost = np.flatnonzero(kept[first:last] != np.arange(first, last)) + first
            records = np.empty(len(lost), DROPPED)
            records["place"], records["kept"] = place[lost], rows[kept[lost]]
            write_array(self.out, file, records)
        return ShardOutput({"groups": len(best), "rows_in_groups": len(rows)}, files)
