"""Executions of shards, and where they run: fresh Ray tasks, or a pool of actors.

Ray's own retries are off (`max_retries=0`): they are invisible, and endless after an out-of-memory kill. What fails is the walk's business
(`flows.engine.shard_map`).
"""

from __future__ import annotations

import errno
import itertools
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from flows.engine.markers import Markers
from mav.errors import UserError

if TYPE_CHECKING:
    from mav.data.shards import ShardOutput

CANCEL_SECONDS = 1.0  # to take back what waits in an actor
ROWS = (
    "rows_in",
    "rows_out",
    "dropped",
    "failed",
)  # what the driver hears of a shard; words and histograms are in its marker

Work = Callable[[str], "ShardOutput"]


@dataclass(frozen=True)
class Flown:
    """What comes back from one execution: its rows, bytes and time, or why it failed. `stop`: an error that trying again cannot mend."""

    counts: dict[str, Any] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    problem: str = ""
    stop: Exception | None = None

    def packed(self) -> Any:
        """Success as plain values, which travel in half the time an object takes."""
        return self if self.problem or self.stop else [self.counts, self.bytes, self.seconds]

    @classmethod
    def unpacked(cls, answer: Any) -> Flown:
        return answer if isinstance(answer, Flown) else cls(*answer)


@dataclass(frozen=True)
class Mission:
    """What all executions of a walk have in common; a worker gets it once."""

    work: Work
    markers: Markers
    fsync: bool


def run_shard(mission: Mission, name: str, floor: float) -> Flown:
    """In the worker: makes one shard and commits it.

    A shard under the floor is not committed but tried again: its network may have gone in the middle, with its driver, say.
    """
    began = time.monotonic()
    try:
        output = mission.work(name)
        if below_floor(output.counts, floor):
            rows = f"only {output.counts['rows_out']} of {output.counts['rows_in']} rows came through"
            return Flown(problem=f"{rows} ({reasons(output.counts)})")
        size = mission.markers.commit(name, output.counts, output.files, fsync=mission.fsync)
    except Exception as error:
        if isinstance(error, UserError) or getattr(error, "errno", None) == errno.ENOSPC:
            return Flown(stop=error)
        return Flown(problem=sentence(error))
    told = {key: output.counts[key] for key in ROWS if key in output.counts}
    return Flown(told, size, time.monotonic() - began)


def below_floor(counts: dict[str, Any], floor: float) -> bool:
    """Whether fewer than `floor` of the rows that were not dropped on purpose came through."""
    wanted = counts.get("rows_in", 0) - sum(counts.get("dropped", {}).values())
    return bool(counts.get("rows_out", 0) < floor * wanted)


def reasons(counts: dict[str, Any]) -> str:
    """Why rows failed, the most frequent reason first."""
    failed = sorted(counts.get("failed", {}).items(), key=lambda item: -item[1])
    return "failed: " + (", ".join(f"{reason} {n:,}" for reason, n in failed) or "none")


def sentence(error: BaseException) -> str:
    """An error's kind and first line."""
    error = getattr(error, "cause", None) or error  # Ray puts its own lines before those of the error it brings
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


class Carrier(Protocol):
    """Where executions run: fresh tasks, or a pool of actors."""

    def begun(self) -> list[Any]: ...

    def submit(self, name: str, floor: float, short: bool) -> Any: ...

    def landed(self, reference: Any, lost: bool) -> None: ...

    def end(self, reference: Any) -> None: ...

    def elsewhere(self, name: str) -> bool: ...

    def grow(self, slots: int) -> None: ...

    def close(self, references: Sequence[Any]) -> None: ...


