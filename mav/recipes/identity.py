"""Which values of a recipe decide what a stage makes, apart from those that only say how it is made.

A stage names what it reads: sections (`cascade`), fields (`cascade.base_size`) or `seed`. Of these every field counts
but the ones whose type is marked (`mav.recipes.sections.Operational`). `what` is all that a fingerprint takes from a
recipe, and all that a checkpoint must have in common with the training that continues it.
"""

import dataclasses
import functools
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mav.recipes.recipe import Recipe
from mav.recipes.sections import Operational, to_plain

COUNTS = Operational(counts_if=lambda section: True)


@dataclass(frozen=True)
class Value:
    """One value of a recipe: its key, as plain data, and whether it counts or is a deadline."""

    key: str
    value: Any
    counts: bool
    deadline: bool


def what(recipe: Recipe, reads: Iterable[str]) -> dict[str, Any]:
    """Returns the values that decide what a stage with these `reads` makes, by section, as plain data."""
    tree: dict[str, Any] = {}
    for value in values(recipe, reads):
        if value.counts:
            *sections, last = value.key.split(".")
            place = tree
            for name in sections:
                place = place.setdefault(name, {})
            place[last] = value.value
    return tree


def how(recipe: Recipe, reads: Iterable[str]) -> dict[str, Any]:
    """Returns the values that only say how the stage makes it, by key: deadlines, and operational ones."""
    return {value.key: value.value for value in values(recipe, reads) if not value.counts}


def deadlines(recipe: Recipe, reads: Iterable[str]) -> dict[str, Any]:
    """Returns the values, by key, that decide which rows come through in time."""
    return {value.key: value.value for value in values(recipe, reads) if value.deadline}


def flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Returns the values of `what` by key, such as `cascade.frames`."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{above}.{name}" if above else name
        found |= flat(value, key) if isinstance(value, dict) else {key: value}
    return found


def covers(reads: Iterable[str], key: str) -> bool:
    """Says whether a key is one of the `reads`, or within one."""
    return any(key == name or key.startswith(f"{name}.") for name in reads)


def values(recipe: Recipe, reads: Iterable[str] | None = None) -> Iterator[Value]:
    """Yields every value of the named parts, or of the whole recipe, sorted by key."""
    wanted = None if reads is None else tuple(reads)
    found = {value.key: value for value in _walk("", recipe, COUNTS, wanted)}
    for name in wanted or ():
        if not any(covers([name], key) for key in found):
            raise ValueError(f"{name!r} names no section or field of a recipe")
    return iter(found[key] for key in sorted(found))


def _walk(
    key: str, value: Any, mark: Operational, wanted: tuple[str, ...] | None, holder: Any = None
) -> Iterator[Value]:
    """Yields the values below a key, without the parts that are not wanted; None wants all."""
    if wanted is not None and key and not covers(wanted, key) and not any(covers([key], name) for name in wanted):
        return
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for name, own in _marks(value.__class__).items():
            below = own if mark is COUNTS else mark  # what a section's mark says holds for all that is in it
            yield from _walk(f"{key}.{name}" if key else name, getattr(value, name), below, wanted, value)
    else:
        yield Value(key, to_plain(value), mark.counts_if(holder), mark.deadline)


@functools.cache
def _marks(section: type[Any]) -> dict[str, Operational]:
    """Returns the mark of each field of a section."""
    hints = typing.get_type_hints(section, include_extras=True)
    marks = {}
    for field in dataclasses.fields(section):
        extras = getattr(hints[field.name], "__metadata__", ())
        marks[field.name] = next((each for each in extras if isinstance(each, Operational)), COUNTS)
    return marks
