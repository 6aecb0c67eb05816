"""What orchestration costs: the whole graph with stages that do nothing, through Prefect and Ray, beside its functions
in a plain loop.

Ray and a Prefect server (sqlite, loopback) are up before either is timed. `overhead_seconds` is ours minus the loop's.
Then: the memory of every process we start, idle.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from harness import cost, in_turn, report

from flows.engine.execute import execute
from flows.engine.function import _call, run_on_ray
from flows.engine.run import Job, Run
from flows.engine.stage import Graph, Outcome
from flows.engine.store import Store
from flows.make_a_video import make_a_video
from flows.services.environment import configure_environment
from flows.services.prefect_artifacts import stage_artifacts
from flows.services.prefect_server import prefect_server
from flows.services.ray_cluster import ray_cluster
from flows.services.terminal import Terminal
from mav.recipes import Recipe
from mav.recipes.reader import load_recipe


class Silent:
    """Reports nothing."""

    def begin(self) -> None: ...


def nothing(report: Any) -> None:
    """A stage's work, without the work."""


def idle_stage(job: Job) -> Outcome:
    run_on_ray(job, nothing)
    return Outcome()


def empty_graph(recipe: Recipe) -> Graph:
    """The recipe's graph with every body exchanged for one that does nothing on Ray."""
    graph = Graph(recipe)
    for node in make_a_video(recipe).nodes.values():
        graph.add(dataclasses.replace(node.stage, body=idle_stage), tuple(graph.nodes[up.name] for up in node.inputs))
    return graph


def ours(recipe: Recipe) -> float:
    """Seconds of one flow run over the whole graph, from nothing in storage to every artifact published."""
    from prefect import flow

    with tempfile.TemporaryDirectory() as folder, ExitStack() as services, Terminal() as terminal:
        graph = empty_graph(recipe)

        @flow(name="bench-orchestration", validate_parameters=False)
        def bench() -> int:
            run = Run(recipe, Store(folder), terminal, services)
            return len(execute(graph, run, graph.nodes.values(), (), stage_artifacts))

        began = time.perf_counter()
        assert bench() == len(graph.nodes)
        return time.perf_counter() - began


def plain_loop(stages: int) -> float:
    """Seconds of the same functions on Ray, one after the other."""
    import ray

    began = time.perf_counter()
    task = ray.remote(_call).options(num_cpus=1, max_retries=0)
    for _ in range(stages):
        ray.get(task.remote(1, nothing, Silent()))
    return time.perf_counter() - began


def below(parent: int) -> list[int]:
    """Process ids of all descendants."""
    children = [
        int(pid)
        for task in os.listdir(f"/proc/{parent}/task")
        for pid in Path(f"/proc/{parent}/task/{task}/children").read_text().split()
    ]
    return children + [pid for child in children for pid in below(child)]


def unique_mb(pid: int) -> float:
    """Memory that no other process shares, MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1e3


def memory() -> dict[str, float]:
    """Unique memory, MB, of each kind of process below this one."""
    rules = {
        "prefect worker": "Prefect worker", "prefect server": "Prefect server", "uvicorn": "Prefect server",
        "gcs_server": "Ray GCS",
        "dashboard": "Ray dashboard", "raylet/raylet": "Ray raylet", "agent": "Ray agents", "monitor": "Ray monitors",
        "ray::": "Ray workers",
    }  # fmt: skip
    kinds: dict[str, float] = {}
    for pid in below(os.getpid()):
        with suppress(FileNotFoundError, ProcessLookupError):
            line = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").lower()
            kind = next((kind for word, kind in rules.items() if word in line), "other")
            kinds[kind] = round(kinds.get(kind, 0.0) + unique_mb(pid), 1)
    return dict(sorted(kinds.items()))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--idle", type=float, default=20.0, help="seconds to wait before memory is read")
    chosen = options.parse_args()
    configure_environment()
    os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
    recipe = load_recipe("tiny")
    stages = len(make_a_video(recipe).nodes)
    with tempfile.TemporaryDirectory() as home, ExitStack() as services:
        os.environ["PREFECT_HOME"] = home
        services.enter_context(ray_cluster(recipe.cluster))
        services.enter_context(prefect_server())
        plain_loop(2)  # workers are up
        medians = in_turn({"ours": lambda: ours(recipe), "plain loop": lambda: plain_loop(stages)}, chosen.rounds)
        subprocess.run(
            [sys.executable, "-m", "prefect", "work-pool", "create", "bench", "--type", "process"],
            check=True,
            capture_output=True,
        )
        worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "bench"], stdout=subprocess.DEVNULL
        )
        time.sleep(chosen.idle)
        idle = memory()
        worker.terminate()
        worker.wait()
    overhead = medians["ours"] - medians["plain loop"]
    for kind, used in idle.items():
        print(f"{kind:<16} {used:8.1f} MB")
    print(f"overhead: {overhead:.1f} s for {stages} stages, {overhead / stages:.2f} s a stage")
    headline = cost(
        f"{stages} stages that do nothing", medians["ours"], medians["plain loop"], "plain loop of Ray tasks", "seconds"
    )
    report("orchestration", [headline], overhead_seconds=round(overhead, 2), stages=stages, idle_memory_mb=idle)


if __name__ == "__main__":
    main()
