"""The comments beside a section's fields, which say what a value means: for error messages and the JSON Schema."""

import ast
import dataclasses
import functools
import inspect
import textwrap
from typing import Any


def comment_of(recipe: Any, key: str) -> str:
    """Returns the comment of a field by its key within a recipe, such as `cluster.attempts`; '' without one."""
    value = recipe
    *sections, last = key.split(".")
    for name in sections:
        value = getattr(value, name, None)
    return comments(value.__class__).get(last, "") if dataclasses.is_dataclass(value) else ""


@functools.cache
def comments(section: type[Any]) -> dict[str, str]:
    """Returns the comment of each field that has one: what follows it in its line, or else the lines above it."""
    lines = textwrap.dedent(inspect.getsource(section)).splitlines()
    (declared,) = ast.parse("\n".join(lines)).body
    assert isinstance(declared, ast.ClassDef)
    found = {}
    for field in declared.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.end_lineno:
            _, mark, beside = lines[field.end_lineno - 1][field.end_col_offset or 0 :].partition("#")
            above: list[str] = []
            while (line := lines[field.lineno - 2 - len(above)].strip()).startswith("#"):
                above.insert(0, line.lstrip("# "))
            if text := beside.strip() if mark else " ".join(above):
                found[field.target.id] = text
    return found
