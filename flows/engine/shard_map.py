"""Walks the shards of one stage on Ray: a bounded window, every shard accounted for, nothing done twice.

A shard is committed when its marker file exists, written by the worker after the shard's own files (`flows.engine.markers`). A failed one is tried
again up to `cluster.attempts` times, then set aside and reported. A straggler gets one second copy; when that is first, the straggler is
ended, as it may hang. That is safe because files appear whole, a marker names the bytes of one execution, and what is there is compared
with it once both have ended. The driver keeps names and a window of flights, nothing that grows with the shards' contents.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.engine.capacity import Room
from flows.engine.markers import Markers
from flows.engine.run import Job
from flows.engine.shard_tasks import Actors, Carrier, Flown, Mission, Tasks, Work, below_floor, reasons, sentence
from flows.engine.stage import Outcome
from flows.services.ray_metrics import Tally
from mav.errors import UserError
from mav.storage.ledger import read_ledger

STRAGGLER_FACTOR = 3.0
STRAGGLER_FLOOR_SECONDS = 60.0
SHORT_SECONDS = (
    0.1  # shards shorter than this are handed out many at a time, or the way to the worker would be the work
)
SHORT_WINDOW = 16  # times the usual window
REPORT_SECONDS = 0.5


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
        markers.forget(
            marker["shard"] for marker in read_ledger(job.out) if below_floor(marker["counts"], success_floor)
        )
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


class _Walk:
    """Submits, collects, retries, doubles stragglers, until every shard is done or set aside."""

    def __init__(
        self,
        job: Job,
        work: Work,
        markers: Markers,
        done: int,
        floors: tuple[float, float],
        gpus: float,
        actors: bool,
        shards: int,
    ) -> None:
        cluster = job.recipe.cluster
        self.room = Room(job, cluster.cpus_per_shard, gpus, setting="cpus_per_shard")
        self.job, self.done, self.floors, self.cluster, self.gpus = job, done, floors, cluster, gpus
        slots = self._slots()
        self.markers, mission = markers, Mission(work, markers, cluster.fsync)
        asked = (mission, job.name, cluster.cpus_per_shard, gpus)
        self.carrier: Carrier = Actors(*asked, slots, shards) if actors else Tasks(*asked)
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
                for flight, flown in self._land():
                    if self._settle(flight, flown):
                        again.append((flight.name, flight.attempt + 1))
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
        floor = (
            shard if attempt >= self.cluster.attempts else max(self.floors)
        )  # at last as it is: then the stage's floor decides
        reference = self.carrier.submit(name, floor, self.window > self.usual_window)
        self.flights[reference] = _Flight(name, attempt)
        self.airborne[name] += 1

    def _land(self) -> list[tuple[_Flight, Flown]]:
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
                result, lost = Flown(problem=sentence(error)), True
            flight = self.flights.pop(reference)
            self.carrier.landed(reference, lost)
            landed.append((flight, result))
        return landed

    def _settle(self, flight: _Flight, flown: Flown) -> bool:
        """Books one execution; returns whether it is to be tried again."""
        name = flight.name
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
                for reference in [
                    r for r, other in self.flights.items() if other.name == name and other.began < flight.began
                ]:
                    self.carrier.end(reference)  # it may hang; a younger one is only late, and its process at work
            return False
        self.tally.failure()
        if name in self.airborne:
            return False  # its twin may still succeed
        if flight.attempt < self.cluster.attempts:
            return True
        self.quarantined[name] = flown.problem
        return False

    def _adapt(self) -> None:
        """Widens the window for a cluster that has grown and for short shards; gives each straggler a second copy, or ends it as one."""
        slots = self._slots()
        self.carrier.grow(slots)
        self.usual_window = self.cluster.window or 2 * slots
        if len(self.seconds) < 5:
            return
        short = statistics.median(self.seconds) < SHORT_SECONDS
        self.window = self.usual_window * SHORT_WINDOW if short and not self.cluster.window else self.usual_window
        limit = max(STRAGGLER_FLOOR_SECONDS, STRAGGLER_FACTOR * statistics.quantiles(self.seconds, n=20)[-1])
        for reference, flight in list(self.flights.items()):
            late = time.monotonic() - flight.began > limit
            if late and flight.name in self.ahead:
                self.carrier.end(reference)
            elif late and self.airborne[flight.name] == 1 and self.carrier.elsewhere(flight.name):
                self._submit(flight.name, flight.attempt)
