"""Stages and their graph.

A stage is a function from artifacts to one artifact, with a fingerprint that is known before it runs.

    @stage("image-embed", reads=("image_embed",), version=1)
    def image_embed(job: Job) -> Outcome: ...

Calling the decorated stage with a `Graph` adds it to the graph; nothing runs. A fingerprint covers everything that goes
into a stage and decides what it makes (what it reads of the recipe, see `mav.recipes.identity`, its version, its
inputs' fingerprints, the identity of outside files that it names) and nothing that comes out of it.
`flows.engine.build` makes the artifact, or finds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mav.errors import UserError, nearest
from mav.recipes import Recipe, digest, what
from mav.recipes.identity import covers
from mav.storage import Folder
from mav.storage.patterns import matching_paths
from mav.storage.urls import storage_of


@dataclass(frozen=True)
class Outcome:
    """What a stage returns about its artifact besides the files: balanced row counts, and measured values."""

    counts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


Body = Callable[[Any], Outcome]  # is called with the stage's `flows.engine.run.Job`
# The sections and fields of the recipe that a stage reads; a function of the recipe where that depends on it.
Reads = tuple[str, ...] | Callable[[Recipe], tuple[str, ...]]


@dataclass(frozen=True)
class Retry:
    """How a stage that fetches rows tries the failed ones again (`mav rerun --failed`)."""

    may_pass: Callable[[str], bool]  # whether a row that failed for this reason may come through another day
    work: Callable[[Any], Any]  # from the stage's job to its work on a shard
    # From that, the finished artifact's folder and the number of the pass, to the work of the pass.
    again: Callable[[Any, Folder, int], Any]


@dataclass(frozen=True)
class Stage:
    """The definition of one stage. `about` is its docstring's first line, shown in the Prefect UI and the report."""

    name: str
    version: int
    reads: Reads
    body: Body
    about: str
    gpu: bool = False  # whether it asks for `cluster.gpus_per_worker`
    retry: Retry | None = None

    @property
    def tags(self) -> list[str]:
        """What the Prefect UI filters by: the module of the stage, such as images or training, and gpu."""
        return [self.body.__module__.rpartition(".")[2], *(["gpu"] if self.gpu else [])]

    def reads_of(self, recipe: Recipe) -> tuple[str, ...]:
        """Returns what the stage reads of this recipe."""
        return self.reads(recipe) if callable(self.reads) else self.reads

    def __call__(self, graph: Graph, *inputs: Node | None) -> Node | None:
        """Adds the stage to a graph, or leaves it out and returns None where one of its inputs is left out."""
        there = tuple(node for node in inputs if node is not None)
        if len(there) < len(inputs):
            graph.leave_out(self.name, "it needs a stage that is left out")
            return None
        return graph.add(self, there)


STAGES: dict[str, Stage] = {}


def stage(
    name: str, *, reads: Reads, version: int = 1, gpu: bool = False, retry: Retry | None = None
) -> Callable[[Body], Stage]:
    """Registers a function as a stage. Raise `version` when its code makes other bytes of the same recipe."""

    def register(body: Body) -> Stage:
        if name in STAGES and STAGES[name].body.__qualname__ != body.__qualname__:
            raise ValueError(f"two stages are called {name!r}")
        STAGES[name] = Stage(name, version, reads, body, (body.__doc__ or name).strip().splitlines()[0], gpu, retry)
        return STAGES[name]

    return register


@dataclass(frozen=True, eq=False)
class Node:
    """A stage in a graph: its definition, its inputs, what else decides what it makes, and the fingerprint of all.

    config: the recipe's values that count, by section. outside: the identity of each outside file that the recipe
    names; None for one that is absent.
    """

    stage: Stage
    inputs: tuple[Node, ...]
    config: dict[str, Any]
    outside: dict[str, Any]
    fingerprint: str

    @property
    def name(self) -> str:
        return self.stage.name

    def upstream(self) -> Iterator[Node]:
        """Yields every node that this one needs, the nearest first, each once."""
        seen: set[str] = set()
        queue = list(self.inputs)
        while queue:
            node = queue.pop(0)
            if node.name not in seen:
                seen.add(node.name)
                yield node
                queue += node.inputs


