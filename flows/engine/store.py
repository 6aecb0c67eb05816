"""Where artifacts and unfinished work are stored, the state of each stage that follows from it, and who needs what.

`RUNS/recipes/OWNER/STAGE/FINGERPRINT.json` records that an owner needs an artifact. A run records what its graph is
made of before it builds or takes anything, so that a stopped run's inputs are known as well as a finished one's. A
served study records the artifact that its votes are about. `mav clean` removes nothing that another owner has on
record, and takes back its own owner's records of what it removed.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import posixpath
import re
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from flows.engine.lease import LEASE, held_here, top
from flows.engine.stage import Node
from flows.services.heartbeat import read_heartbeat
from mav.errors import UserError
from mav.recipes import Recipe
from mav.recipes.identity import flat
from mav.recipes.reader import shipped_recipes
from mav.recipes.rules import shown
from mav.storage import MANIFEST, Artifact, Folder

SILENT_SECONDS = 30.0  # a run without a heartbeat for this long counts as dead
SHOWN_FINGERPRINT = 16  # hex digits of a fingerprint that are used in paths

FAILURE = "failure.json"  # in the work of a stage that failed: why, and when
RECORDS = "recipes"  # the folder of the records

State = Literal["done", "stale", "missing", "failed", "running"]
Place = tuple[str, str]  # stage, shown fingerprint


class Store:
    """The folders `RUNS/artifacts/STAGE/FINGERPRINT` and `RUNS/work/STAGE/FINGERPRINT`."""

    def __init__(self, url: str) -> None:
        self.root = Folder(os.path.abspath(url) if "://" not in url else url)

    @staticmethod
    def place(node: Node) -> Place:
        """Returns the stage and the shown fingerprint, which name the folders of a node."""
        return node.name, node.fingerprint[:SHOWN_FINGERPRINT]

    def artifact(self, node: Node) -> Folder:
        """Returns the folder of a stage's artifact, whether or not it exists."""
        return self.root.child(f"artifacts/{'/'.join(self.place(node))}")

    def work(self, node: Node) -> Folder:
        """Returns the folder of a stage's unfinished work."""
        return self.root.child(f"work/{'/'.join(self.place(node))}")

    def board(self, node: Node) -> Folder:
        """Returns the folder in which a stage is watched while it works; nothing of an artifact is in it."""
        return self.root.child(f"tensorboard/{node.name}/{node.fingerprint[:8]}")

    def kernels(self) -> Folder:
        """Returns the folder of the kernels that were compiled for GPUs; nothing of an artifact is in it."""
        return self.root.child("kernels")

    def find(self, node: Node) -> Artifact | None:
        """Returns the finished artifact of a stage, or None. Raises UserError when its manifest was changed."""
        folder = self.artifact(node)
        return Artifact.open(folder) if folder.exists(MANIFEST) else None

    def problem(self, node: Node) -> str:
        """Returns what is wrong with a finished artifact's manifest; '' when nothing is."""
        try:
            self.find(node)
        except UserError as error:
            return str(error)
        return ""

    def failure(self, node: Node) -> Failure:
        """Returns why a failed stage did."""
        record = self.work(node).read_json_or_none(FAILURE)
        known = record if isinstance(record, dict) else {}
        at = datetime.datetime.fromtimestamp(known.get("time", 0), datetime.UTC).isoformat(timespec="seconds")
        return Failure(str(known.get("reason", f"its {FAILURE} cannot be read")), at)

    def state(self, node: Node, recipe: str, owner: str = "") -> State:
        """Returns the state of a stage; it is stale when the recipe has only an artifact of another fingerprint.

        `owner` tells the recipe from others of its name.
        """
        work = self.work(node)
        if self.artifact(node).exists(MANIFEST):
            return "done"
        if _running(work):
            return "running"
        if work.exists(FAILURE):
            return "failed"
        return "stale" if self.older(node, recipe, owner) else "missing"

    def older(self, node: Node, recipe: str, owner: str = "") -> dict[str, Any] | None:
        """Returns the manifest of the latest artifact that the recipe has of a stage beside the one it asks for."""
        others = self.root.child(f"artifacts/{node.name}")
        manifests = {name: others.read_json_or_none(f"{name}/{MANIFEST}") for name in others.folders()}
        named = {name: m for name, m in manifests.items() if isinstance(m, dict) and m.get("recipe") == recipe}
        if not named:
            return None
        mine = owner_key(owner or recipe)
        owners = {name: self.owners_now((node.name, name)) for name in named}
        own = [
            m for name, m in named.items() if name != self.place(node)[1] and (not owners[name] or mine in owners[name])
        ]
        return max(own, key=lambda manifest: str(manifest.get("finished", "")), default=None)

    def owners_now(self, place: Place) -> list[str]:
        """Returns the keys of all owners that have a place on record at this moment."""
        records, name = self.root.child(RECORDS), f"{'/'.join(place)}.json"
        return [key for key in records.folders() if records.exists(f"{key}/{name}")]

    def forget(self, key: str, place: Place) -> None:
        """Takes an owner's record of a place back."""
        self.root.remove(f"{RECORDS}/{key}/{'/'.join(place)}.json")


