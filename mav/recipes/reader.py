"""Reading recipes: a shipped name or a YAML file, `extends`, overrides, and every check, each mistake one sentence naming its key."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import yaml

from mav.errors import UserError, nearest
from mav.recipes.recipe import Recipe


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(f.name[: -len(".yaml")] for f in resources.files("mav.recipes").iterdir() if f.name.endswith(".yaml"))


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a shipped recipe by name, or a YAML file by path; `overrides` are `key.sub=value` with YAML values.

    A file may say `extends: NAME` and then give only what differs; without a `name` it has its file's. Raises
    UserError with one sentence that names the key.
    """
    tree = _read_tree(name_or_path, seen=())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override!r} is not of the form key=value, for example --set generate.count=4.")
        _assign(tree, key.split("."), _parse_yaml(text, f"the value of --set {key}"), override)
    return recipe_from_dict(tree, name_or_path)


def recipe_from_dict(tree: Mapping[str, Any], source: str = "the recipe") -> Recipe:
    """Checks plain data and makes the recipe of it."""
    from pydantic import TypeAdapter, ValidationError

    try:
        recipe = TypeAdapter(Recipe).validate_python(dict(tree))
    except ValidationError as error:
        first = min(
            error.errors(), key=lambda each: each["type"] != "unexpected_keyword_argument"
        )  # a misspelt key is also missing
        key = ".".join(str(part) for part in first["loc"])
        given = f" (it says {first['input']!r})" if not isinstance(first["input"], dict) else ""
        meant = nearest(str(first["loc"][-1]), _siblings(first["loc"]))
        what = {
            "unexpected_keyword_argument": f"is not a key of this section: {f'did you mean {meant}?' if meant else 'check its spelling'}",
            "missing": "is missing and has no default",
            "missing_argument": "is missing and has no default",
        }.get(first["type"], f"is wrong: {first['msg'][0].lower()}{first['msg'][1:]}")
        more = f" {error.error_count() - 1} more like it follow." if error.error_count() > 1 else ""
        raise UserError(f"Recipe {source}: `{key}` {what}{given}{'' if what.endswith('?') else '.'}{more}") from None
    _check(recipe, source)
    return recipe


def _siblings(place: Sequence[int | str]) -> list[str]:
    """The keys that the section a key stands in has, where the demo has such a section."""
    section: Any = load_recipe("demo")
    for part in place[:-1]:
        section = section[0] if isinstance(section, tuple) and section else getattr(section, str(part), None)
    return [field.name for field in dataclasses.fields(section)] if dataclasses.is_dataclass(section) else []


def _check(recipe: Recipe, source: str) -> None:
    """Rules that span sections: the first that is broken is one sentence naming the key."""
    for holds, sentence in _rules(recipe):
        if not holds:
            raise UserError(f"Recipe {source}: {sentence}.")
    for key, path in recipe.paths():
        if "://" not in path and "*" not in path and not os.path.exists(path):
            raise UserError(
                f"Recipe {source}: `{key}` names {path!r}, which does not exist: correct the path or bring the file."
            )


def _rules(recipe: Recipe) -> Iterator[tuple[bool, str]]:
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
        o = getattr(recipe, name).optimisation
        yield (
            o.batch_size >= 1 and o.samples >= o.batch_size,
            f"`{name}.optimisation.samples` must be at least one batch",
        )
        whole = o.batch_size % (o.accumulation * workers) == 0
        yield whole, f"`{name}.optimisation.batch_size` must be a multiple of accumulation times cluster.workers"
    for key, what in (("image_metadata", "parquet files"), ("video_shards", "video lists")):
        there = bool(recipe.world or getattr(recipe, key).sources)
        yield there, f"`{key}.sources` is empty and there is no `world`: name your {what}"


def _read_tree(name_or_path: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name_or_path in seen:
        raise UserError(f"Recipe {name_or_path} extends itself through {' -> '.join(seen)}: break the circle.")
    if name_or_path in shipped_recipes():
        text = resources.files("mav.recipes").joinpath(f"{name_or_path}.yaml").read_text()
    else:
        try:
            with open(name_or_path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            known = shipped_recipes()
            meant = nearest(name_or_path, known)
            remedy = f"did you mean {meant}?" if meant else f"give a YAML file or one of {', '.join(known)}."
            raise UserError(
                f"No recipe {name_or_path!r} ({getattr(error, 'strerror', None) or error}): {remedy}"
            ) from None
    tree = _parse_yaml(text, f"recipe {name_or_path}")
    if not isinstance(tree, dict):
        raise UserError(
            f"Recipe {name_or_path} is not a mapping of sections: start from a shipped one ({', '.join(shipped_recipes())})."
        )
    tree = {
        "name": os.path.basename(name_or_path).removesuffix(".yaml"),
        **tree,
    }  # not the parent's: reports and `mav clean` go by it
    parent = tree.pop("extends", None)
    return _merge(_read_tree(str(parent), (*seen, name_or_path)), tree) if parent else tree


def _parse_yaml(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from None


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _assign(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {override}: {key!r} is a value, not a section.")
    tree[keys[-1]] = value
