"""Reads recipes: a shipped name or a YAML file, `extends` and overrides.

Every value is checked here, and every mistake is reported at once, each in a sentence that names its key. Whether the
files are there that a recipe names is asked only for the stages that are to be built (`flows.engine.stage`).
"""

import copy
import dataclasses
import functools
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from mav.errors import UserError, nearest, refuse_secret
from mav.recipes.identity import values
from mav.recipes.recipe import Recipe
from mav.recipes.rules import GIVEN, MISSING, Problem, problems_of
from mav.recipes.schema import comment_of
from mav.recipes.sections import to_plain
from mav.recipes.yaml_file import parse_yaml

Place = Sequence[int | str]
ABSENT = ("missing", "missing_argument")
UNKNOWN = "unexpected_keyword_argument"
MOST_ELSEWHERE = 4  # keys of the same name that a message lists


class RecipeError(UserError):
    """All that is wrong with a recipe."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        super().__init__(f"Recipe {source}: {' '.join(map(str, problems))}")
        self.problems = problems


def shipped_recipes() -> list[str]:
    """Returns the names of the recipes that come with the package."""
    return sorted(f.name[: -len(".yaml")] for f in resources.files("mav.recipes").iterdir() if f.name.endswith(".yaml"))


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a shipped recipe by name, or a YAML file by path; `overrides` are `key.sub=value` with YAML values.

    A file may say `extends: NAME`, or a path relative to its own folder, and give only what differs. Without a `name`,
    a recipe has the name of its file. Raises RecipeError for wrong values, UserError for a file that cannot be read.
    """
    tree = _read_tree(name_or_path, seen=())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override!r} is not of the form key=value, for example --set generate.count=4.")
        _assign(tree, key.split("."), parse_yaml(text, f"the value of --set {key}"), override)
    return recipe_from_dict(tree, name_or_path)


def recipe_from_dict(tree: Mapping[str, Any], source: str = "the recipe") -> Recipe:
    """Checks plain data and returns the recipe. Raises RecipeError with everything that is wrong."""
    from pydantic import ValidationError

    for key, text in _texts(tree):
        refuse_secret(text, f"`{key}` of {source}")
    try:
        recipe = _typed(tree)
        problems = [*_other_kinds(tree, recipe), *problems_of(recipe)]
    except ValidationError as error:
        problems = _wrong_values(tree, error)
    if problems:
        raise RecipeError(source, problems)
    return recipe


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields key and text of every text in plain data, the keys themselves included."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, below in value.items():
            yield key or "the top", str(name)
            yield from _texts(below, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for below in value:
            yield from _texts(below, key)


@functools.cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Recipe)


def _typed(tree: Mapping[str, Any]) -> Recipe:
    recipe: Recipe = _adapter().validate_python(dict(tree))
    return recipe


@functools.cache
def _demo() -> Recipe:
    """Returns a recipe that has every section, for messages."""
    return load_recipe("demo")


def _other_kinds(tree: Any, value: Any, key: str = "") -> Iterable[Problem]:
    """Yields what pydantic would silently turn into a number: a truth value, or a whole number in quotes."""
    if isinstance(tree, Mapping) and dataclasses.is_dataclass(value):
        for name, given in tree.items():
            yield from _other_kinds(given, getattr(value, name), f"{key}.{name}" if key else name)
    elif isinstance(tree, (list, tuple)) and isinstance(value, tuple):
        for number, (given, got) in enumerate(zip(tree, value, strict=True)):
            yield from _other_kinds(given, got, f"{key}.{number}")
    elif isinstance(tree, bool) and not isinstance(value, bool):
        yield Problem(key, tree, "must be a number", "write the number")
    elif isinstance(tree, str) and isinstance(value, bool):
        yield Problem(key, tree, "must be true or false, not text", "leave out the quotes")
    elif isinstance(tree, str) and isinstance(value, int):
        yield Problem(key, tree, "must be a number, not text", "leave out the quotes")