class Graph:
    """The stages of one recipe, in the order in which they were added, with all fingerprints.

    Stages without a source, and all that need them, are left out: `left_out` says why, by name.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.nodes: dict[str, Node] = {}
        self.left_out: dict[str, str] = {}

    def add(self, stage: Stage, inputs: tuple[Node, ...]) -> Node:
        """Adds a stage that is built from these inputs."""
        reads = stage.reads_of(self.recipe)
        config = what(self.recipe, reads)
        outside = {f"{key}:{path}": file_identity(path) for key, path in self.recipe.paths() if covers(reads, key)}
        above = {node.name: node.fingerprint for node in inputs}
        identity = {"stage": stage.name, "version": stage.version, "config": config, "inputs": above}
        fingerprint = digest(identity | {"outside": outside})
        self.nodes[stage.name] = node = Node(stage, inputs, config, outside, fingerprint)
        return node

    def leave_out(self, name: str, reason: str) -> None:
        """Records that the graph goes without a stage, and why."""
        self.left_out[name] = reason

    def node(self, name: str) -> Node:
        """Returns the stage of this name. Raises UserError when there is none, or when it is left out."""
        if name in self.left_out:
            reason = f"{name} is left out of recipe {self.recipe.name}, because {self.left_out[name]}"
            raise UserError(f"{reason}: `mav status` shows what it lacks, which the recipe must name.")
        if name not in self.nodes:
            meant = nearest(name, self.nodes)
            remedy = f"did you mean {meant}?" if meant else f"its stages are {', '.join(self.nodes)}."
            raise UserError(f"There is no stage {name!r} in recipe {self.recipe.name}: {remedy}")
        return self.nodes[name]

    def until(self, name: str) -> list[Node]:
        """Returns the stage and all that it needs, in the graph's order."""
        last = self.node(name)
        wanted = {last.name, *(node.name for node in last.upstream())}
        return [node for node in self.nodes.values() if node.name in wanted]

    def downstream(self, name: str) -> list[Node]:
        """Returns every stage that needs this one, in the graph's order."""
        self.node(name)
        return [node for node in self.nodes.values() if name in {up.name for up in node.upstream()}]

    def length_after(self, node: Node) -> int:
        """Returns the number of stages on the longest path from here to an end: the longest starts first."""
        return max((1 + self.length_after(n) for n in self.nodes.values() if node in n.inputs), default=0)


def require_files(nodes: Iterable[Node]) -> None:
    """Raises UserError that names every outside file which these stages read and which is not there."""
    if absent := absent_files(nodes):
        named = ", ".join(f"`{key}` names {path!r}" for key, path in absent)
        one = len(absent) == 1
        told = "which does not exist: correct the path" if one else "which do not exist: correct the paths"
        raise UserError(f"{named}, {told} in the recipe or bring {'the file' if one else 'the files'}.")


def absent_files(nodes: Iterable[Node]) -> list[tuple[str, str]]:
    """Returns (key, path) of every outside file that these stages read and that is not there."""
    absent = dict.fromkeys(place for node in nodes for place, identity in node.outside.items() if identity is None)
    return [(key, path) for key, _, path in (place.partition(":") for place in absent)]


def file_identity(path: str) -> list[Any] | None:
    """Returns the size and modification mark of each file of a path or glob; None when there is no such file."""
    identity = []
    for url in matching_paths(path):
        fs, name = storage_of(url)
        try:
            info = fs.info(name)
        except FileNotFoundError:
            return None
        mark = str(info.get("ETag") or info.get("mtime") or info.get("LastModified") or "")
        identity.append([os.path.basename(name), info.get("size"), mark])
    return identity or None
