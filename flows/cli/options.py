"""What the commands of `mav` share: the arguments that are spelled alike everywhere, and what they name."""

import glob
from collections.abc import Iterable
from typing import Annotated

import typer

from flows.engine.stage import Graph
from flows.engine.store import Store
from flows.make_a_video import make_a_video
from mav.errors import UserError
from mav.recipes import Recipe
from mav.recipes.reader import load_recipe, shipped_recipes


def _begun(begun: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(begun)]


def complete_recipe(incomplete: str) -> list[str]:
    """For the shell's completion: shipped recipes, and YAML files that are here."""
    return _begun(incomplete, [*shipped_recipes(), *glob.glob("*.yaml")])


def complete_stage(incomplete: str) -> list[str]:
    """For the shell's completion: the stages of the whole graph."""
    return _begun(incomplete, make_a_video(load_recipe("demo")).nodes)


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A shipped recipe (demo, tiny, single-gpu, paper) or a YAML file.",
        autocompletion=complete_recipe,
    ),
]
StageName = Annotated[
    str,
    typer.Argument(metavar="STAGE", help="A stage's name, as `mav status` prints it.", autocompletion=complete_stage),
]
Runs = Annotated[str, typer.Option("--runs", metavar="URL", help="Where artifacts are: a folder or an fsspec URL.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe value, e.g. --set generate.count=4."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_plan(recipe: str, overrides: list[str] | None, runs: str) -> tuple[Recipe, Graph, Store]:
    """The recipe, its graph, and where its artifacts are. Raises UserError when the recipe is not one."""
    loaded = load_recipe(recipe, overrides or ())
    try:
        store = Store(runs)
        store.root.local or store.root.exists()
    except Exception as error:  # each storage's library has its own
        raise UserError(
            f"--runs {runs} cannot be reached ({error}): check the address, AWS_ENDPOINT_URL and credentials."
        ) from None
    return loaded, make_a_video(loaded), store


def nothing_built(recipe: str, store: Store) -> UserError:
    return UserError(f"Nothing of {recipe} is built in {store.root.url} yet: `mav run {recipe}` builds it.")


def device() -> str:
    """What networks of this process run on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
