"""`make bench-shards`: the shard walk's own cost: no-op shards, one Ray task each, beside plain windowed Ray tasks.

The peer submits tasks that return at once and keeps a window of them in flight: nothing is retried, written or
remembered. Ours commits each shard with a marker and writes the ledger at the end, on a file system in memory and
without fsync, as the peer has nothing to bring to a disk; a tenth of the shards on this machine's disk stands beside.
The driver's memory is measured at a tenth of the shards and at all of them, for the peer as well; the resume scan, and
the opening of the artifact, on a finished stage of 230,000 shards with two files each. Every measure in a process of
its own, ours and the peer in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from harness import Row, in_turn, rate, report

from flows.services.environment import configure_environment

WINDOW = 64  # of the peer: with more it is no faster


@dataclass(frozen=True)
class NoWork:
    # The class of the answer is imported in the worker only.
    def __call__(self, name: str):  # type: ignore[no-untyped-def]
        from mav.data.shards import ShardOutput

        return ShardOutput({"rows_in": 1, "rows_out": 1, "dropped": {}, "failed": {}})


def memory_mb() -> float:
    """This process's resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def plain(count: int) -> dict[str, float]:
    """Windowed Ray tasks."""
    import logging

    import ray

    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    task = ray.remote(num_cpus=1, max_retries=0)(lambda name: name)
    ray.get([task.remote("") for _ in range(100)])  # the workers are there
    began, waiting, sent, got = time.monotonic(), [], 0, 0
    while got < count:
        while sent < count and len(waiting) < WINDOW:
            waiting.append(task.remote(f"{sent:06d}"))
            sent += 1
        ready, waiting = ray.wait(waiting, num_returns=1)
        got += len(ray.get(ready))
    return {"rate": count / (time.monotonic() - began), "memory_mb": memory_mb()}


def walk(count: int, folder: str) -> dict[str, float]:
    """The shard walk, Ray running before it begins."""
    from flows.engine.markers import Markers
    from flows.engine.run import Job, Run
    from flows.engine.shard_map import shard_map
    from flows.engine.stage import Graph, Outcome, Stage
    from flows.engine.store import Store
    from flows.services.terminal import Terminal
    from mav.recipes.reader import load_recipe

    recipe = load_recipe("tiny", ["cluster.cpus=2", "cluster.dashboard=false", "cluster.fsync=false"])

    def names(count: int) -> Iterator[str]:  # which the walk keeps as it will, and nobody else does
        return (f"{number:06d}" for number in range(count))

    with ExitStack() as services:
        run = Run(recipe, Store(folder), Terminal(), services)
        node = Stage("walk", 1, (), lambda job: Outcome(), "walk")(Graph(recipe))
        job = Job(node, run, run.store.artifact(node), run.store.work(node))
        run.ray()
        ready = Job(node, run, run.store.root.child("ready/out"), run.store.root.child("ready/work"))
        shard_map(ready, NoWork(), names(100))  # the workers are there
        began = time.monotonic()
        outcome = shard_map(job, NoWork(), names(count))
        seconds, memory = time.monotonic() - began, memory_mb()
        if outcome.counts["rows_out"] != count or len(Markers.of(job).committed(names(count))) != count:
            raise SystemExit("shards are missing")
    return {"rate": count / seconds, "memory_mb": memory}


def resume(count: int, folder: str) -> dict[str, float]:
    """The scan of a finished stage: every shard has a marker and two files in a listing, and the ledger is there; then
    its artifact."""
    from flows.engine.markers import Markers
    from mav.storage import MANIFEST, Artifact, Folder

    out, work = Folder(f"{folder}/out"), Folder(f"{folder}/markers")
    os.makedirs(out.root)
    os.makedirs(work.root)
    names = [f"{number:06d}" for number in range(count)]
    counts = {
        "rows_in": 10_000,
        "rows_out": 8_000,
        "dropped": {"opted_out": 7},
        "failed": {"dns": 993, "http_404": 1000},
    }
    for name in names:
        files = {f"{name}.{kind}": {"bytes": 0, "sha256": "0" * 64} for kind in ("tar", "parquet")}
        for file in files:
            Path(out.root, file).touch()
        Path(work.root, f"{name}.json").write_text(json.dumps({"shard": name, "counts": counts, "files": files}))
    markers = Markers(out, work)
    seconds = {}
    for kind in ("markers", "ledger"):
        began = time.monotonic()
        done = markers.committed(set(names))
        seconds[kind] = time.monotonic() - began
        if len(done) != count:
            raise SystemExit(f"{len(done)} of {count} shards found")
        if kind == "markers":
            markers.compact(names)
    Artifact.publish(out, stage="walk", version=1, fingerprint="f", recipe="r", config={}, inputs={})
    began = time.monotonic()
    Artifact.open(out)
    opened = time.monotonic() - began
    return {
        "from_markers": seconds["markers"],
        "from_ledger": seconds["ledger"],
        "artifact_opened": opened,
        "manifest_kb": out.size(MANIFEST) / 1e3,
        "memory_mb": memory_mb(),
    }


def apart(*arguments: str, where: str | None = None) -> dict[str, float]:
    """One measure in a process of its own, its files under `where`."""
    with tempfile.TemporaryDirectory(prefix="bench-shards-", dir=where) as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--measure", *arguments, folder], stdout=subprocess.PIPE, text=True, check=True
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {' '.join(arguments)}: {found}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--finished", type=int, default=230_000, help="shards of the stage whose resume is timed")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        configure_environment()  # before Ray is imported
        kind, count, folder = options.measure
        found = plain(int(count)) if kind == "plain" else (walk if kind == "walk" else resume)(int(count), folder)
        print(json.dumps(found))
        return
    memory: dict[str, list[float]] = {"plain": [], "walk": []}
    memory_disk = (
        "/dev/shm" if os.path.isdir("/dev/shm") else None
    )  # the walk's cost, not the disk's; the disk's stands beside

    def measured(kind: str) -> float:
        found = apart(kind, str(options.shards), where=memory_disk)
        memory[kind].append(found["memory_mb"])
        return found["rate"]

    tenth = {kind: apart(kind, str(options.shards // 10), where=memory_disk)["memory_mb"] for kind in ("plain", "walk")}
    disk = apart("walk", str(options.shards // 10))
    rates = in_turn({"Ray tasks": lambda: measured("plain"), "ours": lambda: measured("walk")}, options.rounds)
    scan = apart("resume", str(options.finished), where=memory_disk)
    rows = [
        rate("walk", rates["ours"], rates["Ray tasks"], "windowed Ray tasks", "shards/s"),
        rate(
            "walk, markers on this machine's disk", disk["rate"], rates["Ray tasks"], "windowed Ray tasks", "shards/s"
        ),
        Row(
            "driver memory",
            max(memory["walk"]),
            max(memory["plain"]),
            "windowed Ray tasks",
            max(memory["plain"]) / max(memory["walk"]),
            "MB",
        ),
    ]
    growth = {
        kind: {f"{options.shards // 10} shards": tenth[kind], f"{options.shards} shards": max(memory[kind])}
        for kind in tenth
    }
    report(
        "shards", rows, shards=options.shards, driver_memory_mb=growth, finished_shards=options.finished, resume=scan
    )


if __name__ == "__main__":
    main()
