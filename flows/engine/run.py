"""One run of a graph, the job that it gives to the body of each stage, and the heartbeat of that job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flows.engine.lease import Lease
from flows.engine.stage import Graph, Node
from flows.engine.store import Store
from flows.services.heartbeat import write_heartbeat
from flows.services.ray_cluster import job_server, ray_cluster
from flows.services.terminal import Terminal
from mav.errors import TakenOverError, UserError, from_storage, storage_may_fail
from mav.recipes import Recipe
from mav.storage import Folder

T = TypeVar("T")
HEARTBEAT_SECONDS = 5.0


@dataclass
class Run:
    """One run of a graph: its recipe and store, the terminal, and the services that start when a stage needs them."""

    recipe: Recipe
    store: Store
    terminal: Terminal
    exit_stack: ExitStack
    builder: Callable[[Recipe], Graph] | None = None  # makes the same graph in a job of a cluster
    alone: bool = True  # False in a job of a cluster: other stages of the same run are other jobs
    stopping: threading.Event = field(default_factory=threading.Event)  # is set when the run is being stopped
    services: dict[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def require_running(self) -> None:
        """Raises UserError when the run is being stopped."""
        if self.stopping.is_set():
            raise UserError("The run is being stopped: the same command goes on where it was.")

    def service(self, name: str, start: Callable[[], AbstractContextManager[T]]) -> T:
        """Starts a service that lives until the run ends, or returns the one that was started under this name.

        Raises UserError when the run is being stopped.
        """
        with self._lock:
            self.require_running()
            if name not in self.services:
                self.services[name] = self.exit_stack.enter_context(start())
            found: T = self.services[name]
            return found

    def ray(self) -> None:
        """Starts or joins Ray once. Raises UserError for a job server, and when the run is being stopped."""
        if job_server():
            problem = f"RAY_ADDRESS={job_server()} takes whole stages; this needs a cluster to join"
            raise UserError(f"{problem}: say host:6379, or unset it.")
        self.service("ray", lambda: ray_cluster(self.recipe.cluster))


@dataclass
class Job:
    """What the body of a stage is given."""

    node: Node
    run: Run
    out: Folder  # the artifact's folder: what is written here becomes the artifact
    work: Folder  # for markers and checkpoints; it is removed when the artifact is published
    lease: Lease | None = None
    told: dict[str, Any] = field(default_factory=dict)  # of a retry pass: how the finished artifact says it was made
    progress: dict[str, Any] = field(default_factory=dict)  # the latest report

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def inputs(self) -> dict[str, Folder]:
        """The folder of each input's artifact, by stage name."""
        return {node.name: self.run.store.artifact(node) for node in self.node.inputs}

    @property
    def device(self) -> str:
        """The device that the networks of a GPU stage run on."""
        return "cuda" if self.recipe.cluster.gpus_per_worker else "cpu"

    def require_running(self) -> None:
        """Raises UserError when the run is being stopped, or when another run has taken the stage over.

        Every stage that waits calls it every few seconds.
        """
        self.run.require_running()
        if self.lease:
            self.lease.check()

    def require_held(self) -> None:
        """Raises UserError when another run has taken the stage over; looks now."""
        if self.lease:
            self.lease.beat()

    def say(self, sentence: str) -> None:
        """Shows a sentence about the stage in the terminal."""
        self.run.terminal.say(sentence, self.name)

    def report(self, done: float, total: float, **values: Any) -> None:
        """Reports progress to the terminal and to `mav status`.

        Raises UserError when the run is being stopped, or when another run has taken the stage over.
        """
        self.require_running()
        self.run.terminal.progress(self.name, done, total, **values)
        self.progress = {"done": done, "total": total, **values}


@contextmanager
def every(seconds: float, do: Callable[[], None], tell: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Calls `do` every so many seconds in a thread of its own while the block runs.

    An error of storage, which may pass, is given to `tell`, once until `do` succeeds again. Any other error ends the
    thread. It is raised at the end of the block, and before that by the function that is yielded: a block that waits
    for long calls it every few seconds.
    """
    stop, errors = threading.Event(), list[Exception]()

    def loop() -> None:
        told = False
        while not stop.wait(seconds):
            try:
                try:
                    do()
                    told = False
                except Exception as error:
                    if not from_storage(error):
                        raise
                    if not told:
                        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                        tell(f"storage fails ({reason}); trying again")
                    told = True
            except Exception as error:  # also one of telling
                errors.append(error)
                return

    def check() -> None:
        if errors:
            raise errors[0]

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield check
    finally:
        stop.set()
        thread.join()
    check()


@contextmanager
def heartbeat(job: Job) -> Iterator[None]:
    """Rewrites the stage's heartbeat while the block runs, with the latest progress in it."""

    def beat(ended: bool = False) -> None:
        write_heartbeat(job.work, job.progress, ended)

    with storage_may_fail():
        beat()
    try:
        with every(HEARTBEAT_SECONDS, beat, job.say):
            yield
    finally:
        with suppress(TakenOverError), storage_may_fail():  # the stage has ended in any case
            beat(ended=True)
