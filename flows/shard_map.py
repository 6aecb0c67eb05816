"""Walks the shards of one stage on Ray: a bounded window, every shard accounted for, nothing done twice.

A shard is committed when its marker file exists, written by the worker after the shard's own files. Markers are the truth on
resume. Ray's own retries are off (`max_retries=0`): they are invisible, and endless after an out-of-memory kill. Here a failed
shard is tried again up to `cluster.attempts` times, then set aside and reported; a straggler gets one second copy, which is safe
because a shard's bytes depend on its name alone and files appear whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flows.stage import Job, Outcome
from mav.artifact import Folder, add_counts
from mav.errors import UserError

if TYPE_CHECKING:
    from mav.data.shards import ShardOutput

MARKERS = "markers"
LEDGER = "shards.parquet"  # one row a shard: the compacted markers, handed over with the artifact
STRAGGLER_FACTOR = 3.0
STRAGGLER_FLOOR_SECONDS = 60.0

Work = Callable[[str], "ShardOutput"]


def run_shard(work: Work, name: str, out: Folder, markers: Folder, attempt: int, floor: float) -> dict[str, Any]:
    """In the worker: makes one shard and commits it. Returns its marker.

    A shard under the floor is not committed but tried again: its network may have gone in the middle, with its driver, say.
    """
    began = time.monotonic()
    output = work(name)
    if below_floor(output.counts, floor):
        raise RuntimeError(f"only {output.counts['rows_out']} of {output.counts['rows_in']} rows came through")
    files = {file: {"bytes": out.size(file), "sha256": out.sha256(file)} for file in output.files}
    out.sync()  # the shard is on the disk before its marker says so
    marker = {"shard": name, "counts": output.counts, "files": files, "attempt": attempt, "seconds": round(time.monotonic() - began, 3)}
    markers.write_json(f"{name}.json", marker)
    return marker


def below_floor(counts: dict[str, Any], floor: float) -> bool:
    """Whether fewer than `floor` of the rows that were not dropped on purpose came through."""
    wanted = counts.get("rows_in", 0) - sum(counts.get("dropped", {}).values())
    return bool(counts.get("rows_out", 0) < floor * wanted)


@dataclass
class _Flight:
    name: str
    attempt: int
    began: float = field(default_factory=time.monotonic)


def shard_map(
    job: Job, work: Work, names: Sequence[str], *, success_floor: float = 0.0, cpus: float | None = None, gpus: float = 0.0
) -> Outcome:
    """Runs `work(name)` for every name on Ray and returns summed counts and the digests of all files.

    work: a picklable callable that writes into `job.out`. Raises UserError when too many shards fail for good or
    fewer than `success_floor` of the rows come through.
    """
    if len(set(names)) != len(names):
        raise ValueError("shard names repeat")
    markers = job.work.child(MARKERS)
    done = _committed(markers, job.out, set(names))
    todo = [name for name in sorted(names) if name not in done]
    quarantined = _drive(job, work, todo, done, markers, success_floor, cpus, gpus) if todo else {}
    cluster = job.recipe.cluster
    if len(quarantined) > cluster.quarantine_floor * len(names):
        name, reason = sorted(quarantined.items())[0]
        raise UserError(
            f"{job.name}: {len(quarantined)} of {len(names)} shards failed {cluster.attempts} times, shard {name} with: {reason}; "
            f"mend the cause and run again: the {len(done)} finished shards are kept."
        )
    ordered = [done[name] for name in sorted(done)]
    _write_ledger(job.out, ordered)
    counts = add_counts([marker["counts"] for marker in ordered])
    if below_floor(counts, success_floor):
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(counts["failed"].items(), key=lambda item: -item[1]))
        raise UserError(
            f"{job.name}: only {counts['rows_out']:,} of {counts['rows_in']:,} rows came through, below the floor of {success_floor:.0%} "
            f"(failed: {reasons}); mend the cause, or lower success_floor in the recipe."
        )
    digests = {file: facts for marker in ordered for file, facts in marker["files"].items()}
    return Outcome(counts=counts, metrics={"shards": len(ordered), "quarantined": len(quarantined)}, digests=digests)


def _committed(markers: Folder, out: Folder, names: set[str]) -> dict[str, dict[str, Any]]:
    """Markers whose files are there in full; a torn or orphaned marker is as good as none."""
    done = {}
    present = set(out.names()) if markers.exists() else set()
    for file in markers.names():
        name = file.removesuffix(".json")
        if name not in names:
            continue
        try:
            marker = markers.read_json(file)
            whole = all(f in present and out.size(f) == facts["bytes"] for f, facts in marker["files"].items())
        except (ValueError, KeyError):
            whole = False
        if whole:
            done[name] = marker
    return done


def _drive(
    job: Job, work: Work, todo: list[str], done: dict[str, dict[str, Any]], markers: Folder, floor: float, cpus: float | None, gpus: float
) -> dict[str, str]:
    """The window: submits, collects, retries, doubles stragglers. Fills `done`; returns what was quarantined and why."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    job.run.ray()
    cluster = job.recipe.cluster
    need = cluster.cpus_per_shard if cpus is None else cpus
    remote = ray.remote(run_shard).options(name=job.name, num_cpus=need, num_gpus=gpus, max_retries=0)
    window = cluster.window or 2 * max(1, int(ray.cluster_resources().get("CPU", 1) / max(need, 0.1)))
    shared = ray.put(work)
    queue = deque((name, 1) for name in todo)
    flights: dict[Any, _Flight] = {}
    quarantined: dict[str, str] = {}
    seconds: list[float] = []
    total = len(todo) + len(done)
    began, rows = time.monotonic(), 0

    def submit(name: str, attempt: int) -> None:
        last = attempt == cluster.attempts  # committed as it is: then the stage's floor decides
        flights[remote.remote(shared, name, job.out, markers, attempt, 0.0 if last else floor)] = _Flight(name, attempt)

    try:
        while queue or flights:
            while queue and len(flights) < window:
                submit(*queue.popleft())
            ready, _ = ray.wait(list(flights), num_returns=1, timeout=5.0)
            for reference in ready:
                flight = flights.pop(reference)
                if flight.name in done:
                    continue  # the other copy of a straggler was first
                try:
                    marker = ray.get(reference)
                except RayError as error:
                    cause = error.cause if isinstance(error, RayTaskError) else error
                    if isinstance(cause, UserError) or getattr(cause, "errno", None) == 28:
                        raise cause from None
                    if any(other.name == flight.name for other in flights.values()):
                        continue  # its twin may still succeed
                    if flight.attempt < cluster.attempts:
                        queue.append((flight.name, flight.attempt + 1))
                    else:
                        quarantined[flight.name] = (
                            f"{type(cause).__name__}: {str(cause).strip().splitlines()[0] if str(cause).strip() else ''}"
                        )
                    continue
                done[flight.name] = marker
                seconds.append(marker["seconds"])
                rows += marker["counts"].get("rows_in", 0)
            _double_stragglers(flights, seconds, submit)
            job.report(len(done), total, rows_per_s=round(rows / max(time.monotonic() - began, 1e-9)), in_flight=len(flights))
    finally:
        for reference in flights:
            ray.cancel(reference, force=True)
    return quarantined


def _double_stragglers(flights: dict[Any, _Flight], seconds: list[float], submit: Callable[[str, int], None]) -> None:
    if len(seconds) < 5:
        return
    limit = max(STRAGGLER_FLOOR_SECONDS, STRAGGLER_FACTOR * statistics.quantiles(seconds, n=20)[-1])
    names = [flight.name for flight in flights.values()]
    for flight in list(flights.values()):
        if time.monotonic() - flight.began > limit and names.count(flight.name) == 1:
            submit(flight.name, flight.attempt)


def _write_ledger(out: Folder, markers: list[dict[str, Any]]) -> None:
    """`shards.parquet`: a row a shard with its counts and files. No times and no attempts: equal shards, equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "shard": [m["shard"] for m in markers],
            "rows_in": [int(m["counts"].get("rows_in", 0)) for m in markers],
            "rows_out": [int(m["counts"].get("rows_out", 0)) for m in markers],
            "counts": [json.dumps(m["counts"], sort_keys=True) for m in markers],
            "files": [json.dumps(m["files"], sort_keys=True) for m in markers],
            "digest": [hashlib.sha256(json.dumps(m["files"], sort_keys=True).encode()).hexdigest() for m in markers],
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    out.write_bytes(LEDGER, buffer.getvalue())
