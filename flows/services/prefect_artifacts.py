"""What the Prefect UI shows of a stage: a bar while it runs; its counts, loss curve and pictures when it is done.

The server only receives: when it does not answer, nothing here stops a stage.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from flows.services.gpu_slots import SERVER_AWAY
from flows.services.heartbeat import read_heartbeat
from flows.services.terminal import progress_values
from mav.report import collect, figures
from mav.storage import Artifact, Folder

UPDATE_SECONDS = 5.0  # an update takes a server on sqlite 60 ms
PICTURES = 8
CURVE_STYLE = (
    "<style>polyline{fill:none;stroke:#2563eb}.raw{opacity:.3}text{font:11px sans-serif;fill:#888}"
    "line{stroke:#ccc}</style>"
)


@contextlib.contextmanager
def stage_artifacts(name: str, about: str, work: Folder) -> Iterator[Callable[[Artifact], None]]:
    """Shows a stage's progress while the block runs, and yields a function that shows the finished artifact."""
    bar = _ProgressBar(name, work)
    bar.start()
    try:
        yield lambda artifact: show(name, about, artifact)
        bar.done = True
    finally:
        bar.stop()


class _ProgressBar:
    """The progress artifact `STAGE-progress`. It follows the stage's heartbeat in storage, whoever writes it."""

    def __init__(self, name: str, work: Folder) -> None:
        self.name, self.work, self.done = name, work, False
        self.began = time.time()
        self._stop = threading.Event()
        context = contextvars.copy_context()  # makes the artifact belong to the task run
        self._thread = threading.Thread(target=context.run, args=(self._loop,), daemon=True, name=f"bar-{name}")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2.0)  # does not wait for a server that is away

    def _loop(self) -> None:
        artifact: Any = None
        first: tuple[float, float] | None = None  # (time, units done) of the first report: the rate is this run's
        while not self._stop.wait(UPDATE_SECONDS):
            beat = read_heartbeat(self.work)
            if "done" not in beat or beat["time"] < self.began:
                continue
            if beat["total"]:  # without a total the stage waits
                first = first or (beat["time"], beat["done"])
            text = progress_text(beat, first or (beat["time"], beat["done"]))
            with contextlib.suppress(*SERVER_AWAY):
                percent = round(min(100.0, 100 * beat["done"] / (beat["total"] or 1)), 1)
                if artifact is None:
                    artifact = create_progress_artifact(percent, key=f"{self.name}-progress", description=text)
                else:
                    update_progress_artifact(artifact, percent, description=text)
        if artifact is not None and self.done:
            with contextlib.suppress(*SERVER_AWAY):
                elapsed = figures.duration(time.time() - self.began)
                update_progress_artifact(artifact, 100.0, description=f"done in {elapsed}")


def progress_text(beat: dict[str, Any], first: tuple[float, float]) -> str:
    """Says '120 of 400 at 3.2/s, 1 min 28 s left; loss 0.31' from a heartbeat, or what a stage waits for.

    `first` is (time, units done) of the run's first heartbeat.
    """
    if "waits" in beat:
        return f"waits {beat['waits']}"
    seconds, units = beat["time"] - first[0], beat["done"] - first[1]
    text = f"{beat['done']:,} of {beat['total']:,}"
    if seconds > 0 and units > 0:
        rate = units / seconds
        text += f" at {rate:.3g}/s, {figures.duration((beat['total'] - beat['done']) / rate)} left"
    return "; ".join([text, *progress_values(beat)])


def show(name: str, about: str, artifact: Artifact) -> None:
    """Creates the markdown artifact `STAGE`: counts and measured values as a table, the loss curve, a few pictures."""
    try:
        text = page(name, artifact)
    except Exception as error:  # the stage is done, whether or not its page can be made
        text = f"# {name}\n\nDone, but its pictures cannot be shown: {error}\n"
    with contextlib.suppress(*SERVER_AWAY):
        create_markdown_artifact(key=name, markdown=text, description=about)


def page(name: str, artifact: Artifact) -> str:
    """Returns the markdown page of a finished stage."""
    manifest = artifact.manifest
    rows: list[tuple[str, Any]] = [
        ("seconds", manifest.seconds),
        ("fingerprint", manifest.fingerprint[:16]),
        ("where", artifact.folder.url),
    ]
    for key, value in manifest.counts.items():
        rows += [(f"{key}: {k}", v) for k, v in value.items()] if isinstance(value, dict) else [(key, value)]
    rows += [(key, value) for key, value in manifest.metrics.items() if isinstance(value, (int, float, str))]
    table = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows)
    images = _images(name, artifact)
    shown = [f"![{what}]({url})" for what, url in images]
    if len(shown) > 2:  # many pictures become a table, each beside its caption
        cells = (f"| {picture} | {what} |" for picture, (what, _) in zip(shown, images, strict=True))
        shown = ["\n".join(["| | |\n|---|---|", *cells])]
    return "\n\n".join([f"# {name}", f"| | |\n|---|---|\n{table}", *shown]) + "\n"


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _images(name: str, artifact: Artifact) -> list[tuple[str, str]]:
    """Returns (caption, data URL) of every picture that a stage's page shows."""
    images = []
    if drawn := figures.curve(collect.curves(artifact), f"loss of {name}"):
        svg = re.sub(r' data-points="[^"]*"', "", drawn)
        svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{CURVE_STYLE}", 1)
        images.append(("loss over samples", collect.data_url("image/svg+xml", svg.encode())))
    if sheet := collect.samples_image(artifact):
        images.append(("samples", sheet))
    if name == "image-download":
        images += [(found["caption"], found["image"]) for found in collect.pictures(artifact, None)[:PICTURES]]
    if name == "generate":
        videos = artifact.folder.read_json("videos.json")[:PICTURES]
        images += [(video["prompt"], still(artifact, video["file"])) for video in videos]
    return [(re.sub(r"[\[\]|\s]+", " ", what), url) for what, url in images]


def still(artifact: Artifact, video: str) -> str:
    """Returns the data URL of a video's middle frame."""
    from PIL import Image

    from mav.data.videos.video_io import read_frames

    frames, buffer = read_frames(artifact.folder.read_bytes(video)), io.BytesIO()
    Image.fromarray(frames[len(frames) // 2]).save(buffer, "JPEG", quality=85)
    return collect.data_url("image/jpeg", buffer.getvalue())
