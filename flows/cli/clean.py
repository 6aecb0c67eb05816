"""`mav clean`: what a runs folder holds that nothing needs any more.

Never removed: what the recipe's graph is made of now, finished or not; anything of another recipe; what a kept artifact was made from; and
whatever somebody who is alive works on. What goes: older artifacts of the recipe, beyond the newest few of each stage; unfinished work
of older versions; what killed processes left half written.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.cli.options import RecipeName, Runs, Set, open_plan
from flows.engine.lease import LEASE, exclusive, held, top
from flows.engine.stage import Graph
from flows.engine.store import SHOWN_FINGERPRINT, Store
from mav.errors import UserError
from mav.storage import MANIFEST, TEMPORARY, Artifact, Folder, Manifest

app = typer.Typer()

Place = tuple[str, str]  # stage, shown fingerprint


@dataclass(frozen=True)
class Leftover:
    """Something to remove: `names` of a folder's files, or all of the folder where there are none."""

    what: str  # why it may go
    place: Place
    folder: Folder
    names: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Cleaning:
    """What may go, and sentences on what was left alone."""

    leftovers: list[Leftover]
    spared: list[str]

    @property
    def bytes(self) -> int:
        return sum(leftover.bytes for leftover in self.leftovers)


class _Runs:
    """Everything in a runs folder, listed once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.artifacts = _places(store.root.child("artifacts"))
        self.work = _places(store.root.child("work"))
        self.manifests: dict[Place, Manifest] = {}
        self.spared: list[str] = []
        for place, files in self.artifacts.items():
            if MANIFEST in files:
                try:
                    self.manifests[place] = Artifact.open(self.folder("artifacts", place)).manifest
                except UserError as error:
                    self.spared.append(f"{error} It is left alone.")

    def folder(self, kind: str, place: Place) -> Folder:
        return self.store.root.child(f"{kind}/{place[0]}/{place[1]}")

    def held(self, place: Place) -> bool:
        return place in self.work and held(self.folder("work", place))

    def unfinished_of(self, place: Place) -> str | None:
        """The recipe under which somebody began to work here; None when nobody did."""
        seat = top(self.folder("work", place).child(LEASE)) if place in self.work else None
        return str(seat.says.get("recipe", "?")) if seat else None

    def needed_by(self, places: Iterable[Place]) -> set[Place]:
        """These, and all they were made from."""
        needed: set[Place] = set()
        queue = list(places)
        while queue:
            place = queue.pop()
            if place not in needed:
                needed.add(place)
                inputs = self.manifests[place].inputs if place in self.manifests else {}
                queue += [(stage, fingerprint[:SHOWN_FINGERPRINT]) for stage, fingerprint in inputs.items()]
        return needed


def _places(root: Folder) -> dict[Place, dict[str, int]]:
    found: dict[Place, dict[str, int]] = defaultdict(dict)
    for name, size in root.sizes(temporary=True).items():
        stage, _, rest = name.partition("/")
        fingerprint, _, file = rest.partition("/")
        if file:
            found[stage, fingerprint][file] = size
    return dict(found)


def leftovers(plan: Graph, store: Store, keep_last: int) -> Cleaning:
    """What may go from a recipe's runs folder when the newest `keep_last` artifacts of each stage stay, and all of the present graph."""
    runs, recipe = _Runs(store), plan.recipe.name
    current = {(node.name, node.fingerprint[:SHOWN_FINGERPRINT]) for node in plan.nodes.values()}
    live = {place for place in runs.work if runs.held(place)}
    spared = runs.spared + [f"{stage}/{fingerprint} is being built right now." for stage, fingerprint in sorted(live)]
    others = {place for place, manifest in runs.manifests.items() if manifest.recipe != recipe}
    kept = runs.needed_by(current | others | live | _newest(runs, recipe, keep_last))
    old = sorted(place for place in runs.manifests if place not in kept)
    abandoned = sorted(
        place
        for place in (runs.work.keys() | runs.artifacts.keys()) - current - live
        if MANIFEST not in runs.artifacts.get(place, {}) and runs.unfinished_of(place) in (recipe, None)
    )
    if live - current:  # it will need artifacts that nothing names yet
        spared.append(f"Another version of {recipe} is at work: nothing of older versions is removed.")
        old, abandoned = [], []

    found: list[Leftover] = []
    for what, places in (("older artifact", old), ("abandoned work", abandoned)):
        for place in places:
            found += _whole(runs, what, place, ("artifacts", "work"))
    gone = {*old, *abandoned}
    finished = sorted(place for place in runs.work.keys() - gone - live if MANIFEST in runs.artifacts.get(place, {}))
    for place in finished:
        found += _whole(runs, "work of a finished stage", place, ("work",))
    for kind, all_ in (("artifacts", runs.artifacts), ("work", runs.work)):
        for place in sorted(all_.keys() - gone - live - (set(finished) if kind == "work" else set())):
            files = {name: size for name, size in all_[place].items() if TEMPORARY in name}
            if files:
                found.append(
                    Leftover("half-written file", place, runs.folder(kind, place), tuple(files), sum(files.values()))
                )
    return Cleaning(found, spared)