class Tasks:
    """One Ray task an execution. The mission goes with the function, which a worker loads once, not with every call."""

    def __init__(self, mission: Mission, name: str, cpus: float, gpus: float) -> None:
        import ray

        def shard(call: list[Any]) -> Any:
            return run_shard(mission, *call).packed()

        self._stage = name
        asks = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        self._run, self._empty = asks(shard), asks(lambda: None).options(name=f"{name} begins")

    def begun(self) -> list[Any]:
        """References, one of which is there as soon as processors are: an empty task that asks for as many."""
        return [self._empty.remote()]

    def submit(self, name: str, floor: float, short: bool) -> Any:
        """A name of its own costs a task a tenth of a millisecond: nobody watches one that is over in less than a few."""
        named = self._run if short else self._run.options(name=f"{self._stage} {name}")
        return named.remote([name, floor])  # one argument: each is packed on its own

    def landed(self, reference: Any, lost: bool) -> None:
        """Nothing is held for a task."""

    def end(self, reference: Any) -> None:
        """Kills the process of an execution, also one that hangs; its reference then lands."""
        import ray

        ray.cancel(reference, force=True)

    def elsewhere(self, name: str) -> bool:
        """Whether a second copy of a shard would have a process of its own."""
        return True

    def grow(self, slots: int) -> None:
        """Ray starts as many processes as there are tasks and processors."""

    def close(self, references: Sequence[Any]) -> None:
        for reference in references:
            self.end(reference)


class ShardActor:
    """A process that lives for the whole walk, so that what the work loads once a process is loaded once."""

    def __init__(self, mission: Mission) -> None:
        self.mission = mission

    def run(self, name: str, floor: float) -> Any:
        return run_shard(self.mission, name, floor).packed()


class Actors:
    """As many actors as fit, also when the cluster has grown; each has the next execution waiting while it works. A dead one is replaced;
    one for which there is no processor yet gets no work.
    """

    def __init__(self, mission: Mission, name: str, cpus: float, gpus: float, slots: int, shards: int) -> None:
        import ray

        actor: Any = ray.remote(ShardActor)
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        shared, numbers = ray.put(mission), itertools.count()
        walk = uuid.uuid4().hex[:8]  # an actor's name is taken for as long as it lives, also by another walk
        self._make = lambda: actor.options(name=f"{name} {walk}-{next(numbers)}", **options).remote(shared)
        self._name, self._most = name, shards
        self._load: Counter[Any] = Counter()
        self._where: dict[Any, tuple[Any, str]] = {}  # reference -> actor, shard
        self._coming: dict[Any, Any] = {}  # reference that is there as soon as the actor is -> actor
        self.grow(slots)

    def begun(self) -> list[Any]:
        return list(self._coming)

    def submit(self, name: str, floor: float, short: bool) -> Any:
        actor = min(self._others(name) or self._load, key=self._load.__getitem__)
        reference = actor.run.options(name=f"{self._name} {name}").remote(name, floor)
        self._where[reference] = actor, name
        self._load[actor] += 1
        return reference

    def elsewhere(self, name: str) -> bool:
        return bool(self._others(name))

    def _others(self, name: str) -> list[Any]:
        """Actors that are there and have not been given this shard."""
        import ray

        if self._coming:
            for arrived in ray.wait(list(self._coming), num_returns=len(self._coming), timeout=0)[0]:
                del self._coming[arrived]
        without = {actor for actor, given in self._where.values() if given == name} | set(self._coming.values())
        return [actor for actor in self._load if actor not in without]

    def landed(self, reference: Any, lost: bool) -> None:
        actor, _ = self._where.pop(reference)
        if actor in self._load:
            self._load[actor] -= 1
            if lost:
                del self._load[actor]
                self._add()

    def end(self, reference: Any) -> None:
        """Takes an execution back that has not begun; else kills its actor, and what else that was given comes back as lost."""
        import ray

        ray.cancel(reference)
        if not ray.wait([reference], timeout=CANCEL_SECONDS)[0]:
            ray.kill(self._where[reference][0])

    def grow(self, slots: int) -> None:
        while len(self._load) < min(slots, self._most):
            self._add()

    def _add(self) -> None:
        actor = self._make()
        self._load[actor] = 0
        self._coming[actor.__ray_ready__.remote()] = actor

    def close(self, references: Sequence[Any]) -> None:
        import ray

        for actor in self._load:
            ray.kill(actor)
