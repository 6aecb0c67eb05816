"""Stages and their graph.

A stage is a function from artifacts to one artifact, with a fingerprint that is known before it runs.

    @stage("image-embed", sections=("clip", "image_embed"), version=1)
    def image_embed(job: Job) -> Outcome: ...

Calling the decorated stage with a `Graph` adds it to the graph; nothing runs. A fingerprint covers everything that goes
into a stage (its sections of the recipe, its version, its inputs' fingerprints, the identity of outside files that it
names) and nothing that comes out of it. `flows.engine.build` makes the artifact, or finds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import fsspec

from mav.errors import UserError, nearest
from mav.recipes import Recipe, digest
from mav.storage import Folder
from mav.storage.patterns import matching_paths


@dataclass(frozen=True)
class Outcome:
    """What a stage returns about its artifact besides the files: balanced row counts, and measured values."""

    counts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


Body = Callable[[Any], Outcome]  # is called with the stage's `flows.engine.run.Job`


@dataclass(frozen=True)
class Retry:
    """How a stage that fetches rows tries the failed ones again (`mav rerun --failed`)."""

    may_pass: Callable[[str], bool]  # whether a row that failed for this reason may come through another day
    work: Callable[[Any], Any]  # from the stage's job to its work on a shard
    again: Callable[
        [Any, Folder, int], Any
    ]  # from that, the finished artifact's folder and the pass, to a retry's work


@dataclass(frozen=True)
class Stage:
    """The definition of one stage. `about` is its docstring's first line, shown in the Prefect UI and the report."""

    name: str
    version: int
    sections: tuple[str, ...]
    body: Body
    about: str
    gpu: bool = False  # whether it asks for `cluster.gpus_per_worker`
    retry: Retry | None = None

    @property
    def tags(self) -> list[str]:
        """What the Prefect UI filters by: the module of the stage, such as images or training, and gpu."""
        return [self.body.__module__.rpartition(".")[2], *(["gpu"] if self.gpu else [])]

    def __call__(self, graph: Graph, *inputs: Node | None) -> Node:
        """Adds the stage to a graph. Inputs that are None (a demo world, in a recipe without one) are left out."""
        return graph.add(self, tuple(node for node in inputs if node is not None))


STAGES: dict[str, Stage] = {}


def stage(
    name: str, *, sections: tuple[str, ...], version: int = 1, gpu: bool = False, retry: Retry | None = None
) -> Callable[[Body], Stage]:
    """Registers a function as a stage. Raise `version` when its code makes other bytes of the same recipe."""

    def register(body: Body) -> Stage:
        if name in STAGES and STAGES[name].body.__qualname__ != body.__qualname__:
            raise ValueError(f"two stages are called {name!r}")
        STAGES[name] = Stage(name, version, sections, body, (body.__doc__ or name).strip().splitlines()[0], gpu, retry)
        return STAGES[name]

    return register


@dataclass(frozen=True, eq=False)
class Node:
    """A stage in a graph: its definition, its inputs and its fingerprint."""

    stage: Stage
    inputs: tuple[Node, ...]
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
    """The stages of one recipe, in the order in which they were added, with all fingerprints."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.nodes: dict[str, Node] = {}

    def add(self, stage: Stage, inputs: tuple[Node, ...]) -> Node:
        """Adds a stage that is built from these inputs."""
        paths = [(key, path) for key, path in self.recipe.paths() if key.split(".")[0] in stage.sections]
        identity = {
            "stage": stage.name,
            "version": stage.version,
            "seed": self.recipe.seed,
            "config": self.recipe.part(stage.sections),
            "inputs": {node.name: node.fingerprint for node in inputs},
            "outside": {f"{key}:{path}": file_identity(path) for key, path in paths},
        }
        self.nodes[stage.name] = node = Node(stage, inputs, digest(identity))
        return node

    def node(self, name: str) -> Node:
        """Returns the stage of this name. Raises UserError when there is none."""
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


def file_identity(path: str) -> list[Any]:
    """Returns the size and modification mark of each file of a path or glob. Raises UserError without a file."""
    identity = []
    for url in matching_paths(path):
        fs, name = fsspec.core.url_to_fs(url)
        try:
            info = fs.info(name)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: correct the path in the recipe or bring the file.") from None
        mark = str(info.get("ETag") or info.get("mtime") or info.get("LastModified") or "")
        identity.append([os.path.basename(name), info.get("size"), mark])
    return identity
