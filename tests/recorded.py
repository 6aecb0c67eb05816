"""A recipe that records which of its values are read, and stages that run in this process, for tests of both."""

import dataclasses
import functools
import json
import operator
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from flows import demo, evaluation, images, training, videos
from flows.engine.build import build
from flows.engine.markers import Markers
from flows.engine.run import Job, Run
from flows.engine.stage import Node, Outcome
from flows.engine.store import Store
from flows.services.terminal import Terminal
from mav.recipes import Recipe, to_plain
from mav.recipes.identity import Value
from mav.recipes.schema import json_schema

# To write a section down, to copy it or to ask for its marks is no use of its values.
WHOLE = {"dataclasses", "copy", "mav.recipes.identity", "mav.recipes.sections", "mav.recipes.training"}


def recorded(value: Any, reads: set[str], key: str = "") -> Any:
    """Returns a section that is like this one and adds the key of every value that is read to `reads`."""
    kind = type(value)
    names = {field.name for field in dataclasses.fields(kind)}

    def read(self: Any, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name not in names:
            return found
        inner = f"{key}.{name}" if key else name
        if dataclasses.is_dataclass(found):
            return found if type(found).__name__.startswith("Recorded") else recorded(found, reads, inner)
        frame = sys._getframe(1)
        if frame.f_globals.get("__name__") not in WHOLE and frame.f_code.co_filename != "<string>":
            reads.add(inner)
        return found

    made = object.__new__(type(f"Recorded{kind.__name__}", (kind,), {"__getattribute__": read}))
    made.__dict__.update(value.__dict__)
    return made


def run_here(patch: pytest.MonkeyPatch) -> None:
    """Makes the stages' bodies run in this process, without Ray: one shard after the other."""

    def on_ray(job: Job, function: Callable[..., Any], *arguments: Any, **resources: Any) -> Any:
        return function(*arguments, lambda values: None)

    def shard_map(job: Job, work: Any, names: list[str], **options: Any) -> Outcome:
        markers = Markers.of(job)
        for name in sorted(names):
            made = work(name)
            markers.commit(name, made.counts, made.files, made.places, fsync=False)
        return Outcome(markers.compact(sorted(names)), {"shards": len(names)})

    def trained(job: Job, orders: training.Orders) -> dict[str, Any]:
        return training._run(orders, lambda values: None)

    for module in (demo, evaluation):
        patch.setattr(module, "run_on_ray", on_ray)
    for module in (images, videos, sys.modules["flows.engine.shard_map"]):
        patch.setattr(module, "shard_map", shard_map)
    patch.setattr(training, "_one_worker", trained)


def reads_of_bodies(recipe: Recipe, nodes: list[Node], runs: str) -> dict[str, set[str]]:
    """Builds these stages in this process and returns the keys that each body reads, by stage."""
    found: dict[str, set[str]] = {}
    with ExitStack() as services:
        run = Run(recipe, Store(runs), Terminal(), services)
        for node in nodes:
            found[node.name] = set()
            run.recipe = recorded(recipe, found[node.name])
            build(node, run)
    return found


def other(value: Any) -> Any:
    """Returns another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.13
    if isinstance(value, list) and value and isinstance(value[-1], float):  # often a pair
        return [*value[:-1], other(value[-1])]
    return [*value, *(value[-1:] or ["other"])] if isinstance(value, list) else f"{value}x"


def with_other(recipe: Recipe, key: str) -> Recipe:
    """Returns the recipe with another value at this key, whether or not it is a good one."""
    return replaced(recipe, key, other(to_plain(operator.attrgetter(key)(recipe))))


def replaced(section: Any, key: str, value: Any) -> Any:
    """Returns the section with this value at the key."""
    name, _, rest = key.partition(".")
    new = replaced(getattr(section, name), rest, value) if rest else value
    return dataclasses.replace(section, **{name: tuple(new) if isinstance(new, list) else new})


def other_tree(key: str, value: Any) -> Any:
    """Returns another value, and of a choice of words another of its words."""
    words = choices().get(key, [])
    return next((word for word in words if word != value), None) if words else other(value)


@functools.cache
def choices() -> dict[str, list[Any]]:
    """Returns the words that may stand at a key, of those where only some may."""
    schema = json_schema()

    def walk(part: dict[str, Any], above: str) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for name, about in part.get("properties", {}).items():
            key = f"{above}.{name}" if above else name
            links = [each["$ref"] for each in (about, *about.get("anyOf", ())) if "$ref" in each]
            found |= {key: about["enum"]} if "enum" in about else {}
            for link in links:
                found |= walk(schema["$defs"][link.rpartition("/")[2]], key)
        return found

    return walk(schema, "")


def other_setting(value: Value) -> list[str]:
    """Returns `key=value` with another valid value; nothing for a choice of words, or for the recipe's name."""
    text = isinstance(value.value, str)
    if value.key == "name" or (text and not value.key.endswith(("about", "contact"))):
        return []
    return [f"{value.key}={json.dumps(other(value.value))}"]
