"""A stage: a function from artifacts to one artifact, its fingerprint, its place in the graph and in storage.

    @stage("image-embed", sections=("clip", "image_embed"), version=1)
    def image_embed(job: Job) -> Outcome: ...

Calling the decorated stage with a `Plan` adds it to the graph; nothing runs. The plan knows every fingerprint before any work is
done, because a fingerprint covers what a stage is told (its sections of the recipe, its version, its inputs' fingerprints, the
identity of outside files it names), never what it makes. `flows.engine.build` then makes the artifact, or finds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import fsspec

from mav.errors import UserError, nearest
from mav.recipes import Recipe, digest


@dataclass(frozen=True)
class Outcome:
    """What a stage says of its artifact beside the files: balanced row counts, and measured values."""

    counts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


Body = Callable[[Any], Outcome]  # called with the stage's `flows.engine.run.Job`


@dataclass(frozen=True)
class Stage:
    """The definition of one stage. `about` is its docstring's first line, shown in the Prefect UI and the report."""

    name: str
    version: int
    sections: tuple[str, ...]
    body: Body
    about: str
    gpu: bool = False  # whether it asks for `cluster.gpus_per_worker`

    @property
    def tags(self) -> list[str]:
        """What the Prefect UI filters by: images, videos, training or evaluation, and gpu."""
        return [self.body.__module__.rpartition(".")[2], *(["gpu"] if self.gpu else [])]

    def __call__(self, plan: Graph, *inputs: Node | None) -> Node:
        """Adds the stage to a plan; `None` inputs (a demo world that is not there) are left out."""
        return plan.add(self, tuple(node for node in inputs if node is not None))


STAGES: dict[str, Stage] = {}


def stage(
    name: str, *, sections: tuple[str, ...], version: int = 1, gpu: bool = False
) -> Callable[[Body], Stage]:
    """Registers a function as a stage. Raise `version` when its code would make other bytes of the same recipe."""

    def register(body: Body) -> Stage:
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


class Graph:
    """The graph of one recipe, in the order its stages were added, with all fingerprints."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.nodes: dict[str, Node] = {}

    def add(self, stage: Stage, inputs: tuple[Node, ...]) -> Node:
        outside = {
            f"{key}:{path}": file_identity(path)
            for key, path in self.recipe.paths()
            if key.split(".")[0] in stage.sections
        }
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
            [
                os.path.basename(name),
                info.get("size"),
                str(info.get("ETag") or info.get("mtime") or info.get("LastModified") or ""),
            ]
        )
    return identity
