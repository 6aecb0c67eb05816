"""Reads recipes: a shipped name or a YAML file, `extends` and overrides.

Every check is made here. A mistake raises UserError with one sentence that names the key.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import yaml

from mav.errors import UserError, nearest
from mav.recipes.recipe import Recipe


def shipped_recipes() -> list[str]:
    """Returns the names of the recipes that come with the package."""
    return sorted(f.name[: -len(".yaml")] for f in resources.files("mav.recipes").iterdir() if f.name.endswith(".yaml"))


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a shipped recipe by name, or a YAML file by path; `overrides` are `key.sub=value` with YAML values.

    A file may say `extends: NAME` and give only what differs. Without a `name`, a recipe has the name of its file.
    Raises UserError with one sentence that names the key.
    """
    tree = _read_tree(name_or_path, seen=())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override!r} is not of the form key=value, for example --set generate.count=4.")
        _assign(tree, key.split("."), _parse_yaml(text, f"the value of --set {key}"), override)
    return recipe_from_dict(tree, name_or_path)


def recipe_from_dict(tree: Mapping[str, Any], source: str = "the recipe") -> Recipe:
    """Checks plain data and returns the recipe. Raises UserError that names the first wrong key."""
    from pydantic import TypeAdapter, ValidationError

    try:
        recipe = TypeAdapter(Recipe).validate_python(dict(tree))
    except ValidationError as error:
        # A misspelt key comes first: its right spelling is then reported as missing.
        first = min(error.errors(), key=lambda each: each["type"] != "unexpected_keyword_argument")
        key = ".".join(str(part) for part in first["loc"])
        given = f" (it says {first['input']!r})" if not isinstance(first["input"], dict) else ""
        meant = nearest(str(first["loc"][-1]), _siblings(first["loc"]))
        hint = f"did you mean {meant}?" if meant else "check its spelling"
        what = {
            "unexpected_keyword_argument": f"is not a key of this section: {hint}",
            "missing": "is missing and has no default",
            "missing_argument": "is missing and has no default",
        }.get(first["type"], f"is wrong: {first['msg'][0].lower()}{first['msg'][1:]}")
        more = f" {error.error_count() - 1} more like it follow." if error.error_count() > 1 else ""
        raise UserError(f"Recipe {source}: `{key}` {what}{given}{'' if what.endswith('?') else '.'}{more}") from None
    for holds, rule in _rules(recipe):
        if not holds:
            raise UserError(f"Recipe {source}: {rule}.")
    for key, path in recipe.paths():
        if "://" not in path and "*" not in path and not os.path.exists(path):
            remedy = "correct the path or bring the file"
            raise UserError(f"Recipe {source}: `{key}` names {path!r}, which does not exist: {remedy}.")
    return recipe


def _siblings(place: Sequence[int | str]) -> list[str]:
    """Returns the keys of the section that holds this key, where the demo has such a section."""
    section: Any = load_recipe("demo")
    for part in place[:-1]:
        section = section[0] if isinstance(section, tuple) and section else getattr(section, str(part), None)
    return [field.name for field in dataclasses.fields(section)] if dataclasses.is_dataclass(section) else []


def _rules(recipe: Recipe) -> Iterator[tuple[bool, str]]:
    """Yields (whether it holds, sentence) of every rule that a type cannot express."""
    cascade, workers = recipe.cascade, recipe.cluster.workers
    yield cascade.frames >= 2, "`cascade.frames` must be at least 2"
    yield cascade.frame_skip >= 1, "`cascade.frame_skip` must be at least 1"
    growing = cascade.base_size < cascade.low_size < cascade.high_size
    yield growing, "`cascade.base_size`, `low_size` and `high_size` must grow"
    for name in ("punsafe_threshold", "pwatermark_threshold"):
        yield 0 <= getattr(recipe.screening, name) <= 1, f"`screening.{name}` is a probability: 0 to 1"
    for name in ("image_download", "video_shards"):
        for floor in ("success_floor", "shard_floor"):
            yield 0 <= getattr(getattr(recipe, name), floor) <= 1, f"`{name}.{floor}` is a share: 0 to 1"
    for name in (f.name for f in dataclasses.fields(recipe) if f.name.startswith("train_")):
        training, key = getattr(recipe, name).optimisation, f"`{name}.optimisation"
        yield training.samples >= training.batch_size >= 1, f"{key}.samples` must be at least one batch"
        whole = training.batch_size % (training.accumulation * workers) == 0
        yield whole, f"{key}.batch_size` must be a multiple of accumulation times cluster.workers"
    for key, what in (("image_metadata", "parquet files"), ("video_shards", "video lists")):
        available = bool(recipe.world or getattr(recipe, key).sources)
        yield available, f"`{key}.sources` is empty and there is no `world`: name your {what}"


def _read_tree(name_or_path: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """Reads a file and all that it extends; `seen` are the files that led here."""
    if name_or_path in seen:
        raise UserError(f"Recipe {name_or_path} extends itself through {' -> '.join(seen)}: break the circle.")
    known = shipped_recipes()
    if name_or_path in known:
        text = resources.files("mav.recipes").joinpath(f"{name_or_path}.yaml").read_text()
    else:
        try:
            with open(name_or_path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            meant, reason = nearest(name_or_path, known), getattr(error, "strerror", None) or error
            remedy = f"did you mean {meant}?" if meant else f"give a YAML file or one of {', '.join(known)}."
            raise UserError(f"No recipe {name_or_path!r} ({reason}): {remedy}") from None
    tree, what = _parse_yaml(text, f"recipe {name_or_path}"), f"Recipe {name_or_path} is not a mapping of sections"
    if not isinstance(tree, dict):
        raise UserError(f"{what}: start from a shipped one ({', '.join(known)}).")
    # The name is not inherited: reports and `mav clean` identify a recipe by it.
    tree = {"name": os.path.basename(name_or_path).removesuffix(".yaml"), **tree}
    parent = tree.pop("extends", None)
    return _merge(_read_tree(str(parent), (*seen, name_or_path)), tree) if parent else tree


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice: YAML libraries forget the first without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    first = lines[key.value]
                    raise yaml.YAMLError(f"`{key.value}` stands in line {first} and again in line {line}: keep one.")
                lines[key.value] = line
        return node


def _parse_yaml(text: str, what: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from None


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with the values of `over`, section by section."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _assign(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    """Sets one value of the tree in place and makes the sections on the way."""
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {override}: {key!r} is a value, not a section.")
    tree[keys[-1]] = value
