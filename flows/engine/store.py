"""Where artifacts and unfinished work are stored, and the state of each stage that follows from it."""

import os
import time
from typing import Literal

from flows.engine.lease import LEASE, held_here, top
from flows.engine.stage import Node
from mav.storage import MANIFEST, Artifact, Folder

SILENT_SECONDS = 30.0  # a run without a heartbeat for this long counts as dead
SHOWN_FINGERPRINT = 16  # hex digits of a fingerprint that are used in paths

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
        return self.root.child(f"artifacts/{node.name}/{node.fingerprint[:SHOWN_FINGERPRINT]}")

    def work(self, node: Node) -> Folder:
        """Returns the folder of a stage's unfinished work."""
        return self.root.child(f"work/{node.name}/{node.fingerprint[:SHOWN_FINGERPRINT]}")

    def find(self, node: Node) -> Artifact | None:
        """Returns the finished artifact of a stage, or None. Raises UserError when its manifest was changed."""
        folder = self.artifact(node)
        return Artifact.open(folder) if folder.exists(MANIFEST) else None

    def state(self, node: Node, recipe: str) -> State:
        """Returns the state of a stage; it is stale when only an artifact of another fingerprint is there."""
        work = self.work(node)
        if self.artifact(node).exists(MANIFEST):
            return "done"
        if _running(work):
            return "running"
        if work.exists("failure.json"):
            return "failed"
        others = self.root.child(f"artifacts/{node.name}")
        manifests = (others.read_json_or_none(f"{fingerprint}/{MANIFEST}") for fingerprint in others.folders())
        return "stale" if any(manifest and manifest.get("recipe") == recipe for manifest in manifests) else "missing"


def _running(work: Folder) -> bool:
    """Says whether somebody builds here. For another machine this trusts that its clock agrees with ours."""
    holder = top(work.child(LEASE))
    if holder is None or holder.released or (here := held_here(holder)) is False:
        return False
    beat = work.read_json_or_none("heartbeat.json")
    return bool(here or (beat and abs(time.time() - beat["time"]) < SILENT_SECONDS))
