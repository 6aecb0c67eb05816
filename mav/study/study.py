"""Freezes a study: it fixes which pairs are shown, and on which side, before anybody has looked at them.

`study.json` names no system: video names are digests, and sides are drawn by seed. `key.json`, which is never served,
says which side belongs to which system. Two kinds of checks are added to the pairs: gold pairs (a video against a
degraded copy of itself, with a known answer) and a mirrored copy of each pair, for left bias and consistency. The rule
by which a rater is left out is fixed here, in advance.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mav.data.videos import VIDEO_KINDS
from mav.data.videos.index_first import index_first
from mav.data.videos.shown import ShownVideo
from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.evaluation.reading import LIST, find_videos, whole_frames
from mav.recipes import Recipe
from mav.storage import Folder
from mav.storage.folder import canonical_json

STUDY, KEY = "study.json", "key.json"
QUESTIONS = (
    {"id": "quality", "text": "Which video looks better?", "prompt": False},
    {"id": "faithfulness", "text": "Which video shows this text better?", "prompt": True},
)
RATERS = 5  # raters of a pair; the paper takes their majority
SESSION = 24  # pairs that one rater is asked for, without the checks
GOLD_EVERY, MIRROR_EVERY = 8, 6  # pairs between two checks of a kind
GOLD = 6  # gold pairs of a study
UNTOLD = 8.0  # frames a second of a video that does not say
BLOCK = 8  # pixels of the blocks of a degraded copy
GOLD_MISSES, SIDE_ANSWERS = 1, 4  # misses that the rule allows, and mirrored questions from which on it judges
RULE = (
    "A rater who misses more than one gold pair, or answers more than half of at least four mirrored questions by side,"
    " is left out, and others rate in their place."
)


@dataclass(frozen=True)
class Pair:
    """The videos of two systems for one prompt, as mp4 bytes."""

    prompt: str
    category: str
    systems: tuple[str, str]
    videos: tuple[bytes, bytes]


def freeze(pairs: Sequence[Pair], out: Folder, seed: int = 0, session: int = SESSION) -> dict[str, Any]:
    """Writes study.json, key.json and videos/ of pairs and their checks. Equal pairs and seeds give equal bytes.

    Returns {"pairs", "items", "raters", "study_sha256"}.
    """
    rng = np.random.default_rng([seed, 5])
    items: list[dict[str, Any]] = []
    key: dict[str, dict[str, Any]] = {}

    def add(kind: str, pair: Pair, names: tuple[str, ...], swapped: bool, of: str = "") -> str:
        """Adds an item and returns its name, which does not say what it is."""
        left, right = (1, 0) if swapped else (0, 1)
        name = hashlib.sha256(f"{seed} {len(items)} {names}".encode()).hexdigest()[:12]
        shown = {"prompt": pair.prompt, "category": pair.category, "left": names[left], "right": names[right]}
        items.append({"id": name, **shown})
        key[name] = {"kind": kind, "left": pair.systems[left], "right": pair.systems[right], "of": of}
        return name

    # Every pair with its mirrored copy.
    for pair in pairs:
        names, swapped = _store(pair, out), bool(rng.integers(2))
        of = add("pair", pair, names, swapped)
        add("mirror", pair, names, not swapped, of)
    # Gold pairs, from the whole list.
    for pair in pairs[:: max(1, len(pairs) // GOLD)][:GOLD]:
        intact = pair.videos[0]
        gold = Pair(pair.prompt, pair.category, ("intact", "ruined"), (intact, _degrade(intact, rng)))
        add("gold", gold, _store(gold, out), bool(rng.integers(2)))
    order = rng.permutation(len(items))
    study = {"version": 2, "questions": list(QUESTIONS), "raters": RATERS, "session": session, "rule": RULE}
    shown = canonical_json(study | {"items": [items[i] for i in order]})
    digest = hashlib.sha256(shown).hexdigest()
    systems = list(dict.fromkeys(name for pair in pairs for name in pair.systems))
    out.write_json(KEY, {"study_sha256": digest, "systems": systems, "items": key})
    out.sync()
    out.write_bytes(STUDY, shown)  # comes last: from here on there is a study
    return {"pairs": len(pairs), "items": len(items), "raters": RATERS, "study_sha256": digest}


def freeze_study(
    recipe: Recipe, inputs: dict[str, Folder], out: Folder, report: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Freezes the study of the pipeline: generated videos against their time-off twins. Without twins it is empty."""
    settings, source = recipe.evaluate, inputs["generate"]
    rows = [row for row in source.read_json(LIST) if row.get("twin")]
    order = np.random.default_rng([settings.seed, 6]).permutation(len(rows))[: settings.study_pairs]
    pairs = []
    for row in (rows[i] for i in sorted(order)):
        videos = (source.read_bytes(row["file"]), source.read_bytes(row["twin"]))
        pairs.append(Pair(row["prompt"], "", ("time layers on", "time layers off"), videos))
    return freeze(pairs, out, settings.seed)


