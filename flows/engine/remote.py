"""One whole function on Ray, watched from here: how a stage that is not a walk over shards runs."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from flows.engine.build import every
from flows.engine.capacity import Room
from flows.engine.run import Job
from flows.engine.store import read_json_or_none
from flows.services.ray_metrics import tell_training
from mav.storage import Folder

T = TypeVar("T")
PROGRESS = "progress.json"
SAVE_SECONDS = 20.0  # for a training that is being stopped


class ProgressFile:
    """Callable in a worker: leaves the latest progress where the driver reads it, and tells Ray's metrics, at most once a second.

    Takes a mapping with "samples" (done so far), "total" and whatever else is worth showing (loss, samples/s).
    """

    def __init__(self, work: Folder) -> None:
        self.work = work
        self._last = 0.0

    def begin(self) -> None:
        """Says that the work has its processors, before it has progress."""
        self.work.write_json(PROGRESS, {})

    def __call__(self, facts: dict[str, Any]) -> None:
        if time.monotonic() - self._last > 1.0:
            self._last = time.monotonic()
            self.work.write_json(PROGRESS, facts)
            tell_training(facts)


@contextmanager
def watching(job: Job, room: Room) -> Iterator[None]:
    """While the block runs, carries the worker's progress file to the screen; until there is one, what the worker waits for."""
    job.work.remove(PROGRESS)  # of a worker before

    def look() -> None:
        facts = read_json_or_none(job.work, PROGRESS)
        if job.run.stopping.is_set():
            return
        if facts is None:
            room.look()
        elif facts:
            facts.pop("stage", None)
            job.report(facts.pop("samples", 0), facts.pop("total", 0), **facts)

    with every(1.0, look):
        yield


def on_ray(job: Job, function: Callable[..., T], *arguments: Any, cpus: float = 1, gpus: float = 0) -> T:
    """Runs `function(*arguments, report)` as one Ray task named after the stage and returns its result.

    Exceptions arrive as themselves, so a UserError of the worker is a UserError here. Raises UserError when no node has so many processors.
    """
    import ray
    from ray.exceptions import RayTaskError

    room = Room(job, cpus, gpus)
    threads = max(1, int(cpus))
    task = ray.remote(_begin).options(name=job.name, num_cpus=cpus, num_gpus=gpus, max_retries=0)
    reference = task.remote(threads, function, *arguments, ProgressFile(job.work))
    try:
        with watching(job, room):
            while not ray.wait([reference], timeout=1.0)[0]:
                job.run.go_on()
        result: T = ray.get(reference)
        return result
    except RayTaskError as error:
        raise error.cause from None
    except BaseException:
        try:
            ray.cancel(reference)  # a training saves first
            ray.wait([reference], timeout=SAVE_SECONDS)
        finally:
            ray.cancel(reference, force=True)
        raise


def _begin(threads: int, function: Callable[..., T], *arguments: Any) -> T:
    """In the worker."""
    arguments[-1].begin()
    return _with_threads(threads, function, *arguments)


def _with_threads(threads: int, function: Callable[..., T], *arguments: Any) -> T:
    """Fixes the number of torch threads: it may change the last bits of a sum, so it must not depend on the machine."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    return function(*arguments)
