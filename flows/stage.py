"""A stage: a function from artifacts to one artifact, its fingerprint, its place in the graph and in storage.

    @stage("image-embed", sections=("clip", "image_embed"), version=1)
    def image_embed(job: Job) -> Outcome: ...

Calling the decorated stage with a `Plan` adds it to the graph; nothing runs. The plan knows every fingerprint before any work is
done, because a fingerprint covers what a stage is told (its sections of the recipe, its version, its inputs' fingerprints, the
identity of outside files it names), never what it makes. `flows.build` then makes the artifact, or finds it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import fsspec

from flows.console import Screen
from flows.lease import LEASE, Lease, held_here, top
from flows.runtime import job_server, port_is_free, ray_cluster
from mav.artifact import MANIFEST, Artifact, Folder
from mav.errors import UserError, nearest
from mav.recipe import ImageDownload, Recipe, VideoShards, digest

SILENT_SECONDS = 30.0  # without a heartbeat for so long, a run is taken for dead
SHOWN_FINGERPRINT = 16  # hex digits of a fingerprint used in paths

State = Literal["done", "stale", "missing", "failed", "running"]


@dataclass(frozen=True)
class Outcome:
    """What a stage says of its artifact beside the files: balanced row counts, and measured values."""

    counts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """The definition of one stage. `about` is its docstring's first line, shown in the Prefect UI and the report."""

    name: str
    version: int
    sections: tuple[str, ...]
    body: Callable[[Job], Outcome]
    about: str
    gpu: bool = False  # whether it asks for `cluster.gpus_per_worker`

    @property
    def tags(self) -> list[str]:
        """What the Prefect UI filters by: images, videos, training or evaluation, and gpu."""
        return [self.body.__module__.rpartition(".")[2], *(["gpu"] if self.gpu else [])]

    def __call__(self, plan: Plan, *inputs: Node | None) -> Node:
        """Adds the stage to a plan; `None` inputs (a demo world that is not there) are left out."""
        return plan.add(self, tuple(node for node in inputs if node is not None))


STAGES: dict[str, Stage] = {}


def stage(name: str, *, sections: tuple[str, ...], version: int = 1, gpu: bool = False) -> Callable[[Callable[[Job], Outcome]], Stage]:
    """Registers a function as a stage. Raise `version` when its code would make other bytes of the same recipe."""

    def register(body: Callable[[Job], Outcome]) -> Stage:
        if name in STAGES and STAGES[name].body.__qualname__ != body.__qualname__:
            raise ValueError(f"two stages are called {name!r}")
        STAGES[name] = Stage(name, version, sections, body, (body.__doc__ or name).strip().splitlines()[0], gpu)
        return STAGES[name]

    return register


@dataclass(frozen=True, eq=False)
class Node:
    """A stage in a plan: its definition, its inputs and its fingerprint."""

    stage: Stage
    inputs: tuple[Node, ...]
    fingerprint: str

    @property
    def name(self) -> str:
        return self.stage.name

    def upstream(self) -> Iterator[Node]:
        """Every node this one needs, nearest first, each once."""
        seen: set[str] = set()
        queue = list(self.inputs)
        while queue:
            node = queue.pop(0)
            if node.name not in seen:
                seen.add(node.name)
                yield node
                queue += node.inputs


class Plan:
    """The graph of one recipe, in the order its stages were added, with all fingerprints."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.nodes: dict[str, Node] = {}

    def add(self, stage: Stage, inputs: tuple[Node, ...]) -> Node:
        outside = {f"{key}:{path}": file_identity(path) for key, path in self.recipe.paths() if key.split(".")[0] in stage.sections}
        told = {
            "stage": stage.name,
            "version": stage.version,
            "seed": self.recipe.seed,
            "config": self.recipe.part(stage.sections),
            "inputs": {node.name: node.fingerprint for node in inputs},
            "outside": outside,
        }
        node = Node(stage, inputs, digest(told))
        self.nodes[stage.name] = node
        return node

    def node(self, name: str) -> Node:
        if name not in self.nodes:
            meant = nearest(name, self.nodes)
            remedy = f"did you mean {meant}?" if meant else f"its stages are {', '.join(self.nodes)}."
            raise UserError(f"There is no stage {name!r} in recipe {self.recipe.name}: {remedy}")
        return self.nodes[name]

    def until(self, name: str) -> list[Node]:
        """The stage and all it needs, in the plan's order."""
        last = self.node(name)
        wanted = {last.name, *(node.name for node in last.upstream())}
        return [node for node in self.nodes.values() if node.name in wanted]

    def downstream(self, name: str) -> list[Node]:
        """Every stage that needs this one, in the plan's order."""
        self.node(name)
        return [node for node in self.nodes.values() if name in {up.name for up in node.upstream()}]

    def length_after(self, node: Node) -> int:
        """How many stages the longest path from here to an end has: what to start first when several are ready."""
        return max((1 + self.length_after(n) for n in self.nodes.values() if node in n.inputs), default=0)


