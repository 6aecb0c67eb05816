"""What runs under the schedules of faults: the product's `build`, `shard_map`, `Markers`, `Lease`, `Artifact` and
`Checkpoints`. Only Ray is replaced, by a loop, and threads that beat are left out, since no seed decides their times.
"""

import functools
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fallible import WORLD, Fallible, Killed, Writer
from fsspec import register_implementation

from flows.engine import build as building
from flows.engine import lease, markers, shard_map
from flows.engine import run as running
from flows.engine.run import Job, Run
from flows.engine.shard_task import ShardTask
from flows.engine.stage import Graph, Node, Stage
from flows.engine.store import Store
from flows.services import heartbeat
from flows.services.terminal import Terminal
from mav.data.shards import ShardOutput
from mav.errors import UserError
from mav.recipes import Recipe
from mav.storage import Folder, Manifest
from mav.training.checkpoint import Checkpoints

SHARDS = [f"{i:05d}" for i in range(3)]
KINDS = ("fail", "fail after", "kill", "kill after", "meanwhile", "full", "slow", "stale", "clock")
RESUMES = 40


@dataclass
class Account:
    """What came of some schedules: faults that struck, by kind, and what must stay 0."""

    schedules: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    lost: int = 0  # a finished artifact or checkpoint that is not there, or a row that is not
    differing: int = 0
    doubled: int = 0  # built twice
    late: int = 0  # changes by a run that had lost its lease
    problems: list[str] = field(default_factory=list)

    def add(self, seed: int, *, lost: bool, differing: bool, doubled: bool, outcomes: Sequence[str]) -> None:
        """Adds a schedule that has come to its end."""
        self.schedules += 1
        self.struck += WORLD.struck
        self.lost, self.differing, self.doubled = self.lost + lost, self.differing + differing, self.doubled + doubled
        self.late += len(WORLD.late)
        if lost or differing or doubled or WORLD.late:
            self.problems.append(f"seed {seed}: {', '.join(outcomes)}; {WORLD.late[:2]}")


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
    def say(self, *_: Any) -> None: ...


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


@contextmanager
def in_process() -> Iterator[None]:
    """Ray is a loop; a writer is a process, known by its name and gone when it is dead, on one of two machines."""
    register_implementation("fallible", Fallible, clobber=True)

    def process(pid: int | None = None) -> str:
        who = WORLD.stack[-1] if pid is None and WORLD.stack else WORLD.writers.get(str(pid))
        return f"{who.name}@0" if who and not who.dead else ""

    clocks = SimpleNamespace(time=lambda: WORLD.time(), monotonic=lambda: WORLD.monotonic(), sleep=WORLD.sleep)
    threads = SimpleNamespace(Thread=_NoThread, Event=threading.Event, Lock=threading.Lock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_map, "_ShardPass", Loop)
        patch.setattr(lease, "process", process)
        patch.setattr(lease, "uuid", SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=WORLD.token())))
        patch.setattr(lease, "machine", lambda: WORLD.stack[-1].machine if WORLD.stack else "here")
        patch.setattr(markers, "ThreadPoolExecutor", _NoPool)
        patch.setattr(building, "software", dict)
        for module in (lease, running):
            patch.setattr(module, "threading", threads)
        for module in (lease, heartbeat, building):
            patch.setattr(module, "time", clocks)
        yield


def node_of(recipe: Recipe) -> Node:
    return Stage("walk", 1, (), lambda job: shard_map.shard_map(job, Work(job.out), SHARDS), "walk")(Graph(recipe))


def attempt(writer: Writer, work: Callable[[], None]) -> str:
    """One life of a writer: "done", or how it ended."""
    WORLD.stack.append(writer)
    try:
        work()
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


def schedule(rng: random.Random, name: str, calm: bool) -> Writer:
    """A writer with its fate: from a calm life to one fault in three calls."""
    rate = rng.choice((0.0, 0.02, 0.05, 0.1, 0.3))
    fate = {call: rng.choice(KINDS) for call in range(1, 200) if rng.random() < rate}
    made = Writer(name, {} if calm else fate, machine=rng.choice(("here", "there")))
    WORLD.writers[name] = made
    return made


