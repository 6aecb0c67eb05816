"""The comments beside a section's fields, for error messages, and the JSON Schema of a recipe, which has them too.

    mav schema > mav/recipes/recipe.schema.json    # after a change of a section; a test compares

Editors complete and check a recipe whose first line names the schema, as the shipped ones do.
"""

import ast
import dataclasses
import functools
import inspect
import textwrap
import typing
from typing import Any

from mav.recipes.recipe import Recipe
from mav.recipes.sections import Operational


def comment_of(recipe: Any, key: str) -> str:
    """Returns the comment of a field by its key within a recipe, such as `cluster.attempts`; '' without one."""
    value = recipe
    *sections, last = key.split(".")
    for name in sections:
        value = getattr(value, name, None)
    return comments(value.__class__).get(last, "") if dataclasses.is_dataclass(value) else ""


@functools.cache
def comments(section: Any) -> dict[str, str]:
    """Returns the comment of each field that has one: the lines above it, then what follows it in its line."""
    lines = textwrap.dedent(inspect.getsource(section)).splitlines()
    (declared,) = ast.parse("\n".join(lines)).body
    assert isinstance(declared, ast.ClassDef)
    found = {}
    for field in declared.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.end_lineno:
            _, _, beside = lines[field.end_lineno - 1][field.end_col_offset or 0 :].partition("#")
            above: list[str] = []
            while (line := lines[field.lineno - 2 - len(above)].strip()).startswith("#"):
                above.insert(0, line.lstrip("# "))
            if text := " ".join([*above, beside.strip()]).strip():
                found[field.target.id] = text
    return found


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a recipe's file. No key is required, since `extends` may give all of them."""
    from pydantic import TypeAdapter

    schema: dict[str, Any] = TypeAdapter(Recipe).json_schema()
    sections: dict[str, Any] = {kind.__name__: kind for kind in _sections(Recipe)}
    for name, kind in sorted(sections.items()):
        described = schema if kind is Recipe else schema["$defs"][name]
        described.pop("required", None)
        described["description"] = " ".join((kind.__doc__ or "").split())
        hints, about_of = typing.get_type_hints(kind, include_extras=True), comments(kind)
        for field, about in described["properties"].items():
            marks = [each for each in getattr(hints[field], "__metadata__", ()) if isinstance(each, Operational)]
            texts = [about_of.get(field, ""), *("enters no fingerprint" for mark in marks)]
            if text := "; ".join(text for text in texts if text):
                about["description"] = text
    schema["properties"] = {
        "extends": {"type": "string", "description": "a shipped recipe, or a path relative to this file"},
        **schema["properties"],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _sections(kind: Any) -> set[type[Any]]:
    """Returns a section and all that are within it."""
    found = {kind}
    for hint in typing.get_type_hints(kind).values():
        for each in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(each) and isinstance(each, type):
                found |= _sections(each)
    return found