def file_identity(path: str) -> list[Any]:
    """Size and modification mark of each file a path or glob names: what makes an outside file 'the same'."""
    fs, root = fsspec.core.url_to_fs(path)
    found = sorted(fs.glob(root)) if "*" in root else [root]
    identity = []
    for name in found:
        try:
            info = fs.info(name)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: correct the path in the recipe or bring the file.") from None
        identity.append(
            [os.path.basename(name), info.get("size"), str(info.get("ETag") or info.get("mtime") or info.get("LastModified") or "")]
        )
    return identity


class Store:
    """Where artifacts and unfinished work lie: `RUNS/artifacts/STAGE/FINGERPRINT` and `RUNS/work/STAGE/FINGERPRINT`."""

    def __init__(self, url: str) -> None:
        self.root = Folder(os.path.abspath(url) if "://" not in url else url)

    def artifact(self, node: Node) -> Folder:
        return self.root.child(f"artifacts/{node.name}/{node.fingerprint[:SHOWN_FINGERPRINT]}")

    def work(self, node: Node) -> Folder:
        return self.root.child(f"work/{node.name}/{node.fingerprint[:SHOWN_FINGERPRINT]}")

    def find(self, node: Node) -> Artifact | None:
        """The finished artifact of a node, or None; UserError when its manifest was changed."""
        folder = self.artifact(node)
        return Artifact.open(folder) if folder.exists(MANIFEST) else None

    def state(self, node: Node, recipe: str) -> State:
        work = self.work(node)
        if self.artifact(node).exists(MANIFEST):
            return "done"
        if _running(work):
            return "running"
        if work.exists("failure.json"):
            return "failed"
        others = self.root.child(f"artifacts/{node.name}")
        for fingerprint in others.folders():
            manifest = read_json_or_none(others, f"{fingerprint}/{MANIFEST}")
            if manifest and manifest.get("recipe") == recipe:
                return "stale"
        return "missing"


def _running(work: Folder) -> bool:
    """Whether somebody builds here: known of this machine; of another one as far as its clock agrees with ours (only `mav status` asks)."""
    seat = top(work.child(LEASE))
    if seat is None or seat.released or (here := held_here(seat)) is False:
        return False
    beat = read_json_or_none(work, "heartbeat.json")
    return bool(here or (beat and abs(time.time() - beat["time"]) < SILENT_SECONDS))


def read_json_or_none(folder: Folder, name: str) -> Any:
    """A JSON file that another process may be replacing or removing right now."""
    try:
        return folder.read_json(name)
    except (FileNotFoundError, ValueError):
        return None


@dataclass
class Run:
    """One run of a plan: the store, the screen, and what is started only when the first stage needs it."""

    recipe: Recipe
    store: Store
    screen: Screen
    services: ExitStack
    alone: bool = True  # False in a job of a cluster: other stages of the same run are other jobs
    stopping: threading.Event = field(default_factory=threading.Event)  # set once the run is being stopped: nothing starts anew
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
            raise UserError(f"RAY_ADDRESS={job_server()} takes whole stages; this needs a cluster to join: say host:6379, or unset it.")
        with self._lock:
            self.go_on()
            if self._ray is None:
                self._ray = self.services.enter_context(ray_cluster(self.recipe.cluster))
            return self._ray

    def serve_world(self, world: Folder) -> None:
        """Serves the demo world on loopback until the run ends; jobs of one cluster take turns, as each takes its server away."""
        from mav.data.world_server import WorldServer

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
