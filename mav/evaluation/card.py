"""The validity card of a protocol: which damage to real clips its metrics see, and from which strength (`corruptions`).

The real clips are halved. One half is the reference; the other is measured against it as it is, which is what a perfect
generator would reach with so many clips, and damaged in every kind at every strength. A strength counts as seen when
the metric is worse than for the undamaged half beyond chance: the 95 % interval of the difference, put together from
the two values' own intervals (Zou and Donner 2008), does not reach zero. The halves are treated as independent sets,
because two systems' videos are. Of 120 pairs of undamaged sets of 24 or 48 normal rows, 0 to 6 % were called worse,
most by recall, whose interval is narrow; a strength alone may therefore be chance.
"""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mav.errors import UserError
from mav.evaluation.corruptions import (
    KINDS,
    WRONG_PROMPT,
    WRONG_PROMPT_ABOUT,
    WRONG_PROMPT_STRENGTHS,
    every,
    wrong_prompts,
)
from mav.evaluation.feature_store import Runner, compute, in_process
from mav.evaluation.features import Networks
from mav.evaluation.measure import Report
from mav.evaluation.protocols import Preparation, Protocol
from mav.evaluation.protocols.titles import kind_of, shown
from mav.evaluation.reading import Entry
from mav.evaluation.score import Scorer
from mav.evaluation.sets import BenchmarkSet
from mav.recipes.evaluation import LEAST_CARD_CLIPS
from mav.storage import Folder

CARD = "card.json"
EQUAL = 1e-6  # of the largest value: smaller differences are rounding
Point = dict[str, Any]


class NoCardError(UserError):
    """No metric can be judged on these clips."""


def make_card(
    protocol: Protocol, preparation: Preparation, clips: Folder, entries: Sequence[Entry], networks: Networks,
    out: Folder, draws: int = 200, seed: int = 0, report: Report = lambda _: None, run: Runner = in_process,
) -> dict[str, Any]:  # fmt: skip
    """Writes `card.json` about the metrics of a protocol whose weights are there and which clips alone can judge.

    `entries` are the clips of the folder that are taken. Where every one has a prompt, metrics that compare with texts
    are judged too, and wrong prompts are one of the damages, unless all are equal. Features are stored under `out`, so
    that a killed card goes on where it was. Raises NoCardError when no metric can be judged.
    """
    prompted = all(entry.prompt for entry in entries)
    metrics, left_out = _runnable(protocol, networks, prompted)
    if not metrics:
        raise NoCardError(f"No metric of {protocol.name} can be judged: {'; '.join(left_out.values())}.")
    protocol = protocol.only(metrics)
    networks = dataclasses.replace(networks, names=protocol.networks)
    # The two halves, of clips from the whole list.
    halves = entries[::2], entries[1::2]
    reference, judged = ([Entry(i, each.file, each.prompt) for i, each in enumerate(half)] for half in halves)
    damages = [None, *every(seed)]
    total, keep = len(judged) * len(damages) + len(reference), out.child("features")
    done = 0

    def features(entries: Sequence[Entry], change: Any = None) -> Any:
        nonlocal done
        found = compute(entries, clips, preparation, networks, keep, lambda _, __: None, run, change)
        done += len(entries)
        report({"stage": "card", "samples": done, "total": total})
        return found

    real = features(reference)
    measured = []
    clean = None
    for damage in damages:
        ours = features(judged, damage)
        clean = clean or ours
        measured.append(Scorer(protocol, networks, BenchmarkSet(()), ours, real, draws, seed).metrics())
        few = min(ours.readable, real.readable) < LEAST_CARD_CLIPS // 2
        if damage is None and (few or all(metric["value"] is None for metric in measured[0].values())):
            counts = f"{ours.readable} and {real.readable} readable clips in the two halves"
            remedy = f"name a folder with more, {LEAST_CARD_CLIPS} at least"
            raise NoCardError(f"No metric can be judged on {clips.url} with {counts}: {remedy}.")
    assert clean is not None
    tried = [(damage.kind, damage.strength, found) for damage, found in zip(damages, measured, strict=True) if damage]
    kinds = {name: kind.about for name, kind in KINDS.items()}
    if prompted and len({entry.prompt for entry in judged}) > 1:  # the frames stay, so that their features do
        kinds[WRONG_PROMPT] = WRONG_PROMPT_ABOUT
        for strength in WRONG_PROMPT_STRENGTHS:
            texts = wrong_prompts([entry.prompt for entry in judged], strength, seed)
            told = tuple(dataclasses.replace(entry, prompt=text) for entry, text in zip(judged, texts, strict=True))
            ours = dataclasses.replace(clean, entries=told)
            found = Scorer(protocol, networks, BenchmarkSet(()), ours, real, draws, seed).metrics()
            tried.append((WRONG_PROMPT, strength, found))
    # What each metric sees.
    rows: list[dict[str, Any]] = []
    for name in metrics:
        intact = measured[0][name]
        if intact["value"] is None:
            left_out[name] = intact["reason"]
            continue
        for kind in kinds:
            values = [
                {"strength": strength, **{key: found[name][key] for key in ("value", "low", "high")}}
                for of, strength, found in tried
                if of == kind
            ]
            rows.append({"metric": name, "corruption": kind, **judge(intact, values, shown(name).better == "lower")})
    judged_names = [name for name in metrics if name not in left_out]
    card = {
        "protocol": dataclasses.asdict(protocol),
        "preparation": dataclasses.asdict(preparation),
        "reference": real.readable,
        "judged": clean.readable,
        "failed": {"reference": real.failed, "judged": clean.failed},
        "seed": seed,
        "real": {name: {key: measured[0][name][key] for key in ("value", "low", "high")} for name in judged_names},
        "rows": rows,
        "corruptions": kinds,
        "not_judged": left_out,
        "networks": networks.describe(),
    }
    card["words"] = [in_words(name, card) for name in judged_names]
    out.write_json(CARD, card)
    return card


