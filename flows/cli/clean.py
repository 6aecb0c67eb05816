"""`mav clean`: what a runs folder holds that nothing needs any more.

It never removes what the recipe's graph is made of now, finished or not; anything of another recipe; what a kept
artifact was made from; and whatever a living process works on. It removes older artifacts of the recipe beyond the
newest few of each stage, unfinished work of older versions, and what killed processes left half-written.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console

from flows.cli.options import RecipeName, Runs, Set, open_graph
from flows.engine.lease import LEASE, exclusive, held, top
from flows.engine.stage import Graph
from flows.engine.store import SHOWN_FINGERPRINT, Store
from flows.services.terminal import plain_table
from mav.errors import UserError
from mav.storage import MANIFEST, TEMPORARY, Artifact, Folder, Manifest

app = typer.Typer()

Place = tuple[str, str]  # stage, shown fingerprint


@dataclass(frozen=True)
class Leftover:
    """Something to remove: the files `names` of a folder, or the whole folder when there are none."""

    what: str  # why it may go
    place: Place
    folder: Folder
    names: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Cleaning:
    """What may go, and a sentence on everything that is left alone."""

    leftovers: list[Leftover]
    spared: list[str]

    @property
    def bytes(self) -> int:
        return sum(leftover.bytes for leftover in self.leftovers)


class _Listing:
    """Everything in a runs folder, listed once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.files = {kind: _places(store.root.child(kind)) for kind in ("artifacts", "work")}
        self.manifests: dict[Place, Manifest] = {}
        self.spared: list[str] = []
        for place in self.files["artifacts"]:
            if self.finished(place):
                try:
                    self.manifests[place] = Artifact.open(self.folder("artifacts", place)).manifest
                except UserError as error:
                    self.spared.append(f"{error} It is left alone.")

    def folder(self, kind: str, place: Place) -> Folder:
        return self.store.root.child(f"{kind}/{place[0]}/{place[1]}")

    def finished(self, place: Place) -> bool:
        return MANIFEST in self.files["artifacts"].get(place, {})

    def held(self, place: Place) -> bool:
        return place in self.files["work"] and held(self.folder("work", place))

    def unfinished_of(self, place: Place) -> str | None:
        """Returns the recipe under which work began here; None when none did."""
        lease = top(self.folder("work", place).child(LEASE)) if place in self.files["work"] else None
        return str(lease.content.get("recipe", "?")) if lease else None

    def needed_by(self, places: Iterable[Place]) -> set[Place]:
        """Returns these places, and all that they were made from."""
        needed: set[Place] = set()
        queue = list(places)
        while queue:
            place = queue.pop()
            if place not in needed:
                needed.add(place)
                inputs = self.manifests[place].inputs if place in self.manifests else {}
                queue += [(stage, fingerprint[:SHOWN_FINGERPRINT]) for stage, fingerprint in inputs.items()]
        return needed

    def newest(self, recipe: str, count: int) -> set[Place]:
        """Returns the newest finished artifacts of each stage of a recipe."""
        stages: dict[str, list[tuple[str, Place]]] = defaultdict(list)
        for place, manifest in self.manifests.items():
            if manifest.recipe == recipe:
                stages[place[0]].append((manifest.finished, place))
        return {place for dated in stages.values() for _, place in sorted(dated, reverse=True)[:count]}

    def whole(self, what: str, place: Place, kinds: tuple[str, ...]) -> Iterator[Leftover]:
        """Yields the folders of a place, as leftovers that go as a whole."""
        for kind in kinds:
            files = self.files[kind].get(place)
            if files is not None:
                yield Leftover(what, place, self.folder(kind, place), (), sum(files.values()))


def _places(root: Folder) -> dict[Place, dict[str, int]]:
    """Returns the files of each stage and fingerprint with their sizes."""
    found: dict[Place, dict[str, int]] = defaultdict(dict)
    for name, size in root.sizes(temporary=True).items():
        stage, _, rest = name.partition("/")
        fingerprint, _, file = rest.partition("/")
        if file:
            found[stage, fingerprint][file] = size
    return dict(found)


