"""The templates of the HTML pages, which lie in this folder."""

from importlib import resources

import jinja2


def templates() -> jinja2.Environment:
    """Returns an environment that escapes what it is given, and that ends at a name it does not know."""
    files = resources.files(__package__)
    loader = jinja2.FunctionLoader(lambda name: files.joinpath(name).read_text(encoding="utf-8"))
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