def _runnable(protocol: Protocol, networks: Networks, prompted: bool) -> tuple[list[str], dict[str, str]]:
    """Returns the metrics that the card can judge, and why it cannot judge the others."""
    missing = {network: " ".join(networks.lacks(network)).rstrip(".") for network in protocol.networks}
    metrics, left_out = [], {}
    for name, network in protocol.features.items():
        kind = kind_of(name)
        if kind in ("clipsim", "overall_consistency") and not prompted:
            left_out[name] = "it compares with texts: name the clips as their prompts, or list both in videos.json"
        elif kind == "is" and network != "c3d":
            left_out[name] = "it compares with the sentences of classes, which a folder of clips has not"
        elif network == "none":
            left_out[name] = "it compares frames with the filmed ones"
        elif missing[network]:
            left_out[name] = missing[network]
        else:
            metrics.append(name)
    return metrics, left_out


def judge(clean: Point, values: Sequence[Point], lower: bool) -> dict[str, Any]:
    """Returns what a metric makes of one kind of damage, from its value on undamaged clips and those at each strength.

    `points` repeats the values with `worse`, `seen_from` is the strength from which on all are worse (None = there is
    none), `rises` says whether no step leads to a better value and the last is worse than undamaged clips, and
    `spearman` is the rank correlation of badness with strength, 0 included (None = the values are equal). Values that
    could not be computed count as unseen.
    """
    known = [point for point in values if point["value"] is not None]
    scale = EQUAL * max(abs(point["value"]) for point in (clean, *known))
    points = [point | {"worse": point in known and _excess(clean, point, lower) > scale} for point in values]
    first = next((i for i in range(len(points)) if all(point["worse"] for point in points[i:])), None)
    bad = [(1 if lower else -1) * point["value"] for point in (clean, *known)]
    steps = [b - a for a, b in pairwise(bad)]
    return {
        "points": points,
        "seen_from": None if first is None else points[first]["strength"],
        "rises": bool(all(step >= -scale for step in steps) and bad[-1] - bad[0] > scale),
        "spearman": spearman([0.0, *(point["strength"] for point in known)], bad, scale),
    }


def _excess(clean: Point, point: Point, lower: bool) -> float:
    """Returns the lower end of the interval of how much worse a value is than that of undamaged clips."""
    a, b = (point, clean) if lower else (clean, point)
    below, above = (0.0 if p[end] is None else p["value"] - p[end] for p, end in ((a, "low"), (b, "high")))
    return float(a["value"] - b["value"] - np.hypot(below, above))


def spearman(x: Sequence[float], y: Sequence[float], equal: float = 0.0) -> float | None:
    """Returns the rank correlation; ties share their mean rank. None = one side does not vary by more than `equal`."""

    def ranks(values: np.ndarray) -> np.ndarray:
        gap = values[:, None] - values[None]
        return (gap > equal).sum(axis=1) + (np.abs(gap) <= equal).sum(axis=1) / 2

    a, b = ranks(np.asarray(x, np.float64)), ranks(np.asarray(y, np.float64))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return round(float(np.corrcoef(a, b)[0, 1]), 12)  # the last digits of a sum are those of the machine


def blind_to(corruption: str, card: dict[str, Any]) -> list[str]:
    """Returns the metrics of a card that see a kind of damage at no strength tried."""
    rows = [row for row in card["rows"] if row["corruption"] == corruption]
    return [row["metric"] for row in rows if not any(point["worse"] for point in row["points"])]


def in_words(metric: str, card: dict[str, Any]) -> str:
    """Returns one or two sentences: what the metric sees and, last, what it does not see at this number of clips."""
    title = shown(metric).title
    seen, partly, unseen = [], [], []
    for row in card["rows"]:
        if row["metric"] == metric:
            kind, found = row["corruption"], [f"{p['strength']:g}" for p in row["points"] if p["worse"]]
            if row["seen_from"] is not None:
                seen.append(f"{kind} from {row['seen_from']:g}")
            elif found:
                partly.append(f"{kind} at {', '.join(found)}, but not at every greater strength")
            else:
                unseen.append(kind)
    counts = f"with {card['judged']} clips against {card['reference']}"
    sentences = [f"{title} sees {'; '.join([*seen, *partly])} ({counts})." if seen or partly else ""]
    if unseen:
        sentences.append(f"{title} does not see {_listed(unseen)} at any strength tried ({counts}).")
    return " ".join(filter(None, sentences))


def _listed(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
