"""Worker pools: where every call that a run hands to Ray is executed.

`TaskPool` runs calls as Ray tasks in the processes that Ray pools; `ActorPool` runs them in actors. A process of either
loads the function once. Actors are for GPU work: a pooled process stays after the last task and would keep its GPU
memory from the next stage, and Ray may give its next task another GPU than the one its networks are on. An actor keeps
its GPU and ends with the pool. Every call of either has as many threads as processors, whatever ran there before it.

Ray's own retries are off (`max_retries=0`), since they are invisible, and endless after an out-of-memory kill. What to
do about a failed call is decided by the caller.
"""

from __future__ import annotations

import itertools
import os
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

CANCEL_SECONDS = 1.0  # for taking back a call that waits in an actor

Function = Callable[..., Any]


def set_threads(cpus: float) -> None:
    """Gives torch as many threads in this process as it has processors, whether it is imported already or later.

    Their number may change the last bits of a sum, and a process that Ray keeps would go on with that of its last call.
    """
    threads = max(1, int(cpus))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


class Pool(Protocol):
    """Processes that run calls of one function."""

    def ready(self) -> list[Any]:
        """Returns references, one of which resolves as soon as Ray has given processors to the pool."""

    def submit(self, key: str, *arguments: Any, label: str = "") -> Any:
        """Starts a call and returns its reference. `key` names the call; `label` is shown in Ray's dashboard."""

    def finished(self, reference: Any, lost: bool) -> None:
        """Takes note that a call has ended; `lost` when its process died."""

    def end(self, reference: Any) -> None:
        """Kills the process of a call, also one that hangs. Its reference then resolves to an error."""

    def has_another(self, key: str) -> bool:
        """Says whether a second call with this key would run in another process than the first."""

    def grow(self, slots: int) -> None:
        """Uses up to so many processes from now on."""

    def close(self, references: Sequence[Any]) -> None:
        """Ends the calls that are still running, and whatever belongs to the pool alone."""


class TaskPool:
    """Runs each call as a Ray task. The function travels once to each process, not with every call."""

    def __init__(self, function: Function, name: str, cpus: float = 1.0, gpus: float = 0.0) -> None:
        import ray

        def call(arguments: tuple[Any, ...]) -> Any:
            set_threads(cpus)
            return function(*arguments)

        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        self._task = task(call)
        self._call = self._task.options(name=name)
        self._empty = task(lambda: None).options(name=f"{name} begins")

    def ready(self) -> list[Any]:
        return [self._empty.remote()]

    def submit(self, key: str, *arguments: Any, label: str = "") -> Any:
        call = self._task.options(name=label) if label else self._call  # a label costs a tenth of a millisecond
        return call.remote(arguments)  # as one argument, since Ray packs each on its own

    def finished(self, reference: Any, lost: bool) -> None:
        """Nothing is kept for a task."""

    def end(self, reference: Any) -> None:
        import ray

        ray.cancel(reference, force=True)

    def has_another(self, key: str) -> bool:
        return True

    def grow(self, slots: int) -> None:
        """Ray itself starts as many processes as there are tasks and processors."""

    def close(self, references: Sequence[Any]) -> None:
        for reference in references:
            self.end(reference)


class _Actor:
    def __init__(self, function: Function, cpus: float) -> None:
        set_threads(cpus)
        self.function = function

    def run(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class ActorPool:
    """Runs calls in up to `slots` actors, at most `most` of them, each of which has its next call waiting.

    An actor that died is replaced. One for which there is no processor yet gets no call.
    """

    def __init__(self, function: Function, name: str, cpus: float, gpus: float, slots: int, most: int) -> None:
        import ray

        actor: Any = ray.remote(_Actor)
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        shared, numbers = ray.put(function), itertools.count()
        pool = uuid.uuid4().hex[:8]  # no two living actors may share a name, also of different pools
        self._make = lambda: actor.options(name=f"{name} {pool}-{next(numbers)}", **options).remote(shared, cpus)
        self._most = most
        self._load: Counter[Any] = Counter()  # actor -> calls that it has
        self._calls: dict[Any, tuple[Any, str]] = {}  # reference -> actor, key
        self._starting: dict[Any, Any] = {}  # reference that resolves when the actor has started -> actor
        self.grow(slots)

    def ready(self) -> list[Any]:
        return list(self._starting)

    def submit(self, key: str, *arguments: Any, label: str = "") -> Any:
        actor = min(self._others(key) or self._load, key=self._load.__getitem__)
        reference = (actor.run.options(name=label) if label else actor.run).remote(*arguments)
        self._calls[reference] = actor, key
        self._load[actor] += 1
        return reference

    def finished(self, reference: Any, lost: bool) -> None:
        actor, _ = self._calls.pop(reference)
        if actor in self._load:
            self._load[actor] -= 1
            if lost:
                del self._load[actor]
                self._add()

    def end(self, reference: Any) -> None:
        """Takes back a call that has not begun. Otherwise kills its actor, whose other calls are then lost too."""
        import ray

        ray.cancel(reference)
        if not ray.wait([reference], timeout=CANCEL_SECONDS)[0]:
            ray.kill(self._calls[reference][0])

    def has_another(self, key: str) -> bool:
        return bool(self._others(key))

    def _others(self, key: str) -> list[Any]:
        """Returns the actors that have started and have no call with this key."""
        import ray

        if self._starting:
            for started in ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)[0]:
                del self._starting[started]
        excluded = {actor for actor, given in self._calls.values() if given == key} | set(self._starting.values())
        return [actor for actor in self._load if actor not in excluded]

    def grow(self, slots: int) -> None:
        while len(self._load) < min(slots, self._most):
            self._add()

    def _add(self) -> None:
        actor = self._make()
        self._load[actor] = 0
        self._starting[actor.__ray_ready__.remote()] = actor

    def close(self, references: Sequence[Any]) -> None:
        import ray

        for actor in self._load:
            ray.kill(actor)


def results(
    pool: Pool, calls: Iterable[tuple[str, tuple[Any, ...]]], lost: Callable[[str], Exception]
) -> Iterator[Any]:
    """Runs all calls (key, arguments) and yields their results as they come, in no fixed order.

    A call whose process died is run once more in another process. When that one dies too, `lost(key)` is raised. An
    exception of the function arrives as itself.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    running = {pool.submit(key, *arguments): (key, arguments) for key, arguments in calls}
    died: set[str] = set()
    try:
        while running:
            (reference,), _ = ray.wait(list(running), num_returns=1)
            key, arguments = running.pop(reference)
            try:
                yield ray.get(reference)
                pool.finished(reference, lost=False)
            except RayTaskError as error:
                raise error.cause from None
            except RayError:
                pool.finished(reference, lost=True)
                if key in died:
                    raise lost(key) from None
                died.add(key)
                running[pool.submit(key, *arguments)] = key, arguments
    finally:
        pool.close(list(running))
