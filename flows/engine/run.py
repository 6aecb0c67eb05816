"""TODO-DOC flows/engine/run.py"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from flows.engine.lease import Lease
from flows.engine.stage import Node
from flows.engine.store import Store
from flows.services.ports import port_is_free
from flows.services.ray_cluster import job_server, ray_cluster
from flows.services.terminal import Terminal
from mav.errors import UserError
from mav.recipes import ImageDownload, Recipe, VideoShards
from mav.storage import Folder


@dataclass
class Run:
    """One run of a plan: the store, the screen, and what is started only when the first stage needs it."""

    recipe: Recipe
    store: Store
    screen: Terminal
    services: ExitStack
    alone: bool = True  # False in a job of a cluster: other stages of the same run are other jobs
    stopping: threading.Event = field(
        default_factory=threading.Event
    )  # set once the run is being stopped: nothing starts anew
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ray: str | None = None
    _world: Any = None

    def go_on(self) -> None:
        """Raises UserError when the run is being stopped; asked wherever a stage waits."""
        if self.stopping.is_set():
            raise UserError("The run is being stopped: the same command goes on where it was.")

    def ray(self) -> str:
        """Starts or joins Ray once; returns the dashboard's address. Raises UserError when the run is being stopped."""
        if job_server():
            raise UserError(
                f"RAY_ADDRESS={job_server()} takes whole stages; this needs a cluster to join: say host:6379, or unset it."
            )
        with self._lock:
            self.go_on()
            if self._ray is None:
                self._ray = self.services.enter_context(ray_cluster(self.recipe.cluster))
            return self._ray

    def serve_world(self, world: Folder) -> None:
        """Serves the demo world on loopback until the run ends; jobs of one cluster take turns, as each takes its server away."""
        from mav.world.server import WorldServer

        assert self.recipe.world is not None
        while not (self.alone or self._world or port_is_free(self.recipe.world.port)):
            self.go_on()
            time.sleep(1.0)
        with self._lock:
            if self._world is None:
                self._world = self.services.enter_context(WorldServer(world.child("site"), self.recipe.world.port))


@dataclass
class Job:
    """What a stage's body is given."""

    node: Node
    run: Run
    out: Folder  # the artifact's folder: what is written here is the artifact
    work: Folder  # for unfinished work: markers, checkpoints; removed when the artifact is published
    lease: Lease | None = None  # asked whether the artifact is still ours to build
    _progress: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def inputs(self) -> dict[str, Folder]:
        """Folder of each input's artifact, by stage name."""
        return {node.name: self.run.store.artifact(node) for node in self.node.inputs}

    @property
    def device(self) -> str:
        """What the networks of a GPU stage run on."""
        return "cuda" if self.recipe.cluster.gpus_per_worker else "cpu"

    def report(self, done: float, total: float, **facts: Any) -> None:
        """Progress for the person who watches and for `mav status`."""
        self.run.go_on()
        if self.lease:
            self.lease.check()
        self.run.screen.progress(self.name, done, total, **facts)
        self._progress = {"done": done, "total": total, **facts}

    def allowed_addresses(self, section: ImageDownload | VideoShards) -> tuple[str, ...]:
        """Loopback or private host:port that may be fetched: the recipe's, and the demo world's, which is served from now on."""
        world = self.inputs.get("demo-world")
        if world is None or self.recipe.world is None:
            return section.allow_addresses
        self.run.serve_world(world)
        return (*section.allow_addresses, f"127.0.0.1:{self.recipe.world.port}")
