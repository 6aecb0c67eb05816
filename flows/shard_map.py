"""Walks the shards of one stage on Ray: a bounded window, every shard accounted for, nothing done twice.

A shard is committed when its marker file exists, written by the worker after the shard's own files (`flows.markers`). Ray's own
retries are off (`max_retries=0`): they are invisible, and endless after an out-of-memory kill. Here a failed shard is tried again up
to `cluster.attempts` times, then set aside and reported; a straggler gets one second copy, and whichever is first ends the other. That is
safe because files appear whole, a marker names the bytes of one execution, and the two are compared once both executions have ended.
The driver keeps names and a window of flights, nothing that grows with the shards' contents.
"""

from __future__ import annotations

import errno
import itertools
import statistics
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from flows.markers import Markers
from flows.metrics import Tally
from flows.room import Room
from flows.stage import Job, Outcome
from mav.errors import UserError
from mav.ledger import read_ledger

if TYPE_CHECKING:
    from mav.data.shards import ShardOutput

STRAGGLER_FACTOR = 3.0
STRAGGLER_FLOOR_SECONDS = 60.0
SHORT_SECONDS = 0.1  # shards shorter than this are handed out many at a time, or the way to the worker would be the work
SHORT_WINDOW = 16  # times the usual window
REPORT_SECONDS = 0.5
ROWS = ("rows_in", "rows_out", "dropped", "failed")  # what the driver hears of a shard; words and histograms are in its marker

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
        return Flown(problem=_sentence(error))
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


def _sentence(error: BaseException) -> str:
    error = getattr(error, "cause", None) or error  # Ray puts its own lines before those of the error it brings
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def shard_map(
    job: Job,
    work: Work,
    names: Sequence[str],
    *,
    success_floor: float = 0.0,
    shard_floor: float = 0.0,
    gpus: float = 0.0,
    actors: bool = False,
) -> Outcome:
    """Runs `work(name)` for every name on Ray and returns summed counts; the ledger has the digests of all files.

    work: a picklable callable that writes into `job.out`. success_floor: share of the stage's rows that must come through; a shard
    under it is tried again before it is accepted. shard_floor: share under which a shard is never accepted. actors: run in
    long-lived processes that keep what they loaded (a network, say). Raises UserError when shards fail for good or the stage stays under
    its floor; finished shards are kept, so that the next run does the others only.
    """
    names = sorted(names)
    if any(name == after for name, after in itertools.pairwise(names)):
        raise ValueError("shard names repeat")
    markers = Markers.of(job)
    committed = markers.committed(names)
    todo = [name for name in names if name not in committed] if committed else names
    del committed  # nothing is held for a shard but its name
    quarantined: dict[str, str] = {}
    if todo:
        markers.forget_ledger()
        walk = _Walk(job, work, markers, len(names) - len(todo), (success_floor, shard_floor), gpus, actors, len(todo))
        quarantined = walk.run(todo)
    done = len(names) - len(quarantined)
    cluster = job.recipe.cluster
    if len(quarantined) > cluster.quarantine_floor * len(names):
        name, problem = sorted(quarantined.items())[0]
        raise UserError(
            f"{job.name}: {len(quarantined)} of {len(names)} shards failed {cluster.attempts} times, shard {name} with: {problem}; "
            f"mend the cause and run again: the {done} finished shards are kept."
        )
    counts = markers.compact([name for name in names if name not in quarantined] if quarantined else names)
    if below_floor(counts, success_floor):
        markers.forget(marker["shard"] for marker in read_ledger(job.out) if below_floor(marker["counts"], success_floor))
        raise UserError(
            f"{job.name}: only {counts['rows_out']:,} of {counts['rows_in']:,} rows came through, below the floor of {success_floor:.0%} "
            f"({reasons(counts)}); mend the cause and run again, or lower success_floor in the recipe."
        )
    return Outcome(counts=counts, metrics={"shards": done, "quarantined": len(quarantined)})


@dataclass
class _Flight:
    name: str
    attempt: int
    began: float = field(default_factory=time.monotonic)