def _wrong_values(tree: Mapping[str, Any], error: Any) -> list[Problem]:
    """Returns a problem for every wrong value; those that are seen once these are mended come after them."""
    from pydantic import ValidationError

    # A misspelt key comes first: its right spelling is then reported as missing.
    errors = sorted(error.errors(), key=lambda each: each["type"] != UNKNOWN)
    places = [".".join(map(str, each["loc"])) for each in errors]
    # What is said of a section because of a mistake within it is left out.
    inner = [not any(other.startswith(f"{place}.") for other in places) for place in places]
    problems = [_problem(each) for each, kept in zip(errors, inner, strict=True) if kept]
    known = to_plain(_demo())
    mended = copy.deepcopy(dict(tree))
    for _ in range(3):
        for each in error.errors():
            _mend(mended, known, each["loc"], each["type"] in ABSENT)
        try:
            recipe = _typed(mended)
        except ValidationError as further:  # a required value was taken out
            error = further
            continue
        wrong = [problem.key for problem in problems]
        seen = [*_other_kinds(mended, recipe), *problems_of(recipe)]
        others = (p for p in seen if not any(_meet(a, b) for a in p.keys for b in wrong))
        return [*problems, *others]
    return problems


def _mend(tree: Any, known: Any, place: Place, absent: bool) -> None:
    """Takes a wrong value out of the tree; one that is absent and has no default becomes the demo's."""
    keys = [part for part in place if isinstance(part, str)] if absent else list(place)
    for at, key in enumerate(keys[:-1]):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), dict) or isinstance(keys[at + 1], int):
            keys = keys[: at + 1]
            break
        tree, known = tree[key], known.get(key, {}) if isinstance(known, dict) else {}
    if not isinstance(tree, dict):
        return
    if absent:
        tree[keys[-1]] = known.get(keys[-1])
    else:
        tree.pop(keys[-1], None)


