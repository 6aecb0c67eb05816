"""Writes the result of `mav evaluate suite` as one page in the report's style, with the worst and the best videos."""

import io
from typing import Any

import cv2
import numpy as np
from markupsafe import Markup
from PIL import Image

from mav.evaluation.protocols import Preparation
from mav.evaluation.protocols.titles import shown
from mav.evaluation.reading import read_views
from mav.report import figures
from mav.report.collect import data_url
from mav.report.templates import rendered
from mav.storage import Folder

SIDE, FRAMES = 112, 8  # of an animated picture: pixels of the shorter side, and the most frames
LONGEST = 8 * SIDE  # pixels of its longer side
SECONDS = 1.6  # that a picture takes, whatever its video takes


def suite_page(result: dict[str, Any], videos: Folder) -> bytes:
    """Returns the page, one file with everything in it. The videos are read again, those alone that it shows."""
    named = {row["file"] for sides in result["extremes"].values() for side in sides.values() for row in side}
    context = {
        "result": result,
        "url": videos.url,
        "names": {
            name: shown(name).title
            for name in [*result["metrics"], *(n for m in result["missing"] for n in m["metrics"])]
        },
        "cells": {name: cells(name, metric) for name, metric in result["metrics"].items()},
        "pictures": {file: animated(videos, file) for file in sorted(named)},
        "curves": {
            name: Markup(figures.convergence(curve["points"], curve["endless"], f"{shown(name).title} over 1 / n"))
            for name, curve in result["convergence"].items()
        },
        "agreement": agreement_table(result["agreement"]) if result["agreement"] else None,
        "digits": {name: f"%.{shown(name).digits}f" for name in result["metrics"]},
    }
    return rendered("suite.html", context)


def cells(name: str, metric: dict[str, Any]) -> dict[str, str]:
    """Returns the value of a metric, its interval and what real clips reach, as text; '' = there is none."""
    digits = shown(name).digits

    def text(key: str) -> str:
        return "" if metric.get(key) is None else f"{metric[key]:z.{digits}f}"

    interval = f"{text('low')} to {text('high')}" if text("low") else ""
    return {"value": text("value"), "interval": interval, "real": text("real") or text("real_halves")}


def agreement_table(agreement: dict[str, Any]) -> dict[str, Any]:
    """Returns how metrics agree with raters as texts: `questions`, `rows` of (title, cells), `words` below them.

    A cell has `share` ('' = no pair could be judged), `interval` and `verdict`. The last row is one rater's.
    """
    questions = list(agreement["one_rater"])
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in agreement["rows"]:
        found.setdefault((row["metric"], row["of"]), {})[row["question"]] = row
    rows = [
        (f"{shown(name).title}{', of systems' if of == 'systems' else ''}", [_share(row[q]) for q in questions])
        for (name, of), row in found.items()
    ]
    rows.append(("one rater, against the others", [_share(agreement["one_rater"][q]) for q in questions]))
    words = [
        f"{agreement['raters']} raters, {len(agreement['systems'])} systems, {agreement['rated_videos']:,} videos. "
        f"{agreement['answers_without_video']:,} answers are about videos that are not here."
    ]
    asked = [row for row in agreement["rows"] if row["of"] == "videos"]
    words += [
        f"{question}: {row['pairs']:,} pairs of videos for {row['prompts']:,} prompts are judged, and "
        f"{row['raters_even']:,}, on which the raters are even, are left out."
        for question in questions
        if (row := next((row for row in asked if row["question"] == question), None))
    ]
    words += [
        f"{row['question']}, {shown(row['metric']).title}: {row['metric_even']:,} pairs have equal numbers and count a "
        f"half; {row['unmeasured']:,} have none."
        for row in asked
        if row["metric_even"] or row["unmeasured"]
    ]
    return {"questions": questions, "rows": rows, "words": words}


def _share(row: dict[str, Any]) -> dict[str, str]:
    if row["value"] is None:
        return {"share": "", "interval": "", "verdict": ""}
    interval = f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %"
    return {"share": f"{100 * row['value']:.0f} %", "interval": interval, "verdict": row["verdict"]}


def animated(videos: Folder, file: str) -> str:
    """Returns a small animated picture of a video as an address that holds it."""
    frames = read_views(videos, file, Preparation(1), prepared=False, whole=True).whole
    assert frames is not None
    chosen = frames[np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)]
    shorter, longer = sorted(chosen.shape[1:3])
    scale = min(SIDE / shorter, LONGEST / longer)  # a strip grows long when its shorter side becomes SIDE
    size = (max(round(chosen.shape[2] * scale), 1), max(round(chosen.shape[1] * scale), 1))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    first, *others = (Image.fromarray(cv2.resize(frame, size, interpolation=way)) for frame in chosen)
    buffer = io.BytesIO()
    duration = round(1000 * SECONDS / len(chosen))
    first.save(buffer, "WEBP", save_all=True, append_images=others, duration=duration, loop=0, quality=70, method=2)
    return data_url("image/webp", buffer.getvalue())
