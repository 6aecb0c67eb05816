"""Near duplicates among embeddings: seconds, memory and recall of exact search, beside comparing all with all.

Two processes of one thread each do the shard work of `image-select`; seconds are half of their processor time, and the
clock's are told beside them. One pair in a hundred rows is planted, at cosines
of 0.95 and more. Rows are random directions, which no cell holds together, or lie around topics. What comparing all
rows with all would take is predicted from a block of it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import pyarrow as pa
from harness import cost, report

from filters.groups import GroupWork, ScoreWork, unit_rows
from filters.near_duplicates import CellWork, CentreWork, PairWork, buckets
from filters.pictures import Pictures
from mav.data.shards import read_array, write_array, write_table
from mav.recipes import ImageSelect
from mav.storage import Folder

DIM, THRESHOLD, SHARD, TOPICS, BLOCK = 512, 0.95, 10_000, 3000, 4096
SPREAD = 0.8  # of rows around their topic: the cosine of two is about 0.6


def draw(folder: Folder, rows: int, kind: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Writes embeddings as `image-embed` does, and returns the names of the shards and the planted pairs (pairs, 2)."""
    draws = np.random.default_rng(0)
    topics = unit_rows(draws.normal(size=(TOPICS, DIM)))
    pairs = draws.permutation(rows)[: rows // 50].reshape(-1, 2)
    cosines, partner = draws.uniform(THRESHOLD + 0.001, 1, len(pairs)), dict(pairs[:, ::-1].tolist())
    first = {int(row): number for number, row in enumerate(pairs[:, 0])}
    names, kept = [], np.zeros((len(pairs), DIM), np.float32)

    def fresh(count: int) -> np.ndarray:
        noise = unit_rows(draws.normal(size=(count, DIM)))
        return noise if kind == "random" else unit_rows(topics[draws.integers(0, TOPICS, count)] + SPREAD * noise)

    kept[:] = fresh(len(pairs))
    for at in range(0, rows, SHARD):
        image = fresh(count := min(SHARD, rows - at))
        for row in range(at, at + count):
            if row in first:
                image[row - at] = kept[first[row]]
            elif row in partner:
                number = first[partner[row]]
                other = draws.normal(size=DIM)
                other -= (other @ kept[number]) * kept[number]
                other /= np.linalg.norm(other)
                image[row - at] = cosines[number] * kept[number] + np.sqrt(1 - cosines[number] ** 2) * other
        names.append(f"{at // SHARD:05d}")
        write_array(folder, f"{names[-1]}.image.npy", image.astype(np.float16))
        write_array(folder, f"{names[-1]}.text.npy", image[:, ::-1].astype(np.float16))
        keys = [f"{row:010d}" for row in range(at, at + count)]
        write_table(folder, f"{names[-1]}.parquet", pa.table({"key": keys, "native": np.ones(count, bool)}))
    return tuple(names), pairs


def used(work: Callable[[str], Any], name: str) -> tuple[int, float, float]:
    """Does a shard's work and returns the process, its largest memory in MB, and the seconds of processor it took."""
    began = time.process_time()
    work(name)
    return os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, time.process_time() - began


def search(embeds: Folder, names: tuple[str, ...], place: Folder) -> tuple[dict[str, float], Folder, float]:
    """Returns the seconds of each pass, what `GroupWork` made, and the MB of the processes together."""
    seconds: dict[str, float] = {"clock": 0.0}
    memory: dict[int, float] = {}
    with multiprocessing.get_context("spawn").Pool(2) as pool:

        def each(what: str, work: Callable[[str], Any], shards: Sequence[str]) -> None:
            began = time.perf_counter()
            found = pool.starmap(used, [(work, shard) for shard in shards], chunksize=1)
            alone = len(shards) == 1  # which keeps the other core idle
            seconds[what] = round(sum(taken for *_, taken in found) / (1 if alone else 2), 2)
            seconds["clock"] += round(time.perf_counter() - began, 1)
            memory.update({process: size for process, size, _ in found})
            print(f"  {what}: {seconds[what]} s", flush=True)

        centres, cells, pairs, scores, groups = (place.child(name) for name in "ncpsg")
        each("centres", CentreWork(embeds, names, centres), ["centres"])
        each("cells", CellWork(embeds, names, centres, THRESHOLD, cells), names)
        each("pairs", PairWork(names, cells, THRESHOLD, pairs), buckets(centres))
        each("scores", ScoreWork(Pictures(embeds, embeds, ImageSelect()), scores), names)
        found = ((cells, "/equal.npy"), (pairs, ".npy"))
        each("groups", GroupWork(names, scores, found, groups), ["groups"])
        return seconds, groups, sum(memory.values())


def exhaustive(embeds: Folder, names: tuple[str, ...], rows: int) -> float:
    """Returns the seconds that comparing all rows with all takes two cores, from a block of it on one."""
    some = unit_rows(read_array(embeds, f"{names[0]}.image.npy")[:BLOCK])
    began = time.process_time()
    np.nonzero(some @ some.T >= THRESHOLD)
    return (time.process_time() - began) * (rows / len(some)) ** 2 / 2 / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 500_000, 1_000_000])
    parser.add_argument("--kind", choices=["random", "topics"], default="random")
    given = parser.parse_args()
    table, facts = [], {}
    for rows in given.rows:
        with tempfile.TemporaryDirectory(dir=os.environ.get("MAV_SCRATCH")) as folder:
            embeds, began = Folder(folder), os.getloadavg()[0]
            names, pairs = draw(embeds, rows, given.kind)
            seconds, groups, memory = search(embeds, names, embeds.child("work"))
            dropped = [SHARD * number + read_array(groups, f"{name}.npy")["place"] for number, name in enumerate(names)]
            hits = np.isin(pairs, np.concatenate(dropped)).any(axis=1)
            near = np.ones(len(pairs), bool)
            for number, (one, other) in enumerate(pairs[:2000].tolist()):
                both = [read_row(embeds, names, row) for row in (one, other)]
                near[number] = both[0] @ both[1] >= THRESHOLD
            recall, wrong = hits[near].mean(), sum(map(len, dropped)) - hits.sum()
            whole = exhaustive(embeds, names, rows)
        total = sum(taken for what, taken in seconds.items() if what != "clock")
        table.append(cost(f"{rows:,} {given.kind} rows", total, whole, "all with all, predicted", "seconds"))
        facts[f"{rows}"] = {"recall": round(float(recall), 4), "wrong": int(wrong), "MB": round(memory), **seconds,
                            "load": [began, os.getloadavg()[0]]}  # fmt: skip
        print(f"{rows:,}: {total:.0f} s, {facts[f'{rows}']}", flush=True)
    report("dedup", table[::-1], **facts)


def read_row(embeds: Folder, names: tuple[str, ...], row: int) -> np.ndarray:
    array = np.load(embeds.path(f"{names[row // SHARD]}.image.npy"), mmap_mode="r")
    return unit_rows(np.array(array[row % SHARD : row % SHARD + 1]))[0]


if __name__ == "__main__":
    main()
