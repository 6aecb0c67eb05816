"""The oracle: reads colour, shape and place of the object back from frames of the demo world, whose truth is known.

It looks at pixels only and knows nothing of the networks, so its verdict on generated videos is independent of the CLIP they were
conditioned on. A frame in which it finds no clear object counts as wrong; nothing is dropped.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from mav.evaluation.metrics import bootstrap
from mav.world.drawing import PALETTE, SHAPES, signed_distance

SATURATION = (
    60  # least difference between the largest and smallest channel of a coloured pixel, of 255 (grounds are grey)
)
LEAST_AREA = 0.015  # of the frame; the smallest object drawn covers about 0.06
LEAST_OVERLAP = 0.45  # with the best template; below it there is no clear object
LARGEST = 96  # pixels; larger frames are read at this size
WINDOW = 24  # side of the square the object is resampled to before it is compared
TEMPLATE_RADII = np.linspace(0.66, 1.08, 11)  # of half the window
TEMPLATE_SHIFTS = np.linspace(-0.2, 0.2, 7)


@dataclass(frozen=True)
class Reading:
    """What was seen in one frame; colour and shape are None when there was no clear object."""

    colour: str | None
    shape: str | None
    centre: tuple[float, float] | None  # x, y as fractions of the side
    overlap: float  # intersection over union with the best template


NOTHING = Reading(None, None, None, 0.0)


def read_frame(frame: np.ndarray, shapes: tuple[str, ...] = SHAPES) -> Reading:
    """uint8 (H, W, 3) RGB, H and W >= 16, to what is in it, in a world of these shapes."""
    height, width = frame.shape[:2]
    if frame.ndim != 3 or frame.shape[2] != 3 or min(height, width) < 16:
        raise ValueError(f"a frame must be (H, W, 3) of at least 16 pixels a side, not {frame.shape}")
    if max(height, width) > LARGEST:
        scale = max(LARGEST / max(height, width), 16 / min(height, width))
        frame = cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
        height, width = frame.shape[:2]
    pixels = frame.astype(np.float32)
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    coloured = spread >= SATURATION
    if coloured.mean() < LEAST_AREA:
        return NOTHING
    colour = _colour(pixels[coloured])
    cover = _cover(pixels, colour)
    weight = np.where(cover > 0.25, cover, 0.0)
    weight = weight * _largest_part(weight > 0)
    area = float(weight.sum())
    if area < LEAST_AREA * height * width:
        return NOTHING
    y, x = np.mgrid[0:height, 0:width] + 0.5
    centre = (float((weight * x).sum() / area), float((weight * y).sum() / area))
    shape, overlap = _shape(weight, centre, shapes)
    if overlap < LEAST_OVERLAP:
        return NOTHING
    return Reading(colour, shape, (centre[0] / width, centre[1] / height), overlap)


def _colour(pixels: np.ndarray) -> str:
    """The palette's name nearest in hue to most of the coloured pixels, each counting by its saturation."""
    names = list(PALETTE)
    chroma = pixels - pixels.mean(axis=1, keepdims=True)
    strength = np.linalg.norm(chroma, axis=1)
    likeness = chroma / strength[:, None] @ _hues().T
    votes = np.bincount(likeness.argmax(axis=1), weights=strength, minlength=len(names))
    return names[int(votes.argmax())]


@functools.cache
def _hues() -> np.ndarray:
    chroma = np.array(list(PALETTE.values()), np.float32)
    chroma = chroma - chroma.mean(axis=1, keepdims=True)
    return chroma / np.linalg.norm(chroma, axis=1, keepdims=True)


def _cover(pixels: np.ndarray, colour: str) -> np.ndarray:
    """How much of each pixel the object covers, 0..1: its chroma along the colour's, over the object's own strength.

    Grounds are grey, so a border pixel that is half object has half the object's chroma: edges are read below the pixel.
    """
    hue = _hues()[list(PALETTE).index(colour)]
    chroma = pixels - pixels.mean(axis=2, keepdims=True)
    along = chroma @ hue
    full = np.percentile(along[along > 0.5 * along.max()], 60)
    return np.clip(along / max(float(full), 1e-6), 0.0, 1.0)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    return np.asarray(labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()))


