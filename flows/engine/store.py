"""TODO-DOC flows/engine/store.py"""

from __future__ import annotations

import os
import time
from typing import Any, Literal

from flows.engine.lease import LEASE, held_here, top
from flows.engine.stage import Node
from mav.storage import MANIFEST, Artifact, Folder

SILENT_SECONDS = 30.0  # without a heartbeat for so long, a run is taken for dead
SHOWN_FINGERPRINT = 16  # hex digits of a fingerprint used in paths

State = Literal["done", "stale", "missing", "failed", "running"]


class Store:
    """Where artifacts and unfinished work lie: `RUNS/artifacts/STAGE/FINGERPRINT` and `RUNS/work/STAGE/FINGERPRINT`."""

    def __init__(self, url: str) -> None:
        self.root = Folder(os.path.abspath(url) if "://" not in url else url)

    def artifact(self, node: Node) -> Folder:
        return self.root.child(f"artifacts/{node.name}/{node.fingerprint[:SHOWN_FINGERPRINT]}")

    def work(self, node: Node) -> Folder:
        return self.root.child(f"work/{node.name}/{node.fingerprint[:SHOWN_FINGERPRINT]}")

    def find(self, node: Node) -> Artifact | None:
        """The finished artifact of a node, or None; UserError when its manifest was changed."""
        folder = self.artifact(node)
        return Artifact.open(folder) if folder.exists(MANIFEST) else None

    def state(self, node: Node, recipe: str) -> State:
        work = self.work(node)
        if self.artifact(node).exists(MANIFEST):
            return "done"
        if _running(work):
            return "running"
        if work.exists("failure.json"):
            return "failed"
        others = self.root.child(f"artifacts/{node.name}")
        for fingerprint in others.folders():
            manifest = read_json_or_none(others, f"{fingerprint}/{MANIFEST}")
            if manifest and manifest.get("recipe") == recipe:
                return "stale"
        return "missing"


def _running(work: Folder) -> bool:
    """Whether somebody builds here: known of this machine; of another one as far as its clock agrees with ours (only `mav status` asks)."""
    seat = top(work.child(LEASE))
    if seat is None or seat.released or (here := held_here(seat)) is False:
        return False
    beat = read_json_or_none(work, "heartbeat.json")
    return bool(here or (beat and abs(time.time() - beat["time"]) < SILENT_SECONDS))


def read_json_or_none(folder: Folder, name: str) -> Any:
    """A JSON file that another process may be replacing or removing right now."""
    try:
        return folder.read_json(name)
    except (FileNotFoundError, ValueError):
        return None
