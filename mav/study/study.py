"""Freezes a study: which pairs are shown, on which side, before anybody has looked at them.

`study.json` names no system: video names are digests, sides are drawn by seed. Which side is whose stays in `key.json`, which is never
served. Beside the pairs there are checks: gold pairs (a video against a ruined copy of itself, whose answer is known) and a mirrored
copy of each pair, to measure left bias and consistency. The rule by which a rater is left out is fixed here, in advance.
"""

import hashlib
import io
import itertools
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.evaluation.reading import LIST, find_videos, whole_video
from mav.recipes import Recipe
from mav.storage import Folder

STUDY, KEY = "study.json", "key.json"
QUESTIONS = (
    {"id": "quality", "text": "Which video looks better?", "prompt": False},
    {"id": "faithfulness", "text": "Which video shows this text better?", "prompt": True},
)
RATERS = 5  # a pair; the paper takes their majority
SESSION = 24  # pairs a rater is asked for, beside the checks
GOLD_EVERY, MIRROR_EVERY = 8, 6  # pairs between two checks of a kind
GOLD = 6  # gold pairs of a study
BLOCK = 8  # pixels of a ruined copy's blocks
GOLD_MISSES, SIDE_ANSWERS = 1, 4  # what the rule allows, and from how many mirrored questions on it judges
RULE = (
    "A rater who misses more than one gold pair, or answers more than half of at least four mirrored questions by side, "
    "is left out, and others rate in their place."
)


@dataclass(frozen=True)
class Pair:
    """Two systems' videos of one prompt, as bytes of mp4."""

    prompt: str
    category: str
    systems: tuple[str, str]
    videos: tuple[bytes, bytes]