class _Carrier(Protocol):
    """Where executions run: fresh tasks, or a pool of actors."""

    def begun(self) -> list[Any]: ...

    def submit(self, name: str, floor: float, short: bool) -> Any: ...

    def landed(self, reference: Any, lost: bool) -> None: ...

    def end(self, reference: Any) -> None: ...

    def grow(self, slots: int) -> None: ...

    def close(self, references: Sequence[Any]) -> None: ...


class _Tasks:
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


class _Actors:
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
        self._where: dict[Any, Any] = {}
        self._coming: dict[Any, Any] = {}  # reference that is there as soon as the actor is -> actor
        self.grow(slots)

    def begun(self) -> list[Any]:
        return list(self._coming)

    def submit(self, name: str, floor: float, short: bool) -> Any:
        import ray

        if self._coming:
            for arrived in ray.wait(list(self._coming), num_returns=len(self._coming), timeout=0)[0]:
                del self._coming[arrived]
        coming = set(self._coming.values())
        actor = min([actor for actor in self._load if actor not in coming] or self._load, key=self._load.__getitem__)
        reference = actor.run.options(name=f"{self._name} {name}").remote(name, floor)
        self._where[reference] = actor
        self._load[actor] += 1
        return reference

    def landed(self, reference: Any, lost: bool) -> None:
        actor = self._where.pop(reference)
        if actor in self._load:
            self._load[actor] -= 1
            if lost:
                del self._load[actor]
                self._add()

    def end(self, reference: Any) -> None:
        """Kills the actor of an execution; what else it was given comes back as lost."""
        import ray

        ray.kill(self._where[reference])

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


