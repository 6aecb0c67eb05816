"""The templates of the HTML pages, which lie in this folder."""

import re
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import jinja2


def rendered(name: str, context: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None) -> bytes:
    """Returns a page. What it is given is escaped, and a name that it does not know ends it.

    filters: further ones, beside `number` and `counted`. No line of the page ends between a number and its sign.
    """
    files = resources.files(__package__)
    loader = jinja2.FunctionLoader(lambda name: files.joinpath(name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "counted": counted} | dict(filters or {})
    page = environment.get_template(name).render(context)
    return re.sub(r"(?<=\d) %", "\u00a0%", page).encode()


def number(value: int) -> str:
    """Returns a whole number with thin spaces between its thousands."""
    return f"{value:,}".replace(",", "\u202f")


def counted(value: int, things: str) -> str:
    """Returns a number of things, whose name is given in the plural: 1 clip, 2 clips."""
    return f"{number(value)} {things.removesuffix('s') if value == 1 else things}"
