"""`mav clean`: what a runs folder holds that nothing needs any more.

It never removes what the recipe's graph is made of now, finished or not; what another recipe or a served study has on
record (`flows.engine.store`), built or not; what a kept artifact was made from; and whatever a living process works
on. It removes older artifacts of the recipe beyond the newest few of each stage, unfinished work of older versions, and
what killed processes left half-written.
"""

import os
import platform
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from flows.cli.options import RecipeName, Runs, Set, complete_recipe, open_graph
from flows.engine.lease import LEASE, exclusive, held, top
from flows.engine.stage import Graph
from flows.engine.store import SHOWN_FINGERPRINT, Place, Records, Store, file_owner, owner_key, recipe_owner
from flows.services.printing import PlainTable, say, show
from mav.errors import UserError
from mav.storage import MANIFEST, TEMPORARY, Artifact, Folder, Manifest

app = typer.Typer()
FINISHED = "work of a finished stage"


@dataclass(frozen=True)
class Leftover:
    """Something to remove: the files `names` of a folder, or the whole folder when there are none."""

    what: str
    why: str  # nothing needs it
    place: Place
    folder: Folder
    names: tuple[str, ...]
    bytes: int  # that removing it frees


@dataclass(frozen=True)
class Cleaning:
    """What may go, a sentence on everything that is left alone, and the records to take back afterwards."""

    leftovers: list[Leftover]
    spared: list[str]
    forgotten: list[tuple[str, Place]]
    mine: set[str]  # the keys of the owners that are cleaned after

    @property
    def bytes(self) -> int:
        return sum(leftover.bytes for leftover in self.leftovers)