def changes(node: Node, manifest: dict[str, Any]) -> list[str]:
    """Says what is different for a stage since an artifact of it was made: values, inputs, files, the version."""
    before, now = flat(manifest.get("config", {})), flat(node.config)
    if "format" not in manifest:  # an older release wrote down whole sections, without the seed
        now = {key: value for key, value in now.items() if key in before}
        before = {key: value for key, value in before.items() if key in now}
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    both = [key for key in keys if key in before and key in now]
    found = [f"{key}: {shown(before[key])} -> {shown(now[key])}" for key in both]
    found += [f"{key} is read {'now' if key in now else 'no more'}" for key in keys if key not in both]
    if manifest.get("version") != node.stage.version:
        found.append(f"version of the stage: {manifest.get('version')} -> {node.stage.version}")
    inputs = {needed.name: needed.fingerprint for needed in node.inputs}
    old = manifest.get("inputs", {})
    others = [name for name in sorted({*inputs, *old}) if inputs.get(name) != old.get(name)]
    found += [f"it follows {', '.join(others)}"] if others else []
    outside = manifest.get("outside", node.outside)
    files = sorted({*node.outside, *outside})
    found += [
        f"{place.partition(':')[2]} is another file" for place in files if node.outside.get(place) != outside.get(place)
    ]
    return found or ["an older release made it, and fingerprints differently"]


@dataclass(frozen=True)
class Failure:
    """Why a stage failed, in a line, and when (UTC, ISO 8601)."""

    reason: str
    at: str


def _running(work: Folder) -> bool:
    """Says whether somebody builds here. For another machine this trusts that its clock agrees with ours."""
    holder = top(work.child(LEASE))
    if holder is None or holder.released or (here := held_here(holder)) is False:
        return False
    return bool(here) or abs(time.time() - read_heartbeat(work).get("time", 0.0)) < SILENT_SECONDS


def recipe_owner(recipe: str) -> str:
    """Identifies a recipe: a shipped one by its name, a file by its machine and path. File names are not unique."""
    return recipe if recipe in shipped_recipes() else file_owner(recipe)


def file_owner(path: str) -> str:
    """Identifies a file or folder of this machine."""
    return f"{platform.node()}:{os.path.realpath(path)}"


def owner_key(owner: str) -> str:
    """Returns the name of an owner's folder of records: readable, and unique by a digest."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", posixpath.basename(owner).removesuffix(".yaml"))[:40].strip("-")
    return f"{readable}-{hashlib.sha256(owner.encode()).hexdigest()[:12]}"


def recipe_folder(recipe: str) -> str:
    """Returns the name of the folder of a recipe's report: its own, even where another recipe has the same name."""
    return recipe if recipe in shipped_recipes() else owner_key(recipe_owner(recipe))


def record(owner: str, store: Store, nodes: Iterable[Node], recipe: Recipe) -> None:
    """Records that `owner` needs the artifacts of these stages, and those from which its recipe names files."""
    places = [store.place(node) for node in nodes]
    places += [place for _, path in recipe.paths() if (place := artifact_place(store.root, path))]
    _write(owner, store.root, places)


def record_artifact(owner: str, folder: str) -> None:
    """Records that `owner` needs the artifact that this folder belongs to. Does nothing for any other folder."""
    runs, artifacts, _ = os.path.realpath(folder).rpartition("/artifacts/")
    if artifacts and (place := artifact_place(root := Folder(runs), folder)):
        _write(owner, root, [place])


def artifact_place(root: Folder, path: str) -> Place | None:
    """Returns the stage and fingerprint of the artifact that a path is in; None when it is in none."""
    here = root.local and "://" not in path
    full, base = (os.path.realpath(each) if here else each for each in (path, root.url))
    inside = full.removeprefix(f"{base}/artifacts/")
    stage, _, rest = inside.partition("/")
    return (stage, rest.partition("/")[0]) if rest and inside != full else None


def _write(owner: str, root: Folder, places: Iterable[Place]) -> None:
    folder = root.child(f"{RECORDS}/{owner_key(owner)}")
    present = set(folder.names())
    for stage, fingerprint in places:
        if (name := f"{stage}/{fingerprint}.json") not in present:
            folder.write_json(name, {"owner": owner})


@dataclass(frozen=True)
class Records:
    """All records of a runs folder: of each owner's key, what it needs and how it is shown."""

    needs: dict[str, set[Place]]
    shown: dict[str, str]

    @classmethod
    def read(cls, store: Store) -> Records:
        """Lists the records. What a damaged one stands for is known from its name."""
        root, needs, shown = store.root.child(RECORDS), defaultdict(set), {}
        for name in root.names():
            key, _, rest = name.partition("/")
            stage, _, file = rest.partition("/")
            if file.endswith(".json"):
                needs[key].add((stage, file.removesuffix(".json")))
                if key not in shown and isinstance(content := root.read_json_or_none(name), dict):
                    shown[key] = str(content.get("owner", key))
        return cls(dict(needs), shown)

    def owners(self, place: Place) -> set[str]:
        """Returns the keys of all owners that have a place on record."""
        return {key for key, places in self.needs.items() if place in places}

    def keys(self, names: Iterable[str]) -> set[str]:
        """Returns the keys of owners, each given as it is shown, or without its machine."""
        wanted = set(names)
        meant = {key for key, shown in self.shown.items() if wanted & {shown, shown.partition(":")[2]}}
        return meant | {owner_key(name) for name in wanted}