def leftovers(graph: Graph, store: Store, keep_last: int) -> Cleaning:
    """Finds what may go when the present graph and the newest `keep_last` artifacts of each stage stay."""
    listing, recipe = _Listing(store), graph.recipe.name
    artifacts, work = listing.files["artifacts"], listing.files["work"]

    # What stays: the present graph, other recipes, living work, the newest artifacts, and what they were made from.
    current = {(node.name, node.fingerprint[:SHOWN_FINGERPRINT]) for node in graph.nodes.values()}
    live = {place for place in work if listing.held(place)}
    spared = listing.spared + [
        f"{stage}/{fingerprint} is being built right now." for stage, fingerprint in sorted(live)
    ]
    others = {place for place, manifest in listing.manifests.items() if manifest.recipe != recipe}
    kept = listing.needed_by(current | others | live | listing.newest(recipe, keep_last))

    # What goes as a whole.
    old = sorted(place for place in listing.manifests if place not in kept)
    abandoned = sorted(
        place
        for place in (work.keys() | artifacts.keys()) - current - live
        if not listing.finished(place) and listing.unfinished_of(place) in (recipe, None)
    )
    if live - current:  # it may need artifacts that no manifest names yet
        spared.append(f"Another version of {recipe} is at work: nothing of older versions is removed.")
        old, abandoned = [], []
    found: list[Leftover] = []
    for what, places in (("older artifact", old), ("abandoned work", abandoned)):
        for place in places:
            found += listing.whole(what, place, ("artifacts", "work"))
    gone = {*old, *abandoned}
    finished = sorted(place for place in work.keys() - gone - live if listing.finished(place))
    for place in finished:
        found += listing.whole("work of a finished stage", place, ("work",))

    # What goes file by file.
    for kind, places_of_kind in listing.files.items():
        for place in sorted(places_of_kind.keys() - gone - live - (set(finished) if kind == "work" else set())):
            files = {name: size for name, size in places_of_kind[place].items() if TEMPORARY in name}
            if files:
                folder = listing.folder(kind, place)
                found.append(Leftover("half-written file", place, folder, tuple(files), sum(files.values())))
    return Cleaning(found, spared)


def remove(store: Store, leftover: Leftover) -> str:
    """Removes a leftover under its lease. Returns why it was left alone, or ''."""
    work = store.root.child(f"work/{leftover.place[0]}/{leftover.place[1]}")
    try:
        with exclusive(work, leftover.place[0]) as lease:
            if leftover.names:
                for name in leftover.names:
                    leftover.folder.remove(name)
            elif leftover.folder.url != work.url:
                leftover.folder.remove(MANIFEST)  # comes first: from here on there is no artifact
                leftover.folder.remove()
            if not leftover.names or work.sizes().keys() <= {f"lease/{lease.number:06d}.json"}:
                lease.clear()
    except UserError as error:
        return f"{leftover.folder.url}: {error}"
    return ""


KEEP_LAST = typer.Option("--keep-last", metavar="N", min=0, help="Artifacts of each stage to keep, newest first.")


@app.command()
def clean(
    recipe: RecipeName,
    keep_last: Annotated[int, KEEP_LAST] = 1,
    delete: Annotated[bool, typer.Option("--delete", help="Remove them; without it they are only listed.")] = False,
    runs: Runs = "runs",
    set_: Set = None,
) -> None:
    """List or remove what a runs folder holds that nothing needs: old artifacts, abandoned work, half-written files."""
    _, graph, store = open_graph(recipe, set_, runs)
    cleaning = leftovers(graph, store, keep_last)
    table = plain_table("what", "where", right=("bytes",))
    for leftover in cleaning.leftovers:
        place = leftover.folder.url.removeprefix(f"{store.root.url}/")
        table.add_row(leftover.what, place, f"{leftover.bytes:,}")
    if cleaning.leftovers:
        Console(soft_wrap=True).print(table)
    kept = [sentence for item in cleaning.leftovers if (sentence := remove(store, item))] if delete else []
    for sentence in cleaning.spared + kept:
        print(sentence)
    if not cleaning.leftovers:
        print(f"Nothing to remove in {store.root.url}.")
    elif delete:
        print(f"Removed {cleaning.bytes:,} bytes from {store.root.url}.")
    else:
        print(f"{cleaning.bytes:,} bytes could go from {store.root.url}: add --delete to remove them.")
