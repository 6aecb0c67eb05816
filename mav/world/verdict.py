"""The stage `oracle`: whether generated videos of the demo world obey their text and move like the training clips."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mav.data.shards import read_tar, tar_names
from mav.data.videos.video_io import read_frames
from mav.errors import UserError
from mav.evaluation.measure import RESULT, Report
from mav.evaluation.metrics import bootstrap
from mav.evaluation.reading import central_frames
from mav.recipes import Recipe
from mav.storage import Folder
from mav.world.drawing import SHAPES
from mav.world.oracle import VideoReading, read_video

TRAINING_CLIPS = 64  # clips whose motion is measured: enough for a median

Statistic = Callable[[list[VideoReading]], float]


def evaluate_oracle(
    recipe: Recipe, inputs: dict[str, Folder], out: Folder, report: Report = lambda _: None
) -> dict[str, Any]:
    """Writes the oracle's verdict on the generated videos; inputs: generate, video-shards, demo-world.

    Motion is compared between the frames made by D^t (every frame_skip-th) and training clips at the same frame rate.
    """
    rows = [row for row in inputs["generate"].read_json("videos.json") if "colour" in row and "shape" in row]
    if not rows:
        raise UserError(
            "No generated prompt says which colour and shape it asks for: the oracle knows the demo world's prompts "
            "only."
        )

    def read(name: str) -> np.ndarray:
        return read_frames(inputs["generate"].read_bytes(name))[:: recipe.cascade.frame_skip]

    training: list[np.ndarray] = []
    for shard in tar_names(inputs["video-shards"]):
        for _, files in read_tar(inputs["video-shards"], shard):
            if len(training) < TRAINING_CLIPS:
                with contextlib.suppress(ValueError):  # a clip too short for a training sample taught no motion
                    training.append(central_frames(files["mp4"], recipe.cascade.frames, recipe.generate.fps))
    twins = [read(row["twin"]) for row in rows if row.get("twin")]
    settings = recipe.evaluate
    videos, shapes = [read(row["file"]) for row in rows], tuple(inputs["demo-world"].read_json("truth.json")["shapes"])
    verdict = oracle_verdict(videos, rows, training, twins, settings.bootstrap, settings.seed, shapes)
    for row, seen in zip(rows, verdict["videos"], strict=True):
        seen |= {"file": row["file"], "prompt": row["prompt"]}
    out.write_json(RESULT, verdict)
    return {key: value for key, value in verdict.items() if key != "videos"}


def oracle_verdict(
    videos: Sequence[np.ndarray], truths: Sequence[Mapping[str, Any]], training: Sequence[np.ndarray],
    time_off: Sequence[np.ndarray] = (), draws: int = 200, seed: int = 0, shapes: tuple[str, ...] = SHAPES,
) -> dict[str, Any]:  # fmt: skip
    """Returns how often the text was obeyed, and whether things move as they do in the training clips.

    videos: generated, uint8 (F, H, W, 3) each; truths: {"colour", "shape"} of each. training: clips at the same
    interval between frames; time_off: videos of the same cascade with its time layers off. shapes: those of this world,
    among which the reading chooses.

    A video is right when more than half of its frames are; a frame without a clear object is wrong, and nothing is
    dropped. motion_ratio is the median displacement per frame over that of the training clips (None when nothing can be
    followed). Intervals are 95 %, by resampling videos.
    """
    if len(videos) != len(truths) or not videos:
        raise ValueError(f"{len(videos)} videos and {len(truths)} truths: there must be as many, and at least one")
    ours = [read_video(frames, truth, shapes) for frames, truth in zip(videos, truths, strict=True)]
    twins = [read_video(frames) for frames in time_off]
    reference = _median_step([read_video(frames) for frames in training])

    def ratio(readings: list[VideoReading]) -> float:
        return _median_step(readings) / reference if reference > 0 else float("nan")

    def measured(readings: list[VideoReading], statistic: Statistic) -> tuple[float | None, list[float] | None]:
        value = statistic(readings) if readings else float("nan")
        if not np.isfinite(value):
            return None, None
        return value, list(bootstrap(lambda rows: statistic([readings[i] for i in rows]), len(readings), draws, seed))

    measures = {
        "colour": measured(ours, lambda readings: float(np.mean([r.colour_right for r in readings]))),
        "shape": measured(ours, lambda readings: float(np.mean([r.shape_right for r in readings]))),
        "motion_ratio": measured(ours, ratio),
        "motion_ratio_time_off": measured(twins, ratio),
    }
    seen = [{"colour": r.colour_right, "shape": r.shape_right, "frames_without_object": r.unreadable} for r in ours]
    chances = {"chance_colour": 1 / len({truth["colour"] for truth in truths}), "chance_shape": 1 / len(shapes)}
    displacement = {"training_displacement": reference if np.isfinite(reference) else None}
    verdict = {name: value for name, (value, _) in measures.items()} | chances | displacement
    intervals = {name: interval for name, (_, interval) in measures.items()}
    return verdict | {"intervals": intervals, "videos": seen, "count": len(ours)}


def _median_step(readings: Sequence[VideoReading]) -> float:
    steps = [step for reading in readings for step in reading.steps]
    return float(np.median(steps)) if steps else float("nan")