def pairs_of(
    systems: Mapping[str, Folder], prompts: Sequence[tuple[str, str]], count: int = 0, seed: int = 0
) -> list[Pair]:
    """Returns pairs of every two systems on the prompts of which both have a video.

    With a `count`, this number is drawn by seed and shared out among the systems. The videos of a system are numbered
    as the prompts (00042.mp4), or `videos.json` says which file has which prompt. Raises UserError when two systems
    have no prompt in common, or a video cannot be read.
    """
    if len(systems) < 2:
        raise UserError("A study compares systems: name at least two as --system NAME=DIR.")
    files = {name: _by_prompt(folder, [text for text, _ in prompts]) for name, folder in systems.items()}
    categories, matches = dict(prompts), list(itertools.combinations(systems, 2))
    share = -(-count // len(matches)) if count else None
    pairs: list[Pair] = []
    for number, (one, other) in enumerate(matches):
        common = [text for text in categories if text in files[one] and text in files[other]]
        if not common:
            remedy = f"number files as the prompts, or list them in {LIST}"
            raise UserError(f"{one} and {other} have no video of the same prompt: {remedy}.")
        for i in sorted(np.random.default_rng([seed, 7, number]).permutation(len(common))[:share]):
            first, second = (_mp4(systems[name], files[name][common[i]]) for name in (one, other))
            pairs.append(Pair(common[i], categories[common[i]], (one, other), (first, second)))
    return pairs[: count or None]


def _by_prompt(folder: Folder, prompts: Sequence[str]) -> dict[str, str]:
    """Returns prompt -> file of a system's folder."""
    entries = [entry for entry in find_videos(folder, tuple(prompts), len(prompts))[0] if entry.file]
    if not folder.exists(LIST) and not all(entry.prompt for entry in entries):
        problem = f"Nothing says which prompt each video of {folder.url} was made for"
        raise UserError(f"{problem}: number the files as the prompts.")
    return {entry.prompt: entry.file for entry in entries}


def _mp4(folder: Folder, file: str) -> bytes:
    """Encodes a video again at high quality, so that neither codec nor container reveals the system."""
    try:
        frames, fps = whole_frames(folder, file)
    except ValueError as error:
        forms = f"{VIDEO_KINDS}, npy or pt files, or folders of frames"
        raise UserError(f"{folder.path(file)} cannot be shown ({error}): give {forms}.") from None
    return encode_mp4(frames, fps or UNTOLD, crf=10)


def _store(pair: Pair, out: Folder) -> tuple[str, ...]:
    """Stores both videos under their digests and returns their paths."""
    videos = [index_first(video) for video in pair.videos]  # they are shown before they are whole
    names = tuple(f"videos/{hashlib.sha256(video).hexdigest()[:16]}.mp4" for video in videos)
    for name, video in zip(names, videos, strict=True):
        out.write_bytes(name, video)
    return names


def _degrade(data: bytes, rng: np.random.Generator) -> bytes:
    """Returns the video in coarse blocks with shuffled frames, which no attentive rater prefers."""
    shown = ShownVideo(data)
    frames = shown.frames()
    block = max(2, min(BLOCK, min(frames.shape[1:3]) // 4))
    middles = [np.minimum(np.arange(side) // block * block + block // 2, side - 1) for side in frames.shape[1:3]]
    coarse = frames[:, middles[0]][:, :, middles[1]]
    return encode_mp4(np.ascontiguousarray(coarse[rng.permutation(len(coarse))]), shown.fps or UNTOLD)
