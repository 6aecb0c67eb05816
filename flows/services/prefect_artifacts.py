"""What the Prefect UI shows of a stage: a bar with its rate and time left while it works; its counts, curve and pictures when it is done.

The server is told, never asked: when it is away, nothing here stops a stage.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import re
import threading
import time
from typing import Any

import httpx
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.exceptions import PrefectException

from flows.engine.run import Run
from flows.engine.stage import Node
from flows.engine.store import read_json_or_none
from flows.services.terminal import FACTS
from mav.report import collect, figures
from mav.storage import Artifact

TELL_SECONDS = 5.0  # an update takes a server on sqlite 60 ms
AWAY = (httpx.HTTPError, PrefectException, ConcurrencySlotAcquisitionError)
PICTURES = 8
CURVE_STYLE = "<style>polyline{fill:none;stroke:#2563eb}.raw{opacity:.3}text{font:11px sans-serif;fill:#888}line{stroke:#ccc}</style>"


class Bar:
    """While the block runs, a progress artifact `STAGE-progress` follows the stage's heartbeat in storage, whoever writes it."""

    def __init__(self, node: Node, run: Run) -> None:
        self.node, self.work = node, run.store.work(node)
        self.began = time.time()
        self._stop = threading.Event()
        context = contextvars.copy_context()  # the artifact belongs to the task run
        self._thread = threading.Thread(target=context.run, args=(self._loop,), daemon=True, name=f"bar-{node.name}")

    def __enter__(self) -> Bar:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        self._done = kind is None
        self._stop.set()
        self._thread.join(timeout=2.0)  # a server that is away is not waited for

    def _loop(self) -> None:
        artifact: Any = None
        first: tuple[float, float] | None = (
            None  # time and units at the first beat: the rate is of this run, not of what was done before
        )
        while not self._stop.wait(TELL_SECONDS):
            beat = read_json_or_none(self.work, "heartbeat.json") or {}
            if "done" not in beat or beat["time"] < self.began:
                continue
            if beat["total"]:  # else it waits
                first = first or (beat["time"], beat["done"])
            text = progress_text(beat, first or (beat["time"], beat["done"]))
            with contextlib.suppress(*AWAY):
                percent = round(min(100.0, 100 * beat["done"] / (beat["total"] or 1)), 1)
                if artifact is None:
                    artifact = create_progress_artifact(percent, key=f"{self.node.name}-progress", description=text)
                else:
                    update_progress_artifact(artifact, percent, description=text)
        if artifact is not None and self._done:
            with contextlib.suppress(*AWAY):
                update_progress_artifact(
                    artifact, 100.0, description=f"done in {figures.duration(time.time() - self.began)}"
                )


def progress_text(beat: dict[str, Any], first: tuple[float, float]) -> str:
    """'120 of 400 at 3.2/s, 1 min 28 s left; loss 0.31' from a heartbeat; `first` is (time, units done) of the run's first one.

    Of a stage that has not begun, what it waits for.
    """
    seconds, units = beat["time"] - first[0], beat["done"] - first[1]
    if "waits" in beat:
        return f"waits {beat['waits']}"
    text = f"{beat['done']:,} of {beat['total']:,}"
    if seconds > 0 and units > 0:
        rate = units / seconds
        text += f" at {rate:.3g}/s, {figures.duration((beat['total'] - beat['done']) / rate)} left"
    facts = [form.format(beat[name]) for name, form in FACTS.items() if beat.get(name) is not None]
    return "; ".join([text, *facts])


def show(node: Node, artifact: Artifact) -> None:
    """The markdown artifact `STAGE`: counts and measured values as a table, the loss curve, a few pictures."""
    try:
        text = page(node, artifact)
    except Exception as error:  # the stage is done, whether or not it can be looked at
        text = f"# {node.name}\n\nDone, but its pictures cannot be shown: {error}\n"
    with contextlib.suppress(*AWAY):
        create_markdown_artifact(key=node.name, markdown=text, description=node.stage.about)


def page(node: Node, artifact: Artifact) -> str:
    """Markdown of a finished stage."""
    manifest = artifact.manifest
    rows = [("seconds", manifest.seconds), ("fingerprint", manifest.fingerprint[:16]), ("where", artifact.folder.url)]
    for key, value in manifest.counts.items():
        rows += [(f"{key}: {k}", v) for k, v in value.items()] if isinstance(value, dict) else [(key, value)]
    rows += [(key, value) for key, value in manifest.metrics.items() if isinstance(value, (int, float, str))]
    table = "\n".join(f"| {key} | {_shown(value)} |" for key, value in rows)
    images = _images(node.name, artifact)
    shown = [f"![{what}]({url})" for what, url in images]
    if len(shown) > 2:  # small ones, beside their captions
        shown = [
            "\n".join(
                [
                    "| | |\n|---|---|",
                    *(f"| {picture} | {what} |" for picture, (what, _) in zip(shown, images, strict=True)),
                ]
            )
        ]
    return "\n\n".join([f"# {node.name}", f"| | |\n|---|---|\n{table}", *shown]) + "\n"


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _images(name: str, artifact: Artifact) -> list[tuple[str, str]]:
    """(what, data URL) of whatever there is to see."""
    images = []
    if drawn := figures.curve(collect.curves(artifact), f"loss of {name}"):
        svg = re.sub(r' data-points="[^"]*"', "", drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        head, _, rest = svg.partition(">")
        images.append(("loss over samples", collect.data_url("image/svg+xml", f"{head}>{CURVE_STYLE}{rest}".encode())))
    if sheet := collect.samples_image(artifact):
        images.append(("samples", sheet))
    if name == "image-download":
        images += [(found["caption"], found["image"]) for found in collect.pictures(artifact, None)[:PICTURES]]
    if name == "generate":
        images += [
            (clip["prompt"], still(artifact, clip["file"]))
            for clip in artifact.folder.read_json("videos.json")[:PICTURES]
        ]
    return [(re.sub(r"[\[\]|\s]+", " ", what), url) for what, url in images]


def still(artifact: Artifact, video: str) -> str:
    """Data URL of a video's middle frame."""
    from PIL import Image

    from mav.data.videos.video_io import read_frames

    frames, buffer = read_frames(artifact.folder.read_bytes(video)), io.BytesIO()
    Image.fromarray(frames[len(frames) // 2]).save(buffer, "JPEG", quality=85)
    return collect.data_url("image/jpeg", buffer.getvalue())
