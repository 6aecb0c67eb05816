"""The arguments that several commands of `mav` share, and how they are resolved."""

import glob
import shlex
import uuid
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer

from flows.engine.stage import Graph
from flows.engine.store import Store
from flows.make_a_video import make_a_video
from flows.services.environment import can_be_folder
from mav.errors import UserError, from_storage
from mav.recipes import Recipe
from mav.recipes.reader import load_recipe, shipped_recipes
from mav.storage import Folder
from mav.storage.folder import TEMPORARY


def starting_with(begun: str, words: Iterable[str]) -> list[str]:
    """Returns the words that complete what is begun in the shell."""
    return [word for word in words if word.startswith(begun)]


def complete_recipe(incomplete: str) -> list[str]:
    """Completes a recipe in the shell: the shipped ones, and the YAML files that begin so."""
    return [*starting_with(incomplete, shipped_recipes()), *sorted(glob.glob(f"{glob.escape(incomplete)}*.yaml"))]


def complete_stage(incomplete: str) -> list[str]:
    """Completes the name of a stage in the shell."""
    return starting_with(incomplete, make_a_video(load_recipe("demo")).nodes)


_RECIPE = f"A shipped recipe ({', '.join(shipped_recipes())}) or a YAML file."
_STAGE = "A stage's name, as `mav status` prints it."
_SET = "Override a value of the recipe, such as --set generate.count=4; may repeat."

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help=_RECIPE, autocompletion=complete_recipe)]
StageName = Annotated[str, typer.Argument(metavar="STAGE", help=_STAGE, autocompletion=complete_stage)]
Runs = Annotated[
    str, typer.Option("--runs", metavar="URL", help="Where artifacts are: a folder or a URL such as s3://bucket/runs.")
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=_SET)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_graph(recipe: str, overrides: list[str] | None, runs: str) -> tuple[Recipe, Graph, Store]:
    """Returns the recipe, its graph, and its store. Raises UserError when one of them cannot be opened."""
    loaded = load_recipe(recipe, overrides or ())
    require_folder("--runs", runs)
    try:
        store = Store(runs)
        store.root.local or store.root.exists()
    except Exception as error:  # each storage's library has its own errors
        checked = "the address, AWS_ENDPOINT_URL and credentials" if runs.startswith("s3://") else "the address"
        remedy = "install that package" if isinstance(error, ImportError) else f"check {checked}"
        raise UserError(f"--runs {runs} cannot be reached ({error}): {remedy}, or name a folder.") from None
    return loaded, graph_of(loaded), store


def graph_of(recipe: Recipe) -> Graph:
    """Returns the recipe's graph. Raises UserError when a storage that the recipe names cannot be reached."""
    try:
        return make_a_video(recipe)
    except Exception as error:
        if isinstance(error, UserError) or not (from_storage(error) or isinstance(error, ImportError)):
            raise
        far = [path for _, path in recipe.paths() if "://" in path]
        if not far:
            raise
        raise UserError(
            f"A storage that {recipe.name} names cannot be reached ({' '.join(str(error).split())}): check {far[0]}"
            f"{' and the other addresses' if len(far) > 1 else ''}, and the credentials that the environment gives."
        ) from None


def require_folder(option: str, url: str, written: bool = False) -> None:
    """Raises UserError when a path of this machine that an option gives is no folder, or cannot be `written`."""
    if "://" not in url and not can_be_folder(url, written):
        what = "cannot be written" if can_be_folder(url) else "cannot be a folder: it is, or lies below, a file"
        raise UserError(f"{option} {url} {what}; name another folder.")


def require_writing(store: Store) -> None:
    """Raises UserError when no file can be written where artifacts go: better now than when Prefect and Ray are up."""
    probe = f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        store.root.write_bytes(probe, b"")
        store.root.remove(probe)
    except Exception as error:  # each storage's library has its own errors
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"--runs {store.root.url} cannot be written ({reason}): name a folder or an s3:// address that can."
        ) from None


def command(words: str, recipe: str, store: Store, set_: Sequence[str] | None = None, more: str = "") -> str:
    """Returns a command as a message names it: it works on these runs and on the recipe as `--set` changed it.

    words: what stands before the recipe, such as run; more: what stands behind it.
    """
    runs = [] if store.root.url == Folder("runs").url else ["--runs", store.root.url]
    overrides = [word for override in set_ or () for word in ("--set", override)]
    return f"`{shlex.join(['mav', *words.split(), recipe, *more.split(), *overrides, *runs])}`"


def run_until(recipe: str, stage: str, store: Store, set_: Sequence[str] | None = None) -> str:
    """Returns the command, as a message names it, that builds a stage of these runs and all before it."""
    return command("run", recipe, store, set_, f"--until {stage}")


def nothing_built(recipe: str, store: Store, set_: Sequence[str] | None = None) -> UserError:
    """Returns the error of commands that need something to be built."""
    remedy = f"{command('run', recipe, store, set_)} builds it"
    return UserError(f"Nothing of {recipe} is built in {store.root.url} yet: {remedy}.")


def damaged(recipe: str, stage: str, damage: str, store: Store, set_: Sequence[str] | None = None) -> UserError:
    """Returns the error of commands that meet a stage whose files are not what they were."""
    remedy = f"{command('rerun', recipe, store, set_, stage)} builds it anew"
    return UserError(f"{stage} of {recipe} is damaged: {damage}; {remedy}.")


def device() -> str:
    """Returns the device that networks run on in this process."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
