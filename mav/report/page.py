"""Writes the report: `index.html`, one file with everything in it, for any screen and without a server."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mav import release
from mav.evaluation.protocols import published
from mav.evaluation.protocols.titles import METRICS, digits_of
from mav.recipes import Recipe, Screening
from mav.report import collect, figures, motion, selection
from mav.report.card import card_context
from mav.report.templates import rendered
from mav.storage import Artifact, Folder

NETWORKS = {
    "clip": "CLIP, the only reader of text for all networks below",
    "train-prior": "P, text to image embedding",
    "train-decoder": "D, embedding to image",
    "train-sr-low": "SR_l, on images",
    "train-sr-high": "SR_h, on images",
    "train-decoder-video": "D^t, embedding to clip",
    "train-interpolation": "F^, frames between frames",
    "train-sr-low-video": "SR_l^t, on clips",
}
TITLES = {"ucf101": "UCF-101, zero-shot", "msrvtt": "MSR-VTT, zero-shot", "interpolation": "Frame interpolation"}
STEADY = "the same throughout"
WORDS = 30  # number of toxic phrases that are shown
YARDSTICKS = {
    "real_halves": "real clips, one half against the other",
    "real": "real clips",
    "shuffled": "ours, with another clip's text",
}


@dataclass(frozen=True)
class StageView:
    """What the report shows of a stage."""

    name: str
    fingerprint: str
    inputs: list[str]
    artifact: Artifact | None
    state: str  # done, stale, missing, failed or running
    seconds: float
    board: Folder | None = None  # where a training left pictures of what it made on the way


def write_report(recipe: Recipe, stages: list[StageView], out: Folder) -> dict[str, Any]:
    """Writes `index.html` into `out` and returns {"bytes", "videos"}. The page says which stages have no artifact."""
    page, videos = render(recipe, stages)
    out.write_bytes("index.html", page)
    return {"bytes": len(page), "videos": videos}


def render(recipe: Recipe, stages: list[StageView]) -> tuple[bytes, int]:
    """Returns the page and the number of videos that it shows."""
    views = {view.name: view for view in stages}
    artifacts = {view.name: view.artifact for view in stages if view.artifact is not None}
    generated, oracle, shards = (artifacts.get(name) for name in ("generate", "oracle", "video-shards"))
    chosen = artifacts.get("video-select")
    clips, made = collect.clips(generated, oracle)
    curriculum, frames = recipe.train_decoder_video.fps, recipe.train_decoder_video.frames or recipe.cascade.frames
    rates = motion.simulate_rates(shards, curriculum, frames, recipe.seed)
    first, last = (a / (a + b) for a, b in (curriculum.start, curriculum.end))  # means, of the range
    cards = collect.cards(artifacts.get("evaluate-card"))
    columns = [{v.name: getattr(v, column) for v in stages} for column in ("inputs", "state", "seconds")]
    context = {
        "recipe": recipe,
        "stages": stages,
        "done": sum(view.state == "done" for view in stages),
        "seconds": sum(view.seconds for view in stages),
        "graph": Markup(figures.graph(*columns) if stages else ""),
        "clips": clips,
        "made": made,
        "oracle": _verdict(oracle),
        "funnel": collect.funnel(artifacts),
        "screened": _screened(artifacts.get("image-metadata"), recipe.screening),
        "pictures": collect.pictures(artifacts.get("image-download"), artifacts.get("image-screen")),
        "training": [_training(views[name], about) for name, about in NETWORKS.items() if name in artifacts],
        "motion_first": "little motion first" if first > last else "much motion first" if first < last else STEADY,
        "curriculum": Markup(figures.fps_curriculum(curriculum.low, curriculum.high, curriculum.start, curriculum.end)),
        "rates": Markup(figures.shown_rates(rates, curriculum.low, curriculum.high)),
        "clamped": motion.clamped(rates),
        "films": motion.examples(shards),
        "sheets": {
            "clips": selection.sheets(shards, chosen),
            "pictures": selection.sheets(artifacts.get("image-download"), artifacts.get("image-select")),
        },
        "parts": selection.parts(chosen),
        "filters": [
            (stage, reason, row)
            for stage in ("image-select", "video-select")
            if stage in artifacts
            for reason, row in artifacts[stage].manifest.metrics.get("filters", {}).items()
        ],
        "cards": [card_context(card) for card in cards if "skipped" not in card],
        "no_cards": [card for card in cards if "skipped" in card],
        "tables": [_table(benchmark, result) for benchmark, result in collect.results(artifacts).items()],
        "human": {"published": published()["human"], "study": _study(artifacts.get("human-study"))},
        "software": _software(artifacts.values()),
        "version": release(),
    }
    filters = {
        "duration": figures.duration,
        "share": lambda value: "" if value is None else f"{value:.3f}",
        "percent": lambda share: "no" if share is None else f"{100 * share:.0f} %",
    }
    return rendered("page.html", context, filters), len(clips)


def _verdict(oracle: Artifact | None) -> dict[str, Any] | None:
    """Returns the oracle's result, and the places of its motion ratios on a logarithmic scale from 1/16 to 16."""
    if oracle is None:
        return None
    result: dict[str, Any] = oracle.folder.read_json("result.json")

    def figure(value: float, form: str) -> str:
        return f"{value:{form}}".replace("%", " %")

    def place(ratio: float | None) -> float | None:
        return None if ratio is None else 100 * min(max((math.log2(max(ratio, 1e-6)) + 4) / 8, 0.0), 1.0)

    def row(what: str, name: str, form: str, right: str) -> dict[str, str]:
        value, interval = result[name], result["intervals"][name]
        shown = "nothing to read" if value is None else figure(value, form)
        ends = " to ".join(figure(end, form) for end in interval or ())
        return {"what": what, "value": shown, "interval": ends, "right": right}

    def clips(name: str, form: str) -> str:
        return "" if result[name] is None else f"{figure(result[name], form)} in the clips"

    coloured = result["chance_colour"] is not None
    strength, what = ("saturation", "colour and shape") if coloured else ("brightness", "digit")
    result["rows"] = [
        row("direction kept: mean cosine of successive displacements", "direction_cosine", ".2f",
            clips("direction_cosine_clips", ".2f")),
        row("reversals of the direction", "reversals", ".0%", clips("reversals_clips", ".0%")),
        row("area of the object, filled over given frames", "area_change", "+.1%", "0 %"),
        row(f"{strength} of the object, filled over given frames", "saturation_change", "+.1%", "0 %"),
        row("frame rate obeyed by D^t", "frame_rate_obeyed", ".2f", "1"),
        row(f"{what} of the first frame kept", "persistence", ".0%", "100 %"),
    ]  # fmt: skip
    interval = result["intervals"]["speed_ratio"]
    result["place"] = {name: place(result[name]) for name in ("speed_ratio", "motion_ratio_time_off")}
    result["span"] = [place(end) for end in interval] if interval else None
    return result


