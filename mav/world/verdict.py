"""The stage `oracle`: whether generated videos of the demo world obey their text and move like the training clips.

Every frame of the finished videos is read, those that F^ filled in too.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mav.data.loading.frame_rates import clip_times, frame_indices
from mav.data.loading.loaders import StoredClips
from mav.data.videos.video_io import cropped, read_frames
from mav.errors import UserError
from mav.evaluation.intervals import wilson
from mav.evaluation.measure import RESULT, Report
from mav.evaluation.metrics import bootstrap
from mav.recipes import Recipe
from mav.storage import Folder
from mav.world.digits import READER_FOLDER
from mav.world.drawing import SHAPES
from mav.world.oracle import Reader, VideoReading, read_frame, read_video
from mav.world.reading_digits import reader_of

TRAINING_CLIPS = 256  # clips whose motion is measured: of 64, reversals are known to 2 % only

Readings = Sequence[VideoReading]
Statistic = Callable[[Readings], float]


@dataclass(frozen=True)
class Material:
    """What the verdict is about: generated videos as uint8 (F, H, W, 3) each, and what they are compared with.

    truths: {"colour", "shape"} of each video, and those of another object under "second". training: clips at the
    videos' own frame rate. time_off: videos of the same cascade with its time layers off. rates: clips of D^t alone, of
    the same prompts and seeds, by the frame rate asked for. skip: every skip-th frame was given to F^. reader: reads a
    frame of one object; reader_error: the share of frames with a known truth that it reads wrong, where it is measured.
    """

    videos: Sequence[np.ndarray]
    truths: Sequence[Mapping[str, Any]]
    training: Sequence[np.ndarray] = ()
    time_off: Sequence[np.ndarray] = ()
    rates: Mapping[float, Sequence[np.ndarray]] | None = None
    skip: int = 1
    shapes: tuple[str, ...] = SHAPES
    objects: int = 1  # most in a frame
    reader: Reader = read_frame
    reader_error: float | None = None

    def read(self, frames: np.ndarray, truth: Mapping[str, Any] | None = None) -> VideoReading:
        return read_video(frames, truth, self.shapes, self.objects, self.reader)


def evaluate_oracle(
    recipe: Recipe, inputs: dict[str, Folder], out: Folder, report: Report = lambda _: None
) -> dict[str, Any]:
    """Writes the oracle's verdict on the generated videos as `result.json`, and returns it without the single videos.

    inputs: the artifacts of generate, video-shards, video-select and demo-world. Raises UserError when no prompt says
    what it asks for.
    """
    rows = [row for row in inputs["generate"].read_json("videos.json") if "colour" in row and "shape" in row]
    if not rows:
        raise UserError(
            "No generated prompt says which colour and shape it asks for: the oracle knows the demo world's prompts "
            "only."
        )
    sizes, settings, world = recipe.cascade, recipe.evaluate, inputs["demo-world"]

    def read(name: str) -> np.ndarray:
        return read_frames(inputs["generate"].read_bytes(name))

    training: list[np.ndarray] = []
    clips = StoredClips(inputs["video-shards"], inputs["video-select"])
    for index in range(sum(clips.sizes)):
        if len(training) == TRAINING_CLIPS:
            break
        about, rate = clips.metadata(index), recipe.generate.fps * sizes.frame_skip
        with contextlib.suppress(ValueError):  # a clip too short for a training sample taught no motion
            indices = about.get("first", 0) + frame_indices(clip_times(about), sizes.frames, rate, 0.5)[0]
            training.append(read_frames(clips.video(index), indices, partial(cropped, box=about["box"])))
    truth, reader = world.read_json("truth.json"), reader_of(world) if world.exists(READER_FOLDER) else None
    material = Material(
        [read(row["file"]) for row in rows],
        rows,
        training,
        [read(row["twin"]) for row in rows if row.get("twin")],
        {rate: [read(row["rates"][f"{rate:g}"]) for row in rows] for rate in recipe.generate.frame_rates},
        sizes.frame_skip,
        tuple(truth["shapes"]),
        truth.get("objects", 1),
        reader or read_frame,
        reader.error if reader else None,
    )
    verdict = oracle_verdict(material, settings.bootstrap, settings.seed)
    for row, seen in zip(rows, verdict["videos"], strict=True):
        seen |= {"file": row["file"], "prompt": row["prompt"]}
    out.write_json(RESULT, verdict)
    return {key: value for key, value in verdict.items() if key != "videos"}


def oracle_verdict(material: Material, draws: int = 200, seed: int = 0) -> dict[str, Any]:
    """Returns how often the text was obeyed, and whether things move as they do in the training clips.

    colour, shape: share of videos more than half of whose frames are right; a frame without a clear object is wrong,
    and nothing is dropped. Where a frame may have two objects, those asked for must be there and no other (colour), and
    each must have its shape in the frames in which the other does not cover it; motion is pooled over objects.
    speed_ratio: median displacement a frame over that of training clips at the same frame rate. direction_cosine: mean
    cosine of successive displacements; reversals: share of them that are negative. area_change, saturation_change: of
    filled over given frames, less 1. frame_rate_obeyed: displacement a frame at the lowest rate over that at the
    highest, over the ratio of the rates; 1 is right. persistence: share of frames that keep the first frame's colour
    and shape. What cannot be read is None, and so is the colour of digits, whose saturation is their brightness.
    Intervals are 95 %: Wilson's of colour and shape, the others by resampling videos.
    """
    videos, truths = material.videos, material.truths
    if len(videos) != len(truths) or not videos:
        raise ValueError(f"{len(videos)} videos and {len(truths)} truths: there must be as many, and at least one")
    ours = [material.read(frames, truth) for frames, truth in zip(videos, truths, strict=True)]
    twins = [material.read(frames) for frames in material.time_off]
    clips = [material.read(frames) for frames in material.training]
    reference = _median_step(clips)
    colours = len({colour for r in ours for colour, _ in r.wanted.values()} - {None})

    def measured(readings: Readings, statistic: Statistic) -> tuple[float | None, list[float] | None]:
        value = statistic(readings) if readings else float("nan")
        if not np.isfinite(value):
            return None, None
        low, high = bootstrap(lambda rows: statistic([readings[i] for i in rows]), len(readings), draws, seed)
        return value, [low, high] if low < high else None  # of equal ones, nothing says how much another would differ

    def share(readings: Readings, asked: str) -> tuple[float | None, list[float] | None]:
        if not readings:
            return None, None
        won = sum(r.right(asked) for r in readings)
        return won / len(readings), list(wilson(won, len(readings)))

    def speed(readings: Readings) -> float:
        return _median_step(readings) / reference if reference > 0 else float("nan")

    measures = {
        "colour": share(ours if colours else [], "colour"),
        "shape": share(ours, "shape"),
        "speed_ratio": measured(ours, speed),
        "direction_cosine": measured(ours, _direction),
        "direction_cosine_clips": measured(clips, _direction),
        "reversals": measured(ours, _reversals),
        "reversals_clips": measured(clips, _reversals),
        "area_change": measured(ours, _change("area", material.skip)),
        "saturation_change": measured(ours, _change("saturation", material.skip)),
        "frame_rate_obeyed": (None, None),
        "persistence": measured(ours, lambda readings: _mean(r.persistence for r in readings)),
        "motion_ratio_time_off": measured(twins, speed),
    }
    if material.rates and len(material.rates) > 1:
        measures["frame_rate_obeyed"] = _frame_rate_obeyed(material, draws, seed)
    objects = [(shape, r.shape_right(key)) for r in ours for key, (_, shape) in r.wanted.items()]
    by_name = {name: _mean(ok for shape, ok in objects if shape == name) for name in sorted(dict(objects))}
    seen = [
        {
            "colour": r.right("colour") if colours else None,
            "shape": r.right("shape"),
            "frames_without_object": r.unreadable,
        }
        for r in ours
    ]
    return {
        **{name: value for name, (value, _) in measures.items()},
        "shape_by_name": by_name,
        "chance_colour": _mean(1 / math.comb(colours, len(r.wanted)) for r in ours) if colours else None,
        "chance_shape": _mean(len(material.shapes) ** -len(r.wanted) for r in ours),
        "reader_error": material.reader_error,
        "training_displacement": reference if np.isfinite(reference) else None,
        "intervals": {name: interval for name, (_, interval) in measures.items()},
        "videos": seen,
        "count": len(ours),
    }


def _frame_rate_obeyed(material: Material, draws: int, seed: int) -> tuple[float | None, list[float] | None]:
    rates = material.rates or {}
    low, high = min(rates), max(rates)
    slow, fast = ([material.read(frames) for frames in rates[rate]] for rate in (low, high))

    def statistic(rows: Sequence[int]) -> float:
        steps = _median_step([fast[i] for i in rows])
        return _median_step([slow[i] for i in rows]) / steps / (high / low) if steps > 0 else float("nan")

    value = statistic(range(len(slow)))
    if not np.isfinite(value):
        return None, None
    return value, list(bootstrap(lambda rows: statistic(rows.tolist()), len(slow), draws, seed))


def _mean(values: Any) -> float:
    found = [float(value) for value in values]
    return float(np.mean(found)) if found else float("nan")


def _median_step(readings: Readings) -> float:
    steps = [step for reading in readings for step in reading.steps]
    return float(np.median(steps)) if steps else float("nan")


def _direction(readings: Readings) -> float:
    return _mean(turn for reading in readings for turn in reading.turns)


def _reversals(readings: Readings) -> float:
    return _mean(turn < 0 for reading in readings for turn in reading.turns)


def _change(what: str, skip: int) -> Statistic:
    def statistic(readings: Readings) -> float:
        return _mean(change for reading in readings for change in reading.filled_over_given(what, skip))

    return statistic
