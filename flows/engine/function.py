"""Runs one whole function on Ray and follows it: a training with one worker, an evaluation, a drawing."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from flows.engine.capacity import Capacity
from flows.engine.pool import TaskPool
from flows.engine.run import Job, every
from flows.services.ray_metrics import report_training
from mav.errors import storage_may_fail
from mav.storage import Folder

T = TypeVar("T")
PROGRESS, MESSAGES = "progress.json", "messages.json"
LOOK_SECONDS = 1.0  # between two looks at the worker's progress
CHECKPOINTS = "checkpoints"  # a training's, below its work folder
SAVE_SECONDS = 20.0  # for a training that is being stopped, and for its checkpoint at
SAVE_RATE = 100e6  # bytes a second


def save_seconds(work: Folder) -> float:
    """Returns how long a stage that is being stopped may take to save: a training writes as much as it did before."""
    sizes = Counter[str]()
    with storage_may_fail():
        for name, size in work.child(CHECKPOINTS).sizes().items():
            sizes[name.partition("/")[0]] += size
    return SAVE_SECONDS + max(sizes.values(), default=0) / SAVE_RATE


class ProgressFile:
    """Writes a worker's latest progress where the driver reads it, and sets Ray's gauges, at most once a second.

    It is called with a mapping of "samples" (done so far), "total" and other values (loss, samples per second). A
    sentence for the user is in "message". Storage that fails for a moment does not stop the work.
    """

    def __init__(self, work: Folder) -> None:
        self.work = work
        self._last = 0.0
        self._messages: list[str] = []
        self._written = 0  # of the messages

    def begin(self) -> None:
        """Records that the work has its processors, before there is progress."""
        with storage_may_fail():
            self.work.write_json(PROGRESS, {})

    def __call__(self, progress: dict[str, Any]) -> None:
        if sentence := progress.get("message"):
            self._messages.append(sentence)
        elif time.monotonic() - self._last > 1.0:
            self._last = time.monotonic()
            report_training(progress)
            with storage_may_fail():
                self.work.write_json(PROGRESS, progress)
        if self._written < len(self._messages):
            with storage_may_fail():
                self.work.write_json(MESSAGES, self._messages)
                self._written = len(self._messages)


@contextmanager
def following(job: Job, capacity: Capacity) -> Iterator[Callable[[], None]]:
    """Reports the worker's progress file while the block runs; until it exists, what the worker waits for.

    Yields a function that the block calls while it waits. It raises UserError when the run is being stopped or the
    stage taken over, and whatever the following met.
    """
    for name in (PROGRESS, MESSAGES):
        job.work.remove(name)  # an earlier worker may have left one
    shown: list[str] = []

    def say() -> None:
        for sentence in job.work.read_json_or_none(MESSAGES) or ():
            if sentence not in shown:
                shown.append(sentence)
                job.run.terminal.say(f"  {sentence}")

    def look() -> None:
        say()
        progress = job.work.read_json_or_none(PROGRESS)
        if job.run.stopping.is_set():
            return
        if progress is None:
            capacity.report_waiting()
        elif progress:
            progress.pop("stage", None)
            job.report(progress.pop("samples", 0), progress.pop("total", 0), **progress)

    try:
        with every(LOOK_SECONDS, look, job.say) as check:

            def require_running() -> None:
                job.require_running()
                check()

            yield require_running
    finally:
        with storage_may_fail():  # what the function returned or raised counts for more
            say()


def run_on_ray(job: Job, function: Callable[..., T], *arguments: Any, cpus: float = 1, gpus: float = 0) -> T:
    """Runs `function(*arguments, report)` as one Ray task named after the stage and returns its result.

    Exceptions arrive as themselves, so a UserError of the worker is a UserError here. Raises UserError when no node has
    so many processors.
    """
    import ray
    from ray.exceptions import RayTaskError

    capacity = Capacity(job, cpus, gpus)
    pool = TaskPool(_call, job.name, cpus, gpus)
    given = (job.run.store.kernels(), function, *arguments, ProgressFile(job.work))
    reference = pool.submit(job.name, *given)
    try:
        with following(job, capacity) as require_running:
            while not ray.wait([reference], timeout=1.0)[0]:
                require_running()
        result: T = ray.get(reference)
        return result
    except RayTaskError as error:
        raise error.cause from None
    except BaseException:
        try:
            ray.cancel(reference)  # gives a training the time to save
            ray.wait([reference], timeout=save_seconds(job.work))
        finally:
            pool.end(reference)
        raise


def keep_kernels(kernels: Folder) -> None:
    """Lets Triton keep the kernels that this process compiles where later processes, also of other nodes, find them.

    It needs a file system, so with runs in a bucket each machine keeps its own. A user's TRITON_CACHE_DIR wins.
    """
    if kernels.local:
        os.environ.setdefault("TRITON_CACHE_DIR", kernels.root)


def _call(kernels: Folder, function: Callable[..., T], *arguments: Any) -> T:
    """Runs in the worker."""
    arguments[-1].begin()
    keep_kernels(kernels)
    return function(*arguments)
