"""The shipped recipes read well: sections in the graph's order, each with its purpose, and no value without effect."""

import copy
import dataclasses
import inspect
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest

from mav import recipes
from mav.recipes import Recipe
from mav.recipes.reader import RecipeError, _merge, _read_tree, recipe_from_dict, shipped_recipes
from mav.recipes.schema import json_schema
from mav.recipes.yaml_file import parse_yaml

FOLDER = resources.files("mav.recipes")


def _leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key)


@pytest.mark.parametrize("name", ["demo", "tiny"])  # that of the paper says its sizes even where they are the defaults
def test_no_value_is_what_it_would_be_without(name: str) -> None:
    own = parse_yaml(FOLDER.joinpath(f"{name}.yaml").read_text(), name)
    parent = _read_tree(own.pop("extends"), ()) if "extends" in own else {}
    whole, idle = recipe_from_dict(_merge(parent, own)), []
    for path in _leaves(own):
        less = copy.deepcopy(own)
        place = less
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        try:
            if recipe_from_dict(_merge(parent, less)) == whole:
                idle.append(".".join(path))
        except RecipeError:
            continue
    assert idle == []


@pytest.mark.parametrize("name", shipped_recipes())
def test_sections_are_in_the_graph_s_order_below_a_comment(name: str) -> None:
    lines = FOLDER.joinpath(f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=recipe.schema.json"
    sections = [line.partition(":")[0] for line in lines if line[:1].isalpha()]
    order = ["extends", *(field.name for field in dataclasses.fields(Recipe))]
    assert sections == sorted(sections, key=order.index)
    for section in sections[sections.index("about") + 1 :]:
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{section}:"))
        assert lines[at - 1].startswith("#"), f"{section} has no comment of its purpose"


def test_the_shipped_schema_is_that_of_the_sections() -> None:
    assert json.loads(FOLDER.joinpath("recipe.schema.json").read_text()) == json_schema()


def test_no_comment_of_a_section_is_lost() -> None:
    """Editors and error messages show what stands beside a field or above it."""
    for name, about in json_schema()["$defs"].items():
        shown = " ".join(field.get("description", "") for field in about["properties"].values())
        lines = inspect.getsource(getattr(recipes, name)).partition("\n    @property")[0].splitlines()
        for comment in (line.partition("#")[2].strip() for line in lines):
            assert comment in shown, name
