"""Which of the pictures that are near duplicates of each other are dropped: all of a connected group but the best.

Pairs come from embeddings (`filters.near_duplicates`) and from perceptual hashes (`filters.near_hashes`). A row is
named by a number: that of its shard among the sorted names, times 2^32, plus its place in the shard.
"""

from dataclasses import dataclass

import numpy as np

from mav.data.shards import ShardOutput, read_array, read_table, write_array
from mav.storage import Folder

SHARD_BITS = np.uint64(32)
NATIVE = np.float32(4)  # outweighs any caption


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
    """Shard work: writes for a shard of embeddings `NAME.npy`, float32 (rows,), by which the best of a group is found.

    A picture that was not enlarged is before one that was; then the one is, whose caption fits better by CLIP's cosine.
    """

    embeds: Folder
    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        native = read_table(self.embeds, f"{name}.parquet", ["native"]).column("native").to_numpy(zero_copy_only=False)
        image, text = (unit_rows(read_array(self.embeds, f"{name}.{kind}.npy")) for kind in ("image", "text"))
        write_array(self.out, f"{name}.npy", (image * text).sum(axis=1) + NATIVE * native.astype(np.float32))
        return ShardOutput({"rows": len(native)}, (f"{name}.npy",))


@dataclass(frozen=True)
class GroupWork:
    """Shard work of a single shard: writes for each shard of embeddings `NAME.npy`, the places of the rows to drop.

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
        score = np.zeros(len(rows), np.float32)
        for each, first, last in zip(self.shards, firsts, firsts[1:], strict=False):
            if first < last:
                score[first:last] = read_array(self.scores, f"{each}.npy")[place[first:last]]
        order = np.lexsort((rows, -score, group))
        _, best = np.unique(group[order], return_index=True)
        dropped = np.ones(len(rows), bool)
        dropped[order[best]] = False
        files = tuple(f"{each}.npy" for each in self.shards)
        for file, first, last in zip(files, firsts, firsts[1:], strict=False):
            write_array(self.out, file, place[first:last][dropped[first:last]].astype(np.uint32))
        return ShardOutput({"groups": len(best), "rows_in_groups": len(rows)}, files)
