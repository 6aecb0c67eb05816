"""Freezes a study: which pairs are shown, on which side, before anybody has looked at them.

Raters see `study.html` and `study.json`, which name no system: video names are digests, sides are drawn by seed. Which side is whose stays
in `key.json`. Some pairs come back mirrored, to measure left bias and consistency, and some are gold: ours against a ruined copy, whose
answer is known. The rule by which a rater's answers are left out is fixed here, in advance.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np

from mav.artifact import Folder
from mav.data.video_io import encode_mp4, read_frames
from mav.recipe import Recipe

QUESTIONS = (
    {"id": "quality", "text": "Which video looks better?", "prompt": False},
    {"id": "faithfulness", "text": "Which video shows this text better?", "prompt": True},
)
RATERS = 5  # a pair; the paper takes their majority
MIRRORED = 6  # every so many pairs one comes back with sides swapped
GOLD = 8  # and one gold pair is added
BLOCK = 8  # pixels of a ruined copy's blocks
RULE = "A rater who misses more than one gold pair, or answers more than half of the mirrored pairs by side, is left out."


def freeze_study(
    recipe: Recipe, inputs: dict[str, Folder], out: Folder, report: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Pairs of generated videos and their time-off twins into study.json, key.json, study.html and videos/.

    Without twins there is nothing to compare, and the study is empty. Returns {"pairs", "items", "study_sha256"}.
    """
    settings, source = recipe.evaluate, inputs["generate"]
    rng = np.random.default_rng([settings.seed, 5])
    rows = [row for row in source.read_json("videos.json") if row.get("twin")]
    chosen = [rows[i] for i in sorted(rng.permutation(len(rows))[: settings.study_pairs])]
    items: list[dict[str, Any]] = []
    key: dict[str, dict[str, Any]] = {}

    def add(kind: str, prompt: str, ours: str, other: str, system: str, left: bool, of: str = "") -> str:
        name = hashlib.sha256(f"{settings.seed} {len(items)} {ours} {other}".encode()).hexdigest()[:12]
        items.append({"id": name, "prompt": prompt, "left": ours if left else other, "right": other if left else ours})
        key[name] = {"kind": kind, "ours": "left" if left else "right", "other": system, "of": of}
        return name

    for number, row in enumerate(chosen):
        ours, twin = (_copy(source.read_bytes(row[side]), out) for side in ("file", "twin"))
        left = bool(rng.integers(2))
        name = add("pair", row["prompt"], ours, twin, "time layers off", left)
        if number % MIRRORED == MIRRORED - 1 or len(chosen) == 1:
            add("mirror", row["prompt"], ours, twin, "time layers off", not left, of=name)
        if number % GOLD == 0:
            ruined = _copy(_ruin(source.read_bytes(row["file"]), row.get("fps", 8), rng), out)
            add("gold", row["prompt"], ours, ruined, "ruined copy", bool(rng.integers(2)))
    items = [items[i] for i in rng.permutation(len(items))]
    study = {"version": 1, "questions": list(QUESTIONS), "raters": RATERS, "rule": RULE, "items": items}
    out.write_json("study.json", study)
    digest = out.sha256("study.json")
    out.write_json("key.json", {"study_sha256": digest, "items": key})
    page = resources.files(__package__).joinpath("study.html").read_text(encoding="utf-8")
    data = json.dumps({**study, "sha256": digest}, sort_keys=True).replace("<", "\\u003c")
    out.write_bytes("study.html", page.replace("{{ digest }}", html.escape(digest[:12])).replace("{{ study }}", data).encode())
    return {"pairs": len(chosen), "items": len(items), "raters": RATERS, "study_sha256": digest}


def _copy(data: bytes, out: Folder) -> str:
    """Stores a video under a name that says nothing; the same video has the same name."""
    name = f"videos/{hashlib.sha256(data).hexdigest()[:16]}.mp4"
    out.write_bytes(name, data)
    return name


def _ruin(data: bytes, fps: float, rng: np.random.Generator) -> bytes:
    """The video in coarse blocks with frames out of order: nobody who looks can prefer it."""
    frames = read_frames(data)
    middles = [np.minimum(np.arange(side) // BLOCK * BLOCK + BLOCK // 2, side - 1) for side in frames.shape[1:3]]
    coarse = frames[:, middles[0]][:, :, middles[1]]
    return encode_mp4(np.ascontiguousarray(coarse[rng.permutation(len(coarse))]), fps)
