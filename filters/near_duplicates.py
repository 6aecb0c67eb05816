"""Pairs of pictures whose embeddings nearly agree, found among millions (after SemDeDup, Abbas et al. 2023).

Three passes of Ray tasks that are independent of each other, with memory that does not grow with the rows. `CentreWork`
places the centres of cells by k-means over a sample. `CellWork` enters each row in the cell of its nearest centre, and
rows near a border in the cells beyond it too. `PairWork` compares the rows of a cell with each other, exactly. What is
not exact: a row enters at most `BORDERS` cells beside its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from filters.groups import join, row_numbers, unit_rows
from mav.data.shards import ShardOutput, read_array, write_array
from mav.storage import Folder

CELL_ROWS = 2000  # on average: with larger cells more rows are compared, with smaller ones more centres
MOST_CELLS = 4096  # of more than 8 million rows, the cells grow
SAMPLE = 32  # rows a cell, of which its centre is found
SAMPLED_SHARDS = 256
ROUNDS = 8  # of k-means
BORDERS = 4  # cells beside its own that a row may enter; without any, half of the pairs of random directions are missed
BUCKET_CELLS = 12  # whose rows are in memory together: 120 MB for 512 numbers a row
ROUNDING = 1e-6  # of a cosine, so that equal rows are near duplicates at a threshold of 1 too
BLOCK, ACROSS = 1024, 4096  # rows compared with rows at once


def buckets(centres: Folder) -> list[str]:
    """Returns the names of the buckets that the cells of `CentreWork` are put in: shards for `PairWork`."""
    cells = len(read_array(centres, "centres.npy"))
    return [f"{number:05d}" for number in range(-(-cells // BUCKET_CELLS))]


@dataclass(frozen=True)
class CentreWork:
    """Shard work of a single shard: writes `centres.npy`, float32 (cells, d) of unit norm.

    shards: the sorted names of the shards of `embeds`, which holds NAME.image.npy (rows, d) for each.
    """

    embeds: Folder
    shards: tuple[str, ...]
    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        draws = np.random.default_rng(0)
        chosen = sorted(draws.permutation(len(self.shards))[:SAMPLED_SHARDS].tolist())
        found, rows = [], 0
        for number in chosen:
            vectors = read_array(self.embeds, f"{self.shards[number]}.image.npy")
            most = -(-SAMPLE * MOST_CELLS // len(chosen))
            found.append(vectors[np.unique(np.linspace(0, max(len(vectors) - 1, 0), most).astype(int))[: len(vectors)]])
            rows += len(vectors)
        sample = np.concatenate(found)
        cells = -(-rows * len(self.shards) // (len(chosen) * CELL_ROWS))
        cells = min(max(cells, 1), MOST_CELLS, max(len(sample), 1))
        sample = unit_rows(sample[draws.permutation(len(sample))[: SAMPLE * cells]])
        write_array(self.out, "centres.npy", _k_means(sample, cells))
        return ShardOutput({"cells": cells}, ("centres.npy",))


def _k_means(sample: np.ndarray, cells: int) -> np.ndarray:
    """Returns unit centres, beginning with the first rows of the sample. A cell that loses all rows stays in place."""
    centres = np.zeros((cells, sample.shape[1]), np.float32)
    centres[: len(sample)] = sample[:cells]
    for _ in range(ROUNDS if len(sample) else 0):
        nearest = np.concatenate([(part @ centres.T).argmax(axis=1) for part in _parts(sample)])
        order = np.argsort(nearest, kind="stable")
        filled, first = np.unique(nearest[order], return_index=True)
        centres[filled] = unit_rows(np.add.reduceat(sample[order], first, axis=0))
    return centres


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[at : at + BLOCK] for at in range(0, len(rows), BLOCK))


@dataclass(frozen=True)
class CellWork:
    """Shard work: writes for a shard of embeddings `NAME/BUCKET.npy`, the rows of the cells of each bucket.

    A record has the row's number, the cell, whether the row is nearest to its centre (`own`), and the vector. Rows
    equal to an earlier one of the shard are entered in `NAME/equal.npy` as pairs instead, since the web has the same
    placeholder a hundred thousand times.

    threshold: the cosine from which on two rows are near duplicates.
    """

    embeds: Folder
    shards: tuple[str, ...]
    centres: Folder
    threshold: float
    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        stored = read_array(self.embeds, f"{name}.image.npy")
        vectors, centres = unit_rows(stored), read_array(self.centres, "centres.npy")
        numbers = row_numbers(self.shards.index(name), len(stored))
        # Of equal rows, the first stands for all.
        seen: dict[bytes, int] = {}
        first = np.array([seen.setdefault(row.tobytes(), place) for place, row in enumerate(stored)], np.int64)
        again = np.flatnonzero(first != np.arange(len(first)))
        write_array(self.out, f"{name}/equal.npy", np.stack([numbers[first[again]], numbers[again]], axis=1))
        alone = np.delete(np.arange(len(first)), again)
        # Write the others by bucket and by cell.
        places, cells, own = self._entries(vectors[alone], centres)
        kind = [("row", "<u8"), ("cell", "<u4"), ("own", "?"), ("vector", "<f2", (stored.shape[1],))]
        files = [f"{name}/equal.npy"]
        for number, bucket in enumerate(buckets(self.centres)):
            inside = np.flatnonzero(cells // BUCKET_CELLS == number)
            records = np.empty(len(inside), kind)
            records["row"], records["cell"], records["own"] = numbers[alone[places[inside]]], cells[inside], own[inside]
            records["vector"] = stored[alone[places[inside]]]
            files.append(f"{name}/{bucket}.npy")
            write_array(self.out, files[-1], records)
        return ShardOutput({"rows": len(stored), "entries": len(cells)}, tuple(files))

    def _entries(self, vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the row, the cell and whether it is the row's own, for each time that a row enters a cell.

        Of two near duplicates with different nearest centres, one at least is as near to the plane between these as
        half of the greatest distance of near duplicates. Others need not cross it.
        """
        reach, most = np.sqrt(max(2 - 2 * self.threshold, 0.0)) / 2 + 1e-4, min(BORDERS + 1, len(centres))
        between = np.sqrt(np.maximum(2 - 2 * centres @ centres.T, 1e-12))
        found: list[tuple[np.ndarray, ...]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))]
        for number, part in enumerate(_parts(vectors)):
            cosine = part @ centres.T
            rows = np.arange(len(part))[:, None]
            nearest = cosine.argmax(axis=1)[:, None]
            cells = np.argpartition(-cosine, most - 1, axis=1)[:, :most]
            away = (cosine[rows, nearest] - cosine[rows, cells]) / between[nearest, cells]
            cells[away > reach] = -1
            cells = np.where(cells == nearest, -1, cells)
            cells = np.sort(np.concatenate([nearest, cells], axis=1), axis=1)
            row, place = np.nonzero(cells >= 0)
            entered = cells[row, place]
            found.append((row + number * BLOCK, entered, entered == nearest[row, 0]))
        places, entered, own = (np.concatenate(each) for each in zip(*found, strict=True))
        return places, entered, own