def _meet(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _problem(error: Any) -> Problem:
    """Turns one of pydantic's errors into a sentence with the field's own comment."""
    key, kind, context = ".".join(map(str, error["loc"])), error["type"], error.get("ctx", {})
    given = GIVEN if isinstance(error["input"], dict) and kind != "dataclass_type" else error["input"]
    if kind == UNKNOWN:
        siblings = _siblings(error["loc"])
        meant, same = nearest(str(error["loc"][-1]), siblings), _elsewhere(key)
        why = "this section has no such key" if "." in key else "a recipe has no such key"
        there = f"it has {', '.join(siblings)}" + (f"; elsewhere there is {', '.join(same)}" if same else "")
        return Problem(key, given, why, f"did you mean {meant}" if meant else there)
    if kind in ABSENT:
        return Problem(key, MISSING, "it has no default", "give its value")
    bounds = {
        "greater_than_equal": ("must be at least {ge}", "raise it"), "greater_than": ("must be above {gt}", "raise it"),
        "less_than_equal": ("must be at most {le}", "lower it"), "less_than": ("must be below {lt}", "lower it"),
        "finite_number": ("must be a finite number", "write the number"), "too_short": ("must not be empty", "fill it"),
        "string_too_short": ("must not be empty", "fill it"), "literal_error": ("must be {expected}", "choose one"),
        "tuple_type": ("must be a list", "write it in brackets, as in [{input}]"),
        "dataclass_type": ("must be a section", "give its keys below it"),
        "too_long": ("must have {max_length} values", "leave the others out"),
        "string_type": ("must be text", "write it in quotes"), "bool_parsing": ("must be true or false", "say one"),
    }  # fmt: skip
    if error["input"] in (None, ""):  # nothing is there that quotes or brackets would make right
        bounds["tuple_type"] = ("must be a list", "leave the key out, or write []")
        bounds["string_type"] = bounds["string_too_short"] = ("must be text and not empty", "give it, or leave it out")
        if error["input"] is None and isinstance(error["loc"][-1], str):  # no place of a list: "" may be what is meant
            bounds["string_type"] = ("must be text", "give it, or leave the key out")
    numbers = ("int_type", "int_parsing", "int_from_float", "float_type", "float_parsing", "int_parsing_size")
    whole, how = ("whole ", "write it in digits alone") if kind.startswith("int") else ("", "write one")
    bounds |= dict.fromkeys(numbers, (f"must be a {whole}number", how))
    why, remedy = bounds.get(kind, (f"{error['msg'][0].lower()}{error['msg'][1:]}", "correct it"))
    why, remedy = (text.format(**context, input=error["input"]) for text in (why, remedy))
    about = comment_of(_demo(), key)
    return Problem(key, given, f"{why} ({about})" if about else why, remedy)


def _siblings(place: Place) -> list[str]:
    """Returns the keys of the section that holds this key, where the demo has such a section."""
    section: Any = _demo()
    for part in place[:-1]:
        section = section[0] if isinstance(section, tuple) and section else getattr(section, str(part), None)
    return [field.name for field in dataclasses.fields(section)] if dataclasses.is_dataclass(section) else []


def _elsewhere(key: str) -> list[str]:
    """Returns the keys of the same name: those in this key's section, else in the recipe; none if they are many."""
    above, _, name = key.rpartition(".")
    same = [value.key for value in values(_demo()) if value.key.rpartition(".")[2] == name]
    found = [each for each in same if each.startswith(f"{above}.")] or same
    return found if len(found) <= MOST_ELSEWHERE else []


def _read_tree(name_or_path: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """Reads a file and all that it extends; `seen` are the files that led here."""
    known = shipped_recipes()
    if name_or_path not in known:
        name_or_path = os.path.normpath(name_or_path)  # a circle by another spelling is one too
    if name_or_path in seen:
        raise UserError(f"Recipe {name_or_path} extends itself through {' -> '.join(seen)}: break the circle.")
    if name_or_path in known:
        text = resources.files("mav.recipes").joinpath(f"{name_or_path}.yaml").read_text()
    else:
        try:
            with open(name_or_path, encoding="utf-8") as file:
                text = file.read()
        except UnicodeDecodeError as error:
            raise UserError(f"Recipe {name_or_path} is not text in UTF-8 ({error.reason}): save it as UTF-8.") from None
        except (OSError, ValueError) as error:
            meant = nearest(os.path.basename(name_or_path).removesuffix(".yaml"), known)
            reason = getattr(error, "strerror", None) or error
            remedy = f"did you mean {meant}?" if meant else f"give a YAML file or one of {', '.join(known)}."
            said = f", which {seen[-1]} extends" if seen else ""
            raise UserError(f"No recipe {name_or_path!r}{said} ({reason}): {remedy}") from None
    tree, what = parse_yaml(text, f"recipe {name_or_path}"), f"Recipe {name_or_path} is not a mapping of sections"
    if not isinstance(tree, dict):
        raise UserError(f"{what}: start from a shipped one ({', '.join(known)}).")
    # The name is not inherited: reports and `mav clean` identify a recipe by it. What is told about another recipe
    # would be untrue of this one.
    tree = {"name": os.path.basename(name_or_path).removesuffix(".yaml"), "about": "", **tree}
    parent = tree.pop("extends", None)
    if not parent:
        return tree
    # A path is relative to the file that says it, wherever the command runs.
    other = str(parent) if parent in known else posixpath.join(os.path.dirname(name_or_path), str(parent))
    return _merge(_read_tree(other, (*seen, name_or_path)), tree)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with the values of `over`, section by section."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _assign(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    """Sets one value of the tree in place and makes the sections on the way."""
    for depth, key in enumerate(keys[:-1], 1):
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            what = "a list: give all of it in brackets" if isinstance(tree, list) else "no section: give its value"
            raise UserError(f"--set {override}: `{'.'.join(keys[:depth])}` is {what}.")
    tree[keys[-1]] = value