def freeze(pairs: Sequence[Pair], out: Folder, seed: int = 0, session: int = SESSION) -> dict[str, Any]:
    """Pairs and their checks into study.json, key.json and videos/. The same pairs and seed give the same bytes.

    Returns {"pairs", "items", "raters", "study_sha256"}.
    """
    rng = np.random.default_rng([seed, 5])
    items: list[dict[str, Any]] = []
    key: dict[str, dict[str, Any]] = {}

    def add(kind: str, pair: Pair, names: tuple[str, str], swapped: bool, of: str = "") -> str:
        left, right = (1, 0) if swapped else (0, 1)
        name = hashlib.sha256(f"{seed} {len(items)} {names}".encode()).hexdigest()[:12]
        items.append(
            {"id": name, "prompt": pair.prompt, "category": pair.category, "left": names[left], "right": names[right]}
        )
        key[name] = {"kind": kind, "left": pair.systems[left], "right": pair.systems[right], "of": of}
        return name

    for pair in pairs:
        names = (_store(pair.videos[0], out), _store(pair.videos[1], out))
        swapped = bool(rng.integers(2))
        of = add("pair", pair, names, swapped)
        add("mirror", pair, names, not swapped, of)
    for pair in pairs[:: max(1, len(pairs) // GOLD)][:GOLD]:
        ruined = Pair(pair.prompt, pair.category, ("intact", "ruined"), (pair.videos[0], _ruin(pair.videos[0], rng)))
        add("gold", ruined, (_store(ruined.videos[0], out), _store(ruined.videos[1], out)), bool(rng.integers(2)))
    study = {
        "version": 2,
        "questions": list(QUESTIONS),
        "raters": RATERS,
        "session": session,
        "rule": RULE,
        "items": [items[i] for i in rng.permutation(len(items))],
    }
    out.write_json(STUDY, study)
    digest = out.sha256(STUDY)
    systems = list(dict.fromkeys(name for pair in pairs for name in pair.systems))
    out.write_json(KEY, {"study_sha256": digest, "systems": systems, "items": key})
    return {"pairs": len(pairs), "items": len(items), "raters": RATERS, "study_sha256": digest}


def freeze_study(
    recipe: Recipe, inputs: dict[str, Folder], out: Folder, report: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """The pipeline's study: generated videos against their time-off twins. Without twins it is empty."""
    settings, source = recipe.evaluate, inputs["generate"]
    rows = [row for row in source.read_json(LIST) if row.get("twin")]
    order = np.random.default_rng([settings.seed, 6]).permutation(len(rows))[: settings.study_pairs]
    systems = ("time layers on", "time layers off")
    pairs = [
        Pair(rows[i]["prompt"], "", systems, (source.read_bytes(rows[i]["file"]), source.read_bytes(rows[i]["twin"])))
        for i in sorted(order)
    ]
    return freeze(pairs, out, settings.seed)


def pairs_of(
    systems: Mapping[str, Folder], prompts: Sequence[tuple[str, str]], count: int = 0, seed: int = 0
) -> list[Pair]:
    """Pairs of every two systems on every prompt that both have a video of; `count` of them, drawn by seed and shared out; 0 = all.

    A system's videos are numbered as the prompts (00042.mp4), or `videos.json` says which file has which prompt. Raises UserError when
    two systems have no prompt in common, or a video cannot be read.
    """
    if len(systems) < 2:
        raise UserError("A study compares systems: name at least two as --system NAME=DIR.")
    files = {name: _by_prompt(folder, [text for text, _ in prompts]) for name, folder in systems.items()}
    categories = dict(prompts)
    matches = list(itertools.combinations(systems, 2))
    share = -(-count // len(matches)) if count else 0
    pairs: list[Pair] = []
    for number, (one, other) in enumerate(matches):
        common = [
            text for text in dict.fromkeys(text for text, _ in prompts) if text in files[one] and text in files[other]
        ]
        if not common:
            raise UserError(
                f"{one} and {other} have no video of the same prompt: number files as the prompts, or list them in {LIST}."
            )
        order = np.random.default_rng([seed, 7, number]).permutation(len(common))[: share or None]
        for i in sorted(order):
            text = common[i]
            videos = tuple(_mp4(systems[name], files[name][text]) for name in (one, other))
            pairs.append(Pair(text, categories.get(text, ""), (one, other), (videos[0], videos[1])))
    return pairs[: count or None]


def _by_prompt(folder: Folder, prompts: Sequence[str]) -> dict[str, str]:
    """Prompt -> file of a system's folder."""
    entries, _ = find_videos(folder, tuple(prompts), len(prompts))
    if folder.exists(LIST):
        return {entry.prompt: entry.file for entry in entries if entry.file}
    stems = [posixpath.splitext(posixpath.basename(entry.file))[0] for entry in entries if entry.file]
    if not all(stem.isdecimal() for stem in stems):
        raise UserError(
            f"Nothing says which prompt each video of {folder.url} was made for: number the files as the prompts."
        )
    return {entry.prompt: entry.file for entry in entries if entry.file}


def _mp4(folder: Folder, file: str) -> bytes:
    """Encoded anew at high quality, so that neither codec nor container tells the systems apart."""
    data = folder.read_bytes(file)
    try:
        return encode_mp4(whole_video(data), _rate(data), crf=10)
    except ValueError as error:
        raise UserError(f"{folder.path(file)} cannot be shown ({error}): give mp4, webm, mov, avi or GIF.") from None


def _store(data: bytes, out: Folder) -> str:
    """Stores a video under a name that says nothing; the same video has the same name."""
    name = f"videos/{hashlib.sha256(data).hexdigest()[:16]}.mp4"
    out.write_bytes(name, data)
    return name


def _ruin(data: bytes, rng: np.random.Generator) -> bytes:
    """The video in coarse blocks with frames out of order: nobody who looks can prefer it."""
    frames = whole_video(data)
    block = max(2, min(BLOCK, min(frames.shape[1:3]) // 4))
    middles = [np.minimum(np.arange(side) // block * block + block // 2, side - 1) for side in frames.shape[1:3]]
    coarse = frames[:, middles[0]][:, :, middles[1]]
    return encode_mp4(np.ascontiguousarray(coarse[rng.permutation(len(coarse))]), _rate(data))


def _rate(data: bytes) -> float:
    """Frames a second; 8 where the file does not say."""
    with av.open(io.BytesIO(data), mode="r") as container:
        return float(container.streams.video[0].average_rate or 8)