@dataclass(frozen=True)
class PairWork:
    """Shard work, a bucket of cells a call: writes `BUCKET.npy`, uint64 (pairs, 2), rows that are near duplicates.

    Of each group of a cell there are as many pairs as connect it: every row with the group's first.
    """

    shards: tuple[str, ...]
    cells: Folder
    threshold: float
    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        entries = np.concatenate([read_array(self.cells, f"{shard}/{name}.npy") for shard in self.shards])
        # By cell, and in a cell those that are nearest to its centre first.
        order = np.lexsort((entries["row"], ~entries["own"], entries["cell"]))
        _, firsts = np.unique(entries["cell"][order], return_index=True)
        found = [np.zeros((0, 2), np.uint64)]
        for members in np.split(order, firsts[1:]):
            rows = entries["row"][members]
            group = _groups(entries["vector"][members], int(entries["own"][members].sum()), self.threshold)
            joined = np.flatnonzero(group != np.arange(len(group)))
            found.append(np.stack([rows[group[joined]], rows[joined]], axis=1))
        pairs = np.concatenate(found)
        write_array(self.out, f"{name}.npy", pairs)
        return ShardOutput({"pairs": len(pairs)}, (f"{name}.npy",))


def _groups(vectors: np.ndarray, own: int, threshold: float) -> np.ndarray:
    """Returns the first row of each row's group, among the rows of a cell of which the first `own` are its own.

    Own rows are compared with all rows; rows that are there from other cells are compared in their own.
    """
    group = np.arange(len(vectors))
    for across in range(0, len(vectors), ACROSS):
        others = unit_rows(vectors[across : across + ACROSS])
        for at in range(0, min(own, across + ACROSS), BLOCK):
            near = unit_rows(vectors[at : min(at + BLOCK, own)]) @ others.T >= threshold - ROUNDING
            row, other = np.nonzero(near)
            row, other = row + at, other + across
            join(group, row[row < other], other[row < other])
    return group