def _shape(cover: np.ndarray, centre: tuple[float, float], shapes: tuple[str, ...]) -> tuple[str, float]:
    """The shape whose template, over a few sizes and shifts, overlaps most with the object; and that overlap."""
    # The window's half side is a few times the radius of gyration, so every object fills it alike, whatever its size.
    height, width = cover.shape
    y, x = np.mgrid[0:height, 0:width] + 0.5
    spread = np.sqrt((cover * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2)).sum() / cover.sum())
    half = max(2.0 * float(spread), 2.0)
    scale = 2 * half / WINDOW
    # Output pixel (u, v) samples the input at centre - half + (u + 0.5) * scale, in coordinates whose pixel centres are at .5.
    matrix = np.array(
        [[scale, 0, centre[0] - half + 0.5 * scale - 0.5], [0, scale, centre[1] - half + 0.5 * scale - 0.5]]
    )
    source = cv2.GaussianBlur(cover.astype(np.float32), (0, 0), scale / 2) if scale > 1.5 else cover.astype(np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    window = cv2.warpAffine(
        source, matrix, (WINDOW, WINDOW), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0.0
    ).ravel()
    templates, owners = _templates(shapes)
    both = templates @ window
    overlap = both / (templates.sum(axis=1) + window.sum() - both)
    best = int(overlap.argmax())
    return shapes[owners[best]], float(overlap[best])


@functools.cache
def _templates(shapes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Soft masks (templates, WINDOW^2) of each shape over radii and shifts, and the index of each one's shape."""
    v, u = (np.mgrid[0:WINDOW, 0:WINDOW] + 0.5) / WINDOW * 2 - 1
    masks, owners = [], []
    for owner, shape in enumerate(shapes):
        for radius in TEMPLATE_RADII:
            for dx in TEMPLATE_SHIFTS:
                for dy in TEMPLATE_SHIFTS:
                    distance = signed_distance(shape, (u - dx) / radius, (v - dy) / radius) * radius * WINDOW / 2
                    masks.append(np.clip(0.5 - distance / 1.5, 0, 1).ravel())
                    owners.append(owner)
    return np.array(masks, np.float32), np.array(owners)


# ---------------------------------------------------------------------------------------------------------------- verdict


@dataclass(frozen=True)
class VideoReading:
    """One video against what was asked for: share of frames with the right colour and shape, and displacements per frame."""

    colour: float
    shape: float
    steps: tuple[float, ...]  # between consecutive frames that both show an object, in sides
    unreadable: int  # frames without a clear object

    @property
    def colour_right(self) -> bool:
        return self.colour > 0.5

    @property
    def shape_right(self) -> bool:
        return self.shape > 0.5


def read_video(
    frames: np.ndarray, truth: Mapping[str, Any] | None = None, shapes: tuple[str, ...] = SHAPES
) -> VideoReading:
    """uint8 (F, H, W, 3), and the colour and shape it should show (absent: only motion is of interest)."""
    readings = [read_frame(frame, shapes) for frame in frames]
    truth = truth or {}
    steps = tuple(
        float(np.hypot(b.centre[0] - a.centre[0], b.centre[1] - a.centre[1]))
        for a, b in itertools.pairwise(readings)
        if a.centre and b.centre
    )
    return VideoReading(
        colour=float(np.mean([r.colour is not None and r.colour == truth.get("colour") for r in readings])),
        shape=float(np.mean([r.shape is not None and r.shape == truth.get("shape") for r in readings])),
        steps=steps,
        unreadable=sum(r.centre is None for r in readings),
    )


def oracle_verdict(
    videos: Sequence[np.ndarray],
    truths: Sequence[Mapping[str, Any]],
    training: Sequence[np.ndarray],
    time_off: Sequence[np.ndarray] = (),
    draws: int = 200,
    seed: int = 0,
    shapes: tuple[str, ...] = SHAPES,
) -> dict[str, Any]:
    """How often the text was obeyed, and whether things move as they do in the training clips.

    videos: generated, uint8 (F, H, W, 3) each; truths: {"colour", "shape"} of each. training: clips at the same interval between frames;
    time_off: the same cascade's with its time layers off. A video is right when more than half of its frames are, frames without
    a clear object being wrong. motion_ratio is the median displacement per frame over that of the training clips (None when nothing
    can be followed). Intervals are 95 %, by resampling videos. shapes: those that exist in this world, among which the reading chooses.
    """
    if len(videos) != len(truths) or not videos:
        raise ValueError(f"{len(videos)} videos and {len(truths)} truths: there must be as many, and at least one")
    ours = [read_video(frames, truth, shapes) for frames, truth in zip(videos, truths, strict=True)]
    twins = [read_video(frames) for frames in time_off]
    reference = _median_step([read_video(frames) for frames in training])

    def measure(
        readings: list[VideoReading], statistic: Callable[[list[VideoReading]], float]
    ) -> tuple[float | None, list[float] | None]:
        value = statistic(readings) if readings else float("nan")
        if not np.isfinite(value):
            return None, None
        return value, list(bootstrap(lambda rows: statistic([readings[i] for i in rows]), len(readings), draws, seed))

    def ratio(readings: list[VideoReading]) -> float:
        return _median_step(readings) / reference if reference > 0 else float("nan")

    colour, colour_interval = measure(ours, lambda readings: float(np.mean([r.colour_right for r in readings])))
    shape, shape_interval = measure(ours, lambda readings: float(np.mean([r.shape_right for r in readings])))
    motion, motion_interval = measure(ours, ratio)
    off, off_interval = measure(twins, ratio)
    return {
        "colour": colour,
        "shape": shape,
        "motion_ratio": motion,
        "motion_ratio_time_off": off,
        "chance_colour": 1 / len({truth["colour"] for truth in truths}),
        "chance_shape": 1 / len(shapes),
        "intervals": {
            "colour": colour_interval,
            "shape": shape_interval,
            "motion_ratio": motion_interval,
            "motion_ratio_time_off": off_interval,
        },
        "videos": [
            {"colour": r.colour_right, "shape": r.shape_right, "frames_without_object": r.unreadable} for r in ours
        ],
        "training_displacement": reference if np.isfinite(reference) else None,
        "count": len(ours),
    }


def _median_step(readings: Sequence[VideoReading]) -> float:
    steps = [step for reading in readings for step in reading.steps]
    return float(np.median(steps)) if steps else float("nan")