class _Walk:
    """Submits, collects, retries, doubles stragglers, until every shard is done or set aside."""

    def __init__(
        self, job: Job, work: Work, markers: Markers, done: int, floors: tuple[float, float], gpus: float, actors: bool, shards: int
    ) -> None:
        cluster = job.recipe.cluster
        self.room = Room(job, cluster.cpus_per_shard, gpus, setting="cpus_per_shard")
        self.job, self.done, self.floors, self.cluster, self.gpus = job, done, floors, cluster, gpus
        slots = self._slots()
        self.markers, mission = markers, Mission(work, markers, cluster.fsync)
        asked = (mission, job.name, cluster.cpus_per_shard, gpus)
        self.carrier: _Carrier = _Actors(*asked, slots, shards) if actors else _Tasks(*asked)
        self.usual_window = cluster.window or 2 * slots
        self.flights: dict[Any, _Flight] = {}
        self.airborne: Counter[str] = Counter()
        self.ahead: set[str] = set()  # shards that are there while another copy of them still flies
        self.quarantined: dict[str, str] = {}
        self.seconds: deque[float] = deque(maxlen=200)  # of late, for what is short and what is late
        self.window = self.usual_window
        self.rows = 0
        self.tally = Tally(job.name)

    def run(self, todo: Sequence[str]) -> dict[str, str]:
        """Returns what was quarantined and why; all else is done."""
        sent, again = 0, deque[tuple[str, int]]()  # tried again at the end: what was away may be back
        total, began, told = len(todo) + self.done, time.monotonic(), 0.0

        def unfinished() -> bool:
            return sent < len(todo) or bool(again or self.flights)

        try:
            self._wait()
            while unfinished():
                while len(self.flights) < self.window and (sent < len(todo) or again):
                    name, attempt = (todo[sent], 1) if sent < len(todo) else again.popleft()
                    self._submit(name, attempt)
                    sent += attempt == 1
                for name, attempt, flown in self._land():
                    if self._settle(name, attempt, flown):
                        again.append((name, attempt + 1))
                now = time.monotonic()
                if now - told > REPORT_SECONDS or not unfinished():
                    told = now
                    self._adapt()
                    rate = round(self.rows / max(now - began, 1e-9))
                    self.job.report(self.done, total, rows_per_s=rate, in_flight=len(self.flights))
                    self.tally.tell(self.done, total)
        finally:
            self.carrier.close(list(self.flights))
        return self.quarantined

    def _slots(self) -> int:
        """How many shards the cluster, as it is now, works on at once."""
        import ray

        there = ray.cluster_resources()
        slots = there.get("CPU", 1) / max(self.cluster.cpus_per_shard, 0.1)
        return max(1, int(min(slots, there.get("GPU", 0) / self.gpus) if self.gpus else slots))

    def _wait(self) -> None:
        """Until Ray has given processors to this walk."""
        import ray

        begun = self.carrier.begun()
        while not ray.wait(begun, timeout=1.0)[0]:
            self.job.run.go_on()
            self.room.look()

    def _submit(self, name: str, attempt: int) -> None:
        _, shard = self.floors
        floor = shard if attempt >= self.cluster.attempts else max(self.floors)  # at last as it is: then the stage's floor decides
        reference = self.carrier.submit(name, floor, self.window > self.usual_window)
        self.flights[reference] = _Flight(name, attempt)
        self.airborne[name] += 1

    def _land(self) -> list[tuple[str, int, Flown]]:
        """Executions that have ended; waits for one, or for a quarter of them where shards are short, as each waking costs."""
        import ray
        from ray.exceptions import RayError

        waiting = list(self.flights)
        if self.window > self.usual_window:
            ready, _ = ray.wait(waiting, num_returns=max(1, len(waiting) // 4), timeout=SHORT_SECONDS)
        else:
            ready, rest = ray.wait(waiting, num_returns=1, timeout=1.0)
            if ready and rest:
                ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        try:
            answers: list[Any] = ray.get(ready)
        except RayError:
            answers = [None] * len(ready)
        landed = []
        for reference, answer in zip(ready, answers, strict=True):
            lost = False
            try:
                result = Flown.unpacked(ray.get(reference) if answer is None else answer)
            except RayError as error:
                result, lost = Flown(problem=_sentence(error)), True
            flight = self.flights.pop(reference)
            self.carrier.landed(reference, lost)
            landed.append((flight.name, flight.attempt, result))
        return landed

    def _settle(self, name: str, attempt: int, flown: Flown) -> bool:
        """Books one execution; returns whether it is to be tried again."""
        self.airborne[name] -= 1
        if not self.airborne[name]:
            del self.airborne[name]
        if name in self.ahead:  # the other copy was first, and this one may have been ended amid its files
            if name in self.airborne:
                return False
            self.ahead.remove(name)
            if self.markers.intact(name):
                return False
            self.done -= 1
            return True
        if flown.stop is not None:
            raise flown.stop
        if not flown.problem:
            self.done += 1
            self.seconds.append(flown.seconds)
            self.rows += flown.counts.get("rows_in", 0)
            self.tally.shard(flown.counts, flown.bytes)
            if name in self.airborne:
                self.ahead.add(name)
                for reference in [reference for reference, flight in self.flights.items() if flight.name == name]:
                    self.carrier.end(reference)
            return False
        self.tally.failure()
        if name in self.airborne:
            return False  # its twin may still succeed
        if attempt < self.cluster.attempts:
            return True
        self.quarantined[name] = flown.problem
        return False

    def _adapt(self) -> None:
        """Widens the window for a cluster that has grown and for short shards; gives each straggler a second copy."""
        slots = self._slots()
        self.carrier.grow(slots)
        self.usual_window = self.cluster.window or 2 * slots
        if len(self.seconds) < 5:
            return
        short = statistics.median(self.seconds) < SHORT_SECONDS
        self.window = self.usual_window * SHORT_WINDOW if short and not self.cluster.window else self.usual_window
        limit = max(STRAGGLER_FLOOR_SECONDS, STRAGGLER_FACTOR * statistics.quantiles(self.seconds, n=20)[-1])
        for flight in list(self.flights.values()):
            if time.monotonic() - flight.began > limit and self.airborne[flight.name] == 1:
                self._submit(flight.name, flight.attempt)