class _Listing:
    """Everything in a runs folder, listed once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.files = {kind: _places(store.root.child(kind)) for kind in ("artifacts", "work")}
        self.records = Records.read(store)
        self.shown = dict(self.records.shown)  # of each owner's key
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

    def owners(self, place: Place) -> set[str]:
        """Returns the keys of who has a place on record; without a record, of the recipe that built or began it."""
        if recorded := self.records.owners(place):
            return recorded
        name = self.manifests[place].recipe if place in self.manifests else self._begun_by(place)
        if name:
            self.shown.setdefault(owner_key(name), name)
        return {owner_key(name)} if name else set()

    def _begun_by(self, place: Place) -> str:
        lease = top(self.folder("work", place).child(LEASE)) if place in self.files["work"] else None
        return str(lease.content.get("recipe", "?")) if lease else ""

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

    def newest(self, mine: set[str], count: int) -> set[Place]:
        """Returns the newest finished artifacts of each stage that these owners have on record."""
        stages: dict[str, list[tuple[str, Place]]] = defaultdict(list)
        for place, manifest in self.manifests.items():
            if self.owners(place) & mine:
                stages[place[0]].append((manifest.finished, place))
        return {place for dated in stages.values() for _, place in sorted(dated, reverse=True)[:count]}

    def whole(self, what: str, why: str, place: Place, kinds: tuple[str, ...]) -> Iterator[Leftover]:
        """Yields the folders of a place, as leftovers that go as a whole."""
        for kind in kinds:
            if (files := self.files[kind].get(place)) is not None:
                yield Leftover(what, why, place, self.folder(kind, place), (), sum(files.values()))


def _places(root: Folder) -> dict[Place, dict[str, int]]:
    """Returns the files of each stage and fingerprint with their sizes."""
    found: dict[Place, dict[str, int]] = defaultdict(dict)
    for name, size in root.sizes(temporary=True).items():
        stage, _, rest = name.partition("/")
        fingerprint, _, file = rest.partition("/")
        if file:
            found[stage, fingerprint][file] = size
    return dict(found)


def leftovers(graph: Graph, store: Store, keep_last: int, owners: Iterable[str] = ()) -> Cleaning:
    """Finds what may go when the present graph and the newest `keep_last` artifacts of each stage stay.

    `owners` are those to clean after, by default the recipe of the graph by its name.
    """
    listing, recipe = _Listing(store), graph.recipe.name
    artifacts, work = listing.files["artifacts"], listing.files["work"]
    mine = listing.records.keys(owners or (recipe,))

    # What stays: the present graph, what others need, living work, the newest artifacts, and what they were made from.
    current = {store.place(node) for node in graph.nodes.values()}
    live = {place for place in work if listing.held(place)}
    spared = listing.spared + [
        f"{stage}/{fingerprint} is being built right now." for stage, fingerprint in sorted(live)
    ]
    theirs = {place for places in listing.records.needs.values() for place in places} | listing.manifests.keys()
    others = {place: left for place in theirs if (left := listing.owners(place) - mine)}
    own = listing.needed_by(current | listing.newest(mine, keep_last))
    kept = own | listing.needed_by(others.keys() | live)
    spared += _spared(listing, {place: left for place, left in others.items() if place not in own})

    # What goes as a whole.
    old = sorted(place for place in listing.manifests if place not in kept)
    abandoned = sorted(
        place
        for place in (work.keys() | artifacts.keys()) - kept
        if not listing.finished(place) and listing.owners(place) <= mine
    )
    at_work = {place for place in live - current if listing.owners(place) <= mine}
    if at_work:  # it may need artifacts that no manifest names yet
        spared.append(f"Another version of {recipe} is at work: nothing of older versions is removed.")
        old, abandoned = [], []
    found: list[Leftover] = []
    for place in old:
        why = f"of an earlier version of the recipe, finished {listing.manifests[place].finished[:10] or 'long ago'}"
        found += listing.whole("older artifact", why, place, ("artifacts", "work"))
    for place in abandoned:
        why = "begun for an earlier version of the recipe" if listing.owners(place) else "no recipe began it"
        found += listing.whole("abandoned work", f"{why}, and nobody builds it", place, ("artifacts", "work"))
    gone = {*old, *abandoned}
    finished = set()
    for place in sorted(work.keys() - gone - live):
        if any(name.startswith("retry") for name in work[place]):
            again = f"`mav rerun RECIPE {place[0]} --failed` goes on with it"
            spared.append(f"{place[0]}/{place[1]} has an unfinished retry pass: {again}.")
        elif listing.finished(place):
            finished.add(place)
            found += listing.whole(FINISHED, "its artifact is done", place, ("work",))

    # What goes file by file.
    for kind, places_of_kind in listing.files.items():
        for place in sorted(places_of_kind.keys() - gone - live - (finished if kind == "work" else set())):
            files = {name: size for name, size in places_of_kind[place].items() if TEMPORARY in name}
            if files:
                folder, why = listing.folder(kind, place), "a process that was killed was writing it"
                found.append(Leftover("half-written file", why, place, folder, tuple(files), sum(files.values())))
    given_up = [] if at_work else [
        (key, place) for key in mine for place in listing.records.needs.get(key, ()) if place not in own
    ]  # fmt: skip
    return Cleaning(list(_measured(found)) if store.root.local else found, spared, given_up, mine)


def _spared(listing: _Listing, others: dict[Place, set[str]]) -> Iterator[str]:
    """Yields a sentence on each other owner, with how many artifacts and works of it lie here."""
    counts = Counter(key for place, left in others.items() for key in left if _lies_here(listing, place))
    for key, number in sorted(counts.items(), key=lambda item: listing.shown.get(item[0], item[0])):
        shown = listing.shown.get(key, key)
        host, _, path = shown.partition(":")
        lost = path and host == platform.node() and not os.path.exists(path)
        remedy = f": it is gone, and `--also {path}` would clean after it as well" if lost else ""
        yield f"{number} {'artifact is' if number == 1 else 'artifacts are'} left alone for {shown}{remedy}."


def _lies_here(listing: _Listing, place: Place) -> bool:
    return any(place in files for files in listing.files.values())


def _measured(found: Iterable[Leftover]) -> Iterator[Leftover]:
    """Yields the leftovers with the bytes that a disk wins by each.

    A file with several names frees its bytes with the last of them, and a link frees nothing of what it points to.
    """
    seen: Counter[tuple[int, int]] = Counter()
    for leftover in found:
        root, freed = leftover.folder.root, 0
        inside = ((folder, name) for folder, _, names in os.walk(root) for name in names)
        paths = [os.path.join(root, name) for name in leftover.names] or [os.path.join(*each) for each in inside]
        for path in [] if os.path.islink(root) else paths:
            status = os.lstat(path)
            seen[status.st_dev, status.st_ino] += 1
            if seen[status.st_dev, status.st_ino] == status.st_nlink:
                freed += status.st_size
        linked = f"; only the link to {os.path.realpath(root)} goes" if os.path.islink(root) else ""
        yield replace(leftover, bytes=freed, why=leftover.why + linked)


def remove(store: Store, leftover: Leftover, mine: Collection[str]) -> str:
    """Removes a leftover under its lease. Returns why it was left alone, or ''."""
    folder, work = leftover.folder, store.root.child(f"work/{leftover.place[0]}/{leftover.place[1]}")
    try:
        if not leftover.names and folder.local and os.path.islink(folder.root):
            folder.remove()
            return ""
        with exclusive(work, leftover.place[0]) as lease:
            whole = not leftover.names
            asked = [key for key in store.owners_now(leftover.place) if key not in mine] if whole else []
            if asked and leftover.what != FINISHED:
                return f"{folder.url}: {asked[0]} needs it since a moment ago, so it is left alone."
            for name in leftover.names:
                folder.remove(name)
            if whole and folder.url != work.url:
                folder.remove(MANIFEST)  # comes first: from here on there is no artifact
                folder.remove()
            if whole or work.sizes().keys() <= {f"lease/{lease.number:06d}.json"}:
                lease.clear()
    except (UserError, OSError) as error:
        return f"{folder.url}: {getattr(error, 'strerror', None) or error}; what is left of it stays."
    return ""


KEEP_LAST = typer.Option("--keep-last", metavar="N", min=0, help="Artifacts of each stage to keep, newest first.")

_ALSO = "Clean after this one too: it was renamed, moved or given up; may repeat."
ALSO = typer.Option("--also", metavar="RECIPE", help=_ALSO, autocompletion=complete_recipe)


@app.command()
def clean(
    recipe: RecipeName,
    keep_last: Annotated[int, KEEP_LAST] = 1,
    also: Annotated[list[str] | None, ALSO] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove them; without it they are only listed.")] = False,
    runs: Runs = "runs",
    set_: Set = None,
) -> None:
    """List or remove what a runs folder holds that nothing needs: old artifacts, abandoned work, half-written files."""
    _, graph, store = open_graph(recipe, set_, runs)
    cleaning = leftovers(graph, store, keep_last, [recipe_owner(recipe), *(also or ()), *map(file_owner, also or ())])
    table = PlainTable("where", "what", "why", "bytes", right=("bytes",))
    for leftover in cleaning.leftovers:
        place = leftover.folder.url.removeprefix(f"{store.root.url}/")
        table.add_row(place, leftover.what, leftover.why, f"{leftover.bytes:,}")
    if cleaning.leftovers:
        show(table)
    refused = {item: told for item in cleaning.leftovers if delete and (told := remove(store, item, cleaning.mine))}
    for sentence in (*cleaning.spared, *refused.values()):
        say(sentence)
    if not cleaning.leftovers:
        say(f"Nothing to remove in {store.root.url}.")
    elif delete:
        freed = sum(item.bytes for item in cleaning.leftovers if item not in refused)
        say(f"Removed {freed:,} bytes from {store.root.url}.")
    else:
        say(f"{cleaning.bytes:,} bytes could go from {store.root.url}: add --delete to remove them.")
    left = {item.place for item in refused}
    for key, place in cleaning.forgotten if delete else ():
        if place not in left:
            store.forget(key, place)
