"""The shard protocol under thousands of random fault schedules, in process: files, markers, ledger, manifest, lease,
two writers.

The file system is a store in memory whose calls fail: before they took effect, after it (the answer was lost), or
because the process is gone, from when on every call of it fails. In the middle of a call another writer may run to its
end, whatever that is: so two writers interleave without threads, and every schedule can be repeated. What runs is the
product: `build`, `shard_map`, `Markers`, `Lease`, `Artifact`; only Ray is replaced, by a loop.
"""

import os
import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from fallible import WORLD, Fallible, Killed, Writer
from fsspec import register_implementation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.engine import build as building
from flows.engine import lease, markers, shard_map
from flows.engine import run as running
from flows.engine.build import build
from flows.engine.run import Job, Run
from flows.engine.shard_task import ShardTask
from flows.engine.stage import Graph, Node, Stage
from flows.engine.store import Store
from flows.services.terminal import Terminal
from mav.data.shards import ShardOutput
from mav.errors import UserError
from mav.recipes import Recipe
from mav.storage import Folder

SHARDS = [f"{i:05d}" for i in range(3)]
SCHEDULES = int(os.environ.get("MAV_SCHEDULES", "1000"))
RESUMES = 40


class Loop:
    """Stands in for the pass on Ray: the same attempts, retries and accounts, one after the other."""

    def __init__(self, job: Job, work: Any, markers: Any, todo: Sequence[str], done: int, *_: Any) -> None:
        self.task = ShardTask(work, markers, fsync=False)
        self.todo, self.done, self.attempts = todo, done, job.recipe.cluster.attempts
        self.job = job

    def run(self) -> dict[str, str]:
        quarantined = {}
        for name in self.todo:
            for _ in range(self.attempts):
                result = self.task.attempt(name, 0.0)
                if result.fatal is not None:
                    raise result.fatal
                if not result.problem:
                    self.done += 1
                    break
            else:
                quarantined[name] = result.problem
            self.job.report(self.done, len(self.todo))
        return quarantined


@dataclass(frozen=True)
class Work:
    """Two files a shard, the same bytes whoever writes them."""

    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        self.out.write_bytes(f"{name}.tar", name.encode() * 7)
        self.out.write_bytes(f"{name}.txt", name.encode())
        return ShardOutput(
            {"rows_in": 3, "rows_out": 2, "dropped": {"nsfw": 1}, "failed": {}}, (f"{name}.tar", f"{name}.txt")
        )


class Quiet(Terminal):
    """Shows nothing."""

    def start(self, *_: Any) -> None: ...
    def progress(self, *_: Any, **__: Any) -> None: ...
    def end(self, *_: Any) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def in_process() -> Iterator[None]:
    """Ray is a loop; a writer is a process of this machine, known by its name and gone when it is dead."""
    register_implementation("fallible", Fallible, clobber=True)

    def process(pid: int | None = None) -> str:
        who = WORLD.stack[-1] if pid is None and WORLD.stack else WORLD.writers.get(str(pid))
        return f"{who.name}@0" if who and not who.dead else ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_map, "_ShardPass", Loop)
        patch.setattr(lease, "process", process)
        for module in (lease, running):
            patch.setattr(
                module, "threading", SimpleNamespace(Thread=_NoThread, Event=threading.Event, Lock=threading.Lock)
            )
        patch.setattr(markers, "ThreadPoolExecutor", _NoPool)
        patch.setattr(building, "software", dict)
        yield


class _NoThread:
    """Beats are calls too, but not at times that no seed decides."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def start(self) -> None: ...
    def join(self) -> None: ...


class _NoPool:
    """One read after the other."""

    def __init__(self, *_: Any) -> None: ...
    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None: ...
    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        return map(function, items)


def node_of(recipe: Recipe) -> Node:
    return Stage("walk", 1, (), lambda job: shard_map.shard_map(job, Work(job.out), SHARDS), "walk")(Graph(recipe))


def run(writer: Writer, node: Node, recipe: Recipe, store: Store) -> str:
    """One attempt of a writer to build: "done", or how it ended."""
    WORLD.stack.append(writer)
    try:
        build(node, Run(recipe, store, Quiet(), ExitStack()))
        return "done"
    except Killed:
        return "killed"
    except UserError as error:
        return "refused" if "Another run" in str(error) else f"failed: {error}"
    except OSError as error:
        return f"failed: {error}"
    finally:
        WORLD.stack.pop()
        writer.dead = True  # its process ends, whatever it left


def schedule(rng: random.Random, name: str) -> Writer:
    """A writer with its fate: from a calm life to one fault in three calls."""
    rate = rng.choice((0.0, 0.02, 0.05, 0.1, 0.3))
    kinds = ("fail", "fail after", "kill", "kill after", "meanwhile")
    fate = {call: rng.choice(kinds) for call in range(1, 200) if rng.random() < rate}
    return Writer(name, fate)


def damage(rng: random.Random) -> None:
    """Between two runs a shard's file or marker is lost or cut short."""
    name = rng.choice(
        [name for name in sorted(WORLD.files) if "/markers/" in name or name.endswith((".tar", ".txt"))] or [""]
    )
    if rng.random() < 0.5:
        WORLD.files.pop(name, None)
    elif name:
        WORLD.files[name] = WORLD.files[name][:-1]


@pytest.fixture(scope="module")
def calm(small_recipe: Recipe, in_process: None) -> tuple[str, dict[str, Any]]:
    """Content and counts of an undisturbed run."""
    WORLD.__init__()  # type: ignore[misc]
    store, node = Store(f"fallible://{uuid.uuid4().hex}"), node_of(small_recipe)
    assert run(Writer("1"), node, small_recipe, store) == "done"
    artifact = store.find(node)
    assert artifact
    return artifact.manifest.content, artifact.manifest.counts


@settings(
    max_examples=SCHEDULES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(seed=st.integers(0, 2**48))
def test_any_schedule_of_faults_ends_in_the_same_bytes(
    small_recipe: Recipe, calm: tuple[str, dict[str, Any]], seed: int
) -> None:
    rng = random.Random(seed)
    WORLD.__init__()  # type: ignore[misc]
    store, node = Store(f"fallible://{seed}"), node_of(small_recipe)
    names = iter(range(1, 10_000))
    outcomes: list[str] = []

    def writer(calm_life: bool = False) -> Writer:
        made = schedule(rng, str(next(names)))
        made.fate = {} if calm_life else made.fate
        WORLD.writers[made.name] = made
        return made

    def other() -> None:
        outcomes.append("other " + run(writer(), node, small_recipe, store))

    for attempt in range(RESUMES):
        mine = writer(calm_life=attempt > RESUMES // 2)
        mine.meanwhile = other
        outcomes.append(run(mine, node, small_recipe, store))
        if outcomes[-1] == "done":
            break
        if rng.random() < 0.2 and not store.find(node):
            damage(rng)
    WORLD.stack.clear()
    assert outcomes[-1] == "done", outcomes
    artifact = store.find(node)
    assert artifact, "nothing is lost"
    assert list(artifact.problems()) == [], outcomes
    assert (artifact.manifest.content, artifact.manifest.counts) == calm, outcomes
    assert build(node, Run(small_recipe, store, Quiet(), ExitStack())).manifest == artifact.manifest, (
        "it is not built twice"
    )