def _screened(metadata: Artifact | None, rule: Screening) -> dict[str, Any] | None:
    """Returns the toxic phrases that screening found most often, and the distribution of each score."""
    if metadata is None or "toxic_words" not in metadata.manifest.counts:
        return None
    counts = metadata.manifest.counts
    words = sorted(counts["toxic_words"].items(), key=lambda item: (-item[1], item[0]))
    thresholds = {"punsafe": rule.punsafe_threshold, "pwatermark": rule.pwatermark_threshold}
    drawn = {n: figures.histogram(counts[f"{n}_histogram"], least, f"rows by {n}") for n, least in thresholds.items()}
    charts = {name: Markup(chart) for name, chart in drawn.items()}
    return {"words": words[:WORDS], "phrases": len(words), "charts": charts, "thresholds": thresholds}


def _training(view: StageView, about: str) -> dict[str, Any]:
    """Returns the curve, the figures and the pictures of a training stage that is done."""
    name, artifact = view.name, view.artifact
    assert artifact is not None
    points, held_out = collect.curves(artifact), collect.curves(artifact, "validation")
    last = [loss for _, loss in points[-5:]]
    return {
        "name": name,
        "about": about,
        "chart": Markup(figures.curve(points, f"loss of {name}", held_out)),
        "levels": Markup(figures.levels(collect.by_level(artifact), f"held-out loss of {name} by noise level")),
        "held_out": held_out[-1][1] if held_out else None,
        "width": artifact.manifest.metrics.get("average_width"),
        "loss": sum(last) / len(last) if last else None,
        "samples": points[-1][0] if points else None,
        "sheet": collect.samples_image(artifact),
        "shown": collect.shown_while_training(view.board),
        "seconds": artifact.manifest.seconds,
        "utilisation": artifact.manifest.metrics.get("utilisation"),
        "data_wait": artifact.manifest.metrics.get("data_wait"),
    }


