"""Maps a stage's work over its shards on Ray: a bounded window, every shard accounted for, nothing done twice.

A shard is committed when its marker file exists, which the worker writes after the shard's own files
(`flows.engine.markers`). A failed attempt is repeated up to `cluster.attempts` times; then the shard is quarantined and
reported. A straggler gets one second attempt beside the first; when that is done first, the straggler is ended, since
it may hang. This is safe because files appear whole, a marker names the bytes of one attempt, and the files are
compared with the marker once both attempts have ended. An attempt that is far longer at work than any other, and longer
than `cluster.stall_seconds`, is ended and has failed. The driver keeps names and one window of attempts, nothing that
grows with the contents of shards.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flows.engine.capacity import Capacity
from flows.engine.markers import Markers, ShardNames
from flows.engine.pool import ActorPool, Pool, TaskPool
from flows.engine.run import Job
from flows.engine.shard_task import ShardResult, ShardTask, Work, below_floor, failure_reasons, sentence
from flows.engine.stage import Outcome
from flows.services.ray_metrics import ShardMetrics
from mav.errors import UserError
from mav.storage import Folder
from mav.storage.counts import add_counts

STRAGGLER_FACTOR = 3.0
STRAGGLER_FLOOR_SECONDS = 60.0
HUNG_FACTOR = 10.0  # times the limit of a straggler, and at least `cluster.stall_seconds`: then an attempt is ended
SHORT_SECONDS = 0.1  # shorter shards are handed out many at a time, or their transport would take longer than the work
SHORT_WINDOW = 16  # times the usual window
REPORT_SECONDS = 0.5


def shard_map(
    job: Job, work: Work, names: Iterable[str], *,
    success_floor: float = 0.0, shard_floor: float = 0.0, gpus: float = 0.0, actors: bool = False,
) -> Outcome:  # fmt: skip
    """Runs `work(name)` for every shard name on Ray and returns the summed counts; the ledger has all files' digests.

    `work` is a picklable callable that writes into `job.out`. `success_floor` is the share of the stage's rows that
    must come through; a shard below it is tried again before it is accepted. Below `shard_floor` a shard is never
    accepted. With `actors`, the work runs in processes that end with this pass (see `flows.engine.pool`).

    Raises UserError when shards fail in every attempt, or when the stage stays below its floor. Finished shards are
    kept, so the next run makes only the others.
    """
    names = ShardNames(names)
    if any(name == after for name, after in itertools.pairwise(names)):
        raise ValueError("shard names repeat")
    markers, cluster = Markers.of(job), job.recipe.cluster

    # Make what is not committed yet. Where all is, an earlier pass may have failed for its floor.
    committed = markers.committed(names)
    todo = ShardNames(name for name in names if name not in committed) if committed else names
    del committed  # nothing is kept for a shard but its name
    if not todo and (success_floor or shard_floor):
        todo = ShardNames(_below_floors(markers, names, success_floor, shard_floor))
        markers.forget(todo)
    quarantined: dict[str, str] = {}
    if todo:
        markers.forget_ledger()
        shards = _ShardPass(
            job, work, markers, todo, len(names) - len(todo), (success_floor, shard_floor), gpus, actors
        )
        quarantined = shards.run()
    done = len(names) - len(quarantined)
    if len(quarantined) > cluster.quarantine_floor * len(names):
        name, problem = sorted(quarantined.items())[0]
        raise UserError(
            f"{job.name}: {len(quarantined)} of {len(names)} shards failed {cluster.attempts} times, shard {name} "
            f"with: {problem}; mend the cause and run again: the {done} finished shards are kept."
        )

    # Write the ledger, and judge the stage as a whole.
    counts = markers.compact([name for name in names if name not in quarantined] if quarantined else names, todo)
    if below_floor(counts, success_floor):
        key = f"{job.name.replace('-', '_')}.success_floor"
        raise UserError(
            f"{job.name}: only {counts['rows_out']:,} of {counts['rows_in']:,} rows came through, below the floor of "
            f"{success_floor:.0%} ({failure_reasons(counts)}); mend the cause and run again, which makes only the "
            f"shards below the floor again, or lower `{key}` and run again, which keeps all of them."
        )
    return Outcome(counts=counts, metrics={"shards": done, "quarantined": len(quarantined)})


def one_pass(job: Job, name: str, make: Callable[[Folder], tuple[Work, Sequence[str]]]) -> Folder:
    """Does a pass over shards of its own, and returns its folder, which is in the stage's work folder.

    make: returns for this folder what the work is, and the names of its shards.
    """
    own = replace(job, out=job.work.child(name), work=job.work.child(f"{name}-work"))
    shard_map(own, *make(own.out))
    return own.out


def _below_floors(markers: Markers, names: Sequence[str], success_floor: float, shard_floor: float) -> list[str]:
    """Returns the finished shards that are to be made again: where the stage as a whole is above its floor, few."""
    whole = not below_floor(add_counts(counts for _, counts in markers.counts_of(names)), success_floor)
    floor = shard_floor if whole else max(success_floor, shard_floor)
    return [name for name, counts in markers.counts_of(names) if below_floor(counts, floor)]


@dataclass
class _Attempt:
    name: str
    number: int
    began: float = field(default_factory=time.monotonic)


class _ShardPass:
    """One pass over the shards that are not committed: submits, collects and repeats attempts until all are settled."""

    def __init__(
        self, job: Job, work: Work, markers: Markers, todo: Sequence[str], done: int,
        floors: tuple[float, float], gpus: float, actors: bool,
    ) -> None:  # fmt: skip
        self.job, self.markers, self.todo, self.done = job, markers, todo, done
        self.floors, self.cluster, self.gpus = floors, job.recipe.cluster, gpus
        cpus = self.cluster.cpus_per_shard
        self.capacity = Capacity(job, cpus, gpus, setting="cpus_per_shard")
        slots, task = self._slots(), ShardTask(work, markers, self.cluster.fsync)
        self.pool: Pool = (
            ActorPool(task, job.name, cpus, gpus, slots, len(todo)) if actors else TaskPool(task, job.name, cpus, gpus)
        )
        self.usual_window = self.window = self.cluster.window or 2 * slots
        self.attempts: dict[Any, _Attempt] = {}  # by Ray's reference
        self.running: Counter[str] = Counter()  # attempts that run now, by shard
        self.overtaken: set[str] = set()  # shards that are committed while another attempt at them still runs
        self.quarantined: dict[str, str] = {}
        self.seconds: deque[float] = deque(maxlen=200)  # of the latest shards: what is short, and what is a straggler
        self.rows = 0
        self.metrics = ShardMetrics(job.name)

    def run(self) -> dict[str, str]:
        """Returns the quarantined shards with their problems; all others are committed."""
        submitted, again = 0, deque[tuple[str, int]]()  # failed attempts are repeated last: a lost service may be back
        total, began, reported = len(self.todo) + self.done, time.monotonic(), 0.0

        def unfinished() -> bool:
            return submitted < len(self.todo) or bool(again or self.attempts)

        try:
            self._wait_for_processors()
            while unfinished():
                # Fill the window.
                while len(self.attempts) < self.window and (submitted < len(self.todo) or again):
                    name, number = (self.todo[submitted], 1) if submitted < len(self.todo) else again.popleft()
                    self._submit(name, number)
                    submitted += number == 1
                # Take in what has ended.
                for attempt, result in self._collect():
                    if self._settle(attempt, result):
                        again.append((attempt.name, attempt.number + 1))
                # Report, and adapt to the cluster, now and then.
                now = time.monotonic()
                if now - reported > REPORT_SECONDS or not unfinished():
                    reported = now
                    self._adapt()
                    rate = round(self.rows / max(now - began, 1e-9))
                    self.job.report(self.done, total, rows_per_s=rate, in_flight=len(self.attempts))
                    self.metrics.flush(self.done, total)
        finally:
            self.pool.close(list(self.attempts))
        return self.quarantined

    def _slots(self) -> int:
        """Returns how many shards the cluster, as it is now, can work on at once."""
        import ray

        resources = ray.cluster_resources()
        slots = resources.get("CPU", 1) / max(self.cluster.cpus_per_shard, 0.1)
        return max(1, int(min(slots, resources.get("GPU", 0) / self.gpus) if self.gpus else slots))

    def _wait_for_processors(self) -> None:
        import ray

        ready = self.pool.ready()
        while not ray.wait(ready, timeout=1.0)[0]:
            self.job.require_running()
            self.capacity.report_waiting()

    def _submit(self, name: str, number: int) -> None:
        # The last attempt is accepted as it is; then the stage's floor decides.
        floor = self.floors[1] if number >= self.cluster.attempts else max(self.floors)
        label = "" if self.window > self.usual_window else f"{self.job.name} {name}"  # nobody watches very short tasks
        reference = self.pool.submit(name, name, floor, label=label)
        self.attempts[reference] = _Attempt(name, number)
        self.running[name] += 1

    def _collect(self) -> list[tuple[_Attempt, ShardResult]]:
        """Waits for an attempt to end and returns all that have; for short shards, a quarter of the window."""
        import ray
        from ray.exceptions import RayError

        waiting = list(self.attempts)
        if self.window > self.usual_window:
            ready, _ = ray.wait(waiting, num_returns=max(1, len(waiting) // 4), timeout=SHORT_SECONDS)
        else:
            ready, rest = ray.wait(waiting, num_returns=1, timeout=1.0)
            if ready and rest:
                ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        try:
            answers: list[Any] = ray.get(ready)  # all in one call, unless one of them is an error
        except RayError:
            answers = [None] * len(ready)
        collected = []
        for reference, answer in zip(ready, answers, strict=True):
            lost = False
            try:
                result = ShardResult.unpacked(ray.get(reference) if answer is None else answer)
            except RayError as error:
                result, lost = ShardResult(problem=sentence(error)), True
            attempt = self.attempts.pop(reference)
            self.pool.finished(reference, lost)
            collected.append((attempt, result))
        return collected

    def _settle(self, attempt: _Attempt, result: ShardResult) -> bool:
        """Records the result of an attempt and returns whether the shard is to be tried again."""
        name = attempt.name
        self.running[name] -= 1
        if not self.running[name]:
            del self.running[name]

        # Another attempt was first, and this one may have been ended while it wrote the same files.
        if name in self.overtaken:
            if name in self.running:
                return False
            self.overtaken.remove(name)
            if self.markers.intact(name):
                return False
            self.markers.forget([name])  # a resumed pass would believe it by the files' sizes
            self.done -= 1
            return True

        if result.fatal is not None:
            raise result.fatal
        if not result.problem:
            self._committed(attempt, result)
            return False

        # A failure: another running attempt may succeed, or a further one; without them the shard is quarantined.
        self.metrics.failed()
        if name in self.running:
            return False
        if attempt.number < self.cluster.attempts:
            return True
        self.quarantined[name] = result.problem
        return False

    def _committed(self, attempt: _Attempt, result: ShardResult) -> None:
        self.done += 1
        self.seconds.append(result.seconds)
        self.rows += result.counts.get("rows_in", 0)
        self.metrics.committed(result.counts, result.bytes)
        if attempt.name in self.running:
            self.overtaken.add(attempt.name)
            for reference, other in list(self.attempts.items()):
                # An older attempt may hang. A younger one is merely behind, and its process has other work to do.
                if other.name == attempt.name and other.began < attempt.began:
                    self.pool.end(reference)

    def _adapt(self) -> None:
        """Follows the cluster's size, and deals with short shards, stragglers, and attempts that hang."""
        slots = self._slots()
        self.pool.grow(slots)
        self.usual_window = self.cluster.window or 2 * slots
        limit = 0.0
        if len(self.seconds) >= 5:
            limit = max(STRAGGLER_FLOOR_SECONDS, STRAGGLER_FACTOR * statistics.quantiles(self.seconds, n=20)[-1])
            self._deal_with_stragglers(limit)
        # Both attempts at a shard may hang, or the only actor there is.
        stall, now = self.cluster.stall_seconds, time.monotonic()
        for reference, attempt in list(self.attempts.items()):
            if stall and now - attempt.began > max(stall, HUNG_FACTOR * limit):
                self.pool.end(reference)

    def _deal_with_stragglers(self, limit: float) -> None:
        short = statistics.median(self.seconds) < SHORT_SECONDS and not self.cluster.window
        self.window = self.usual_window * SHORT_WINDOW if short else self.usual_window
        for reference, attempt in list(self.attempts.items()):
            overdue = time.monotonic() - attempt.began > limit
            if overdue and attempt.name in self.overtaken:
                self.pool.end(reference)
            elif overdue and self.running[attempt.name] == 1 and self.pool.has_another(attempt.name):
                self._submit(attempt.name, attempt.number)