def _newest(runs: _Runs, recipe: str, keep_last: int) -> set[Place]:
    """The newest finished artifacts of each stage of a recipe."""
    stages: dict[str, list[tuple[str, Place]]] = defaultdict(list)
    for place, manifest in runs.manifests.items():
        if manifest.recipe == recipe:
            stages[place[0]].append((manifest.finished, place))
    return {place for dated in stages.values() for _, place in sorted(dated, reverse=True)[:keep_last]}


def _whole(runs: _Runs, what: str, place: Place, kinds: tuple[str, ...]) -> Iterator[Leftover]:
    for kind in kinds:
        files = (runs.artifacts if kind == "artifacts" else runs.work).get(place)
        if files is not None:
            yield Leftover(what, place, runs.folder(kind, place), (), sum(files.values()))


def remove(store: Store, leftover: Leftover) -> str:
    """Removes it under its lease. Returns why it was left alone, or ''."""
    work = store.root.child(f"work/{leftover.place[0]}/{leftover.place[1]}")
    try:
        with exclusive(work, leftover.place[0]) as lease:
            if leftover.names:
                for name in leftover.names:
                    leftover.folder.remove(name)
            elif leftover.folder.url != work.url:
                leftover.folder.remove(MANIFEST)  # first: from here on there is no artifact
                leftover.folder.remove()
            if not leftover.names or work.sizes().keys() <= {f"lease/{lease.number:06d}.json"}:
                lease.clear()
    except UserError as error:
        return f"{leftover.folder.url}: {error}"
    return ""


@app.command()
def clean(
    recipe: RecipeName,
    keep_last: Annotated[
        int, typer.Option("--keep-last", metavar="N", min=0, help="Artifacts of each stage to keep, newest first.")
    ] = 1,
    delete: Annotated[bool, typer.Option("--delete", help="Remove them; without it they are only listed.")] = False,
    runs: Runs = "runs",
    set_: Set = None,
) -> None:
    """List, or remove, what a runs folder holds that nothing needs: old artifacts, abandoned work, half-written files."""
    _, plan, store = open_plan(recipe, set_, runs)
    cleaning = leftovers(plan, store, keep_last)
    table = Table("what", "where", "bytes", box=None, header_style="bold")
    table.columns[2].justify = "right"
    for leftover in cleaning.leftovers:
        table.add_row(leftover.what, leftover.folder.url.removeprefix(f"{store.root.url}/"), f"{leftover.bytes:,}")
    console = Console(soft_wrap=True)
    if cleaning.leftovers:
        console.print(table)
    spared = cleaning.spared + (
        [sentence for item in cleaning.leftovers if (sentence := remove(store, item))] if delete else []
    )
    for sentence in spared:
        print(sentence)
    if not cleaning.leftovers:
        print(f"Nothing to remove in {store.root.url}.")
    elif delete:
        print(f"Removed {cleaning.bytes:,} bytes from {store.root.url}.")
    else:
        print(f"{cleaning.bytes:,} bytes could go from {store.root.url}: add --delete to remove them.")
