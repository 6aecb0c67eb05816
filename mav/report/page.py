"""Writes the report: `index.html`, one file with everything in it, to be read on any screen without a server."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from mav.evaluation.protocols import published
from mav.recipes import Recipe, Screening
from mav.report import collect, figures, motion
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
METRICS = {  # name, which way is better, digits
    "fvd": ("FVD", "lower", 1),
    "is": ("IS", "higher", 2),
    "fid": ("FID", "lower", 2),
    "clipsim": ("CLIPSIM", "higher", 4),
    "psnr": ("F^ PSNR", "higher", 2),
    "psnr_blend": ("Blending", "", 2),
    "psnr_gain": ("Gain", "higher", 2),
}
WORDS = 30  # toxic ones shown
YARDSTICKS = {
    "real_halves": "real clips, one half against the other",
    "real": "real clips",
    "shuffled": "ours, with another clip's text",
}


@dataclass(frozen=True)
class StageView:
    """A stage as the report sees it."""

    name: str
    fingerprint: str
    inputs: list[str]
    artifact: Artifact | None
    state: str  # done, stale, missing, failed or running
    seconds: float


def write_report(recipe: Recipe, stages: list[StageView], out: Folder) -> dict[str, Any]:
    """Writes `index.html` into `out`; returns {"bytes", "videos"}. Stages that have no artifact leave their part out, and say so."""
    page, videos = render(recipe, stages)
    out.write_bytes("index.html", page)
    return {"bytes": len(page), "videos": videos}


def render(recipe: Recipe, stages: list[StageView]) -> tuple[bytes, int]:
    """The page, and how many videos it shows."""
    artifacts = {view.name: view.artifact for view in stages if view.artifact is not None}
    files = resources.files(__package__)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": figures.duration,
        "number": lambda n: f"{n:,}".replace(",", "\u202f"),
        "percent": percent,
    }
    clips, made = collect.clips(artifacts.get("generate"), artifacts.get("oracle"))
    curriculum, shards = recipe.train_decoder_video.fps, artifacts.get("video-shards")
    rates = motion.shown_rates(
        shards, curriculum, recipe.train_decoder_video.frames or recipe.cascade.frames, recipe.seed
    )
    context = {
        "recipe": recipe,
        "stages": stages,
        "done": sum(view.state == "done" for view in stages),
        "seconds": sum(view.seconds for view in stages),
        "graph": Markup(
            figures.graph(
                {v.name: v.inputs for v in stages},
                {v.name: v.state for v in stages},
                {v.name: v.seconds for v in stages},
            )
            if stages
            else ""
        ),
        "clips": clips,
        "made": made,
        "oracle": _verdict(artifacts.get("oracle")),
        "funnel": collect.funnel(artifacts),
        "screened": _screened(artifacts.get("image-metadata"), recipe.screening),
        "pictures": collect.pictures(artifacts.get("image-download"), artifacts.get("image-screen")),
        "training": list(_training(artifacts)),
        "curriculum": Markup(figures.fps_curriculum(curriculum.low, curriculum.high, curriculum.start, curriculum.end)),
        "rates": Markup(figures.shown_rates(rates, curriculum.low, curriculum.high)),
        "clamped": motion.clamped(rates),
        "films": motion.examples(shards),
        "tables": list(_tables(collect.results(artifacts))),
        "human": {"published": published()["human"], "study": _study(artifacts.get("human-study"))},
        "software": _software(artifacts.values()),
    }
    return environment.get_template("page.html").render(context).encode(), len(clips)


def percent(share: float | None) -> str:
    return "no" if share is None else f"{100 * share:.0f} %"


def _verdict(oracle: Artifact | None) -> dict[str, Any] | None:
    """The oracle's figures, with what the motion ratio's place on a logarithmic scale from 1/16 to 16 is."""
    if oracle is None:
        return None
    result: dict[str, Any] = oracle.folder.read_json("result.json")

    def place(ratio: float | None) -> float | None:
        return None if ratio is None else 100 * min(max((math.log2(max(ratio, 1e-6)) + 4) / 8, 0.0), 1.0)

    intervals = result["intervals"]
    result["place"] = {name: place(result[name]) for name in ("motion_ratio", "motion_ratio_time_off")}
    result["span"] = [place(end) for end in intervals["motion_ratio"]] if intervals["motion_ratio"] else None
    return result


def _screened(metadata: Artifact | None, rule: Screening) -> dict[str, Any] | None:
    """What screening saw of the tables: the toxic phrases found most often, and how each score is spread."""
    if metadata is None or "toxic_words" not in metadata.manifest.counts:
        return None
    counts = metadata.manifest.counts
    words = sorted(counts["toxic_words"].items(), key=lambda item: (-item[1], item[0]))
    thresholds = {"punsafe": rule.punsafe_threshold, "pwatermark": rule.pwatermark_threshold}
    charts = {
        n: Markup(figures.histogram(counts[f"{n}_histogram"], least, f"rows by {n}")) for n, least in thresholds.items()
    }
    return {"words": words[:WORDS], "phrases": len(words), "charts": charts, "thresholds": thresholds}


def _training(artifacts: dict[str, Artifact]) -> Iterable[dict[str, Any]]:
    for name, about in NETWORKS.items():
        if name in artifacts:
            points = collect.curves(artifacts[name])
            yield {
                "name": name,
                "about": about,
                "chart": Markup(
                    figures.curve(points, f"loss of {name}", held_out := collect.curves(artifacts[name], "validation"))
                ),
                "held_out": held_out[-1][1] if held_out else None,
                "width": artifacts[name].manifest.metrics.get("average_width"),
                "loss": sum(y for _, y in points[-5:]) / len(points[-5:]) if points else None,
                "samples": points[-1][0] if points else None,
                "sheet": collect.samples_image(artifacts[name]),
                "seconds": artifacts[name].manifest.seconds,
            }


def _tables(results: dict[str, dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """One table a benchmark: our row with interval, protocol and count; yardsticks; then the published rows, each with its protocol."""
    for benchmark, result in results.items():
        protocol = result["protocol"]
        theirs = published()[benchmark]
        names = [name for name in METRICS if name in result["metrics"] or any(name in row for row in theirs)]
        cells = [_cell(name, result["metrics"].get(name)) for name in names]
        ours = {
            "system": "This run",
            "cells": cells,
            "protocol": f"{protocol['name']} v{protocol['version']}",
            "ours": True,
        }
        rows: list[dict[str, Any]] = [ours]
        for key, label in YARDSTICKS.items():
            cells = [_cell(name, {"value": result["metrics"].get(name, {}).get(key)}) for name in names]
            if any(cell["value"] for cell in cells):
                rows.append(
                    {"system": label, "cells": cells, "protocol": ours["protocol"], "ours": True, "yardstick": True}
                )
        for row in (row for row in theirs if "preferred" not in row):
            cells = [_cell(name, {"value": row.get(name)}, published_digits=True) for name in names]
            rows.append({"system": row["system"], "cells": cells, "protocol": row["protocol"], "ours": False})
        yield {
            "title": TITLES[benchmark],
            "columns": [{"name": METRICS[name][0], "better": METRICS[name][1]} for name in names],
            "rows": rows,
            "result": result,
            "protocol": protocol,
            "preferred": [row for row in theirs if "preferred" in row],
        }


def _cell(name: str, facts: dict[str, Any] | None, published_digits: bool = False) -> dict[str, str]:
    if not facts or facts.get("value") is None:
        return {"value": "", "interval": ""}
    digits = METRICS[name][2]
    if published_digits:
        digits = max(digits, len(str(facts["value"]).partition(".")[2]))
    elif abs(facts["value"]) < 1:  # demo features are small numbers
        digits = max(digits, 3)
    interval = f"{facts['low']:.{digits}f} to {facts['high']:.{digits}f}" if facts.get("low") is not None else ""
    return {"value": f"{facts['value']:.{digits}f}", "interval": interval}


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
    """Versions the artifacts were made with; several where they differ."""
    found: dict[str, set[str]] = {}
    for artifact in artifacts:
        for name, version in artifact.manifest.software.items():
            found.setdefault(name, set()).add(str(version))
    return {name: ", ".join(sorted(versions)) for name, versions in sorted(found.items())}