def _table(benchmark: str, result: dict[str, Any]) -> dict[str, Any]:
    """Returns the table of a benchmark: our row, yardsticks, and the published rows, each with its protocol."""
    protocol, metrics, theirs = result["protocol"], result["metrics"], published()[benchmark]
    names = [name for name in METRICS if name in metrics or any(name in row for row in theirs)]
    ours = {"protocol": f"{protocol['name']} v{protocol['version']}", "ours": True}
    cells = [_cell(name, metrics.get(name)) for name in names]
    rows: list[dict[str, Any]] = [{"system": "This run", "cells": cells, **ours}]
    for key, label in YARDSTICKS.items():
        cells = [_cell(name, {"value": metrics.get(name, {}).get(key)}) for name in names]
        if any(cell["value"] for cell in cells):
            rows.append({"system": label, "cells": cells, **ours, "yardstick": True})
    for row in theirs:
        if "preferred" not in row:
            cells = [_cell(name, {"value": row.get(name)}, is_published=True) for name in names]
            rows.append({"system": row["system"], "cells": cells, "protocol": row["protocol"], "ours": False})
    return {
        "title": TITLES[benchmark],
        "columns": [{"name": METRICS[name].title, "better": METRICS[name].better} for name in names],
        "rows": rows,
        "result": result,
        "protocol": protocol,
        "preferred": [row for row in theirs if "preferred" in row],
    }


def _cell(name: str, metric: dict[str, Any] | None, is_published: bool = False) -> dict[str, str]:
    """Returns value and interval as text."""
    if not metric or metric.get("value") is None:
        return {"value": "", "interval": ""}
    value, digits = metric["value"], digits_of(name, metric["value"], is_published)
    interval = f"{metric['low']:.{digits}f} to {metric['high']:.{digits}f}" if metric.get("low") is not None else ""
    return {"value": f"{value:.{digits}f}", "interval": interval}


def _study(artifact: Artifact | None) -> dict[str, Any] | None:
    if artifact is None:
        return None
    study = artifact.folder.read_json("study.json")
    return {
        "pairs": artifact.manifest.metrics.get("pairs", len(study["items"])),
        "items": len(study["items"]),
        "raters": study["raters"],
        "rule": study["rule"],
        "url": artifact.folder.url,
        "sha256": artifact.folder.sha256("study.json"),
    }


def _software(artifacts: Iterable[Artifact]) -> dict[str, str]:
    """Returns the versions that the artifacts were made with; several where they differ."""
    found: dict[str, set[str]] = {}
    for artifact in artifacts:
        for name, version in artifact.manifest.software.items():
            found.setdefault(name, set()).add(str(version))
    return {name: ", ".join(sorted(versions)) for name, versions in sorted(found.items())}