def lives(rng: random.Random, work: Callable[[], None], between: Callable[[], None] = lambda: None) -> list[str]:
    """Runs the work again and again until it is done, and others in the middle of it; returns how each life ended."""
    outcomes: list[str] = []
    names = iter(range(1, 10_000))

    def other() -> None:
        outcomes.append("other " + attempt(schedule(rng, str(next(names)), calm=False), work))

    for number in range(RESUMES):
        mine = schedule(rng, str(next(names)), calm=number > RESUMES // 2)
        mine.meanwhile = other
        outcomes.append(attempt(mine, work))
        if outcomes[-1] == "done":
            break
        between()
    WORLD.stack.clear()
    return outcomes


# ------------------------------------------------------------------------------------------------------------- a stage


@functools.cache
def undisturbed(recipe: Recipe) -> Manifest:
    WORLD.__init__()  # type: ignore[misc]
    return building.build(node_of(recipe), Run(recipe, Store("fallible://calm"), Quiet(), ExitStack())).manifest


def stage_under(seed: int, recipe: Recipe, account: Account) -> None:
    """One schedule over a stage of three shards."""
    rng, node, calm = random.Random(seed), node_of(recipe), undisturbed(recipe)
    WORLD.__init__()  # type: ignore[misc]
    store = Store(f"fallible://{seed}")

    def again() -> Any:
        return building.build(node, Run(recipe, store, Quiet(), ExitStack())).manifest

    def damage() -> None:
        """Between two runs a shard's file or marker is lost or cut short."""
        if rng.random() > 0.2 or store.find(node):
            return
        found = [name for name in sorted(WORLD.files) if "/markers/" in name or name.endswith((".tar", ".txt"))]
        name = rng.choice(found or [""])
        if rng.random() < 0.5:
            WORLD.files.pop(name, None)
        elif name:
            WORLD.files[name] = WORLD.files[name][:-1]

    outcomes = lives(rng, again, damage)
    artifact = store.find(node)
    whole = artifact is not None and outcomes[-1] == "done" and not list(artifact.problems())
    now = artifact.manifest if artifact else None
    account.add(
        seed,
        lost=not whole,
        differing=now is not None and (now.content, now.counts) != (calm.content, calm.counts),
        doubled=now is not None and again() != now,
        outcomes=outcomes,
    )


# ---------------------------------------------------------------------------------------------------------- a training

STEPS, EVERY = 6, 2


def training_under(seed: int, account: Account) -> None:
    """One schedule over a training of six steps that saves after every second and goes on from what it saved."""
    rng = random.Random(seed)
    WORLD.__init__()  # type: ignore[misc]
    work = Folder(f"fallible://{seed}/work")
    ends: list[list[float]] = []

    def step(weights: torch.Tensor, number: int) -> None:
        weights.mul_(0.5).add_(number)

    def again() -> None:
        with lease.exclusive(work, "train") as held:
            checkpoints = Checkpoints(held.fenced(work).child("checkpoints"), "id", keep=1)
            tensors = {"weights": torch.ones(4)}
            facts = checkpoints.restore(tensors)
            for number in range(facts["steps"] if facts else 0, STEPS):
                step(tensors["weights"], number)
                if (number + 1) % EVERY == 0:
                    checkpoints.save(number + 1, tensors, {"steps": number + 1}, best=EVERY)
                    checkpoints.wait()
            held.beat()
            if not checkpoints.try_load(EVERY, {"weights": torch.ones(4)}):
                raise AssertionError("the best checkpoint is gone")
            ends.append(tensors["weights"].tolist())

    outcomes = lives(rng, again)
    weights = torch.ones(4)
    for number in range(STEPS):
        step(weights, number)
    kept = Checkpoints(work.child("checkpoints"), "id", keep=1).finished()
    account.add(
        seed,
        lost=outcomes[-1] != "done" or not {EVERY, STEPS} <= {*kept},
        differing=any(end != weights.tolist() for end in ends),
        doubled=False,
        outcomes=outcomes,
    )


def table(account: Account) -> str:
    """The faults that struck, and what came of them."""
    width = max(map(len, account.struck), default=0)
    lines = [f"{kind:{width}}  {count:7,}" for kind, count in sorted(account.struck.items())]
    lines.append(f"{'all':{width}}  {account.struck.total():7,}  in {account.schedules:,} schedules")
    zeros = f"lost {account.lost}, doubled {account.doubled}, differing {account.differing}, late writes {account.late}"
    return "\n".join([*lines, zeros, *account.problems[:5]])


SCHEDULES = int(os.environ.get("MAV_SCHEDULES", "300"))
TRAININGS = SCHEDULES // 40
