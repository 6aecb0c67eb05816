"""The oracle: reads colour, shape and place of the object back from frames of the demo world, whose truth is known.

It looks at pixels only and knows nothing about the networks, so its verdict on generated videos is independent of the
CLIP that conditioned them.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from mav.world.drawing import PALETTE, SHAPES, signed_distance

# Least difference between the largest and smallest channel of a coloured pixel, of 255; grounds are grey.
SATURATION = 60
LEAST_AREA = 0.015  # of the frame; the smallest object drawn covers about 0.06
LEAST_OVERLAP = 0.45  # with the best template; below it there is no clear object
LARGEST = 96  # pixels; larger frames are read at this size
WINDOW = 24  # side of the square to which the object is resampled before it is compared
TEMPLATE_RADII = np.linspace(0.66, 1.08, 11)  # of half the window
TEMPLATE_SHIFTS = np.linspace(-0.2, 0.2, 7)


@dataclass(frozen=True)
class Reading:
    """The object seen in one frame. colour, shape and centre (x, y as fractions of the side) are None if none is clear.

    overlap: intersection over union with the best template. area: share of the frame that the object covers.
    saturation: mean difference between the largest and smallest channel over the object, 0..1; of a digit, its mean
    brightness.
    """

    colour: str | None
    shape: str | None
    centre: tuple[float, float] | None
    overlap: float
    area: float = 0.0
    saturation: float = 0.0


NOTHING = Reading(None, None, None, 0.0)
Reader = Callable[[np.ndarray, tuple[str, ...]], Reading]  # a frame, uint8 (H, W, 3), and the shapes that it may show


def read_frame(frame: np.ndarray, shapes: tuple[str, ...] = SHAPES) -> Reading:
    """Reads a frame, uint8 (H, W, 3) RGB, H and W >= 16, of a world with these shapes."""
    frame = fit_frame(frame)
    height, width = frame.shape[:2]
    # Find the colour of most coloured pixels, and the largest connected part of that colour.
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
    # Compare it with the shapes, around its centre of gravity.
    y, x = np.mgrid[0:height, 0:width] + 0.5
    centre = (float((weight * x).sum() / area), float((weight * y).sum() / area))
    shape, overlap = _shape(weight, centre, shapes)
    if overlap < LEAST_OVERLAP:
        return NOTHING
    place, covered = (centre[0] / width, centre[1] / height), area / (height * width)
    return Reading(colour, shape, place, overlap, covered, float((spread * weight).sum() / area / 255))


def fit_frame(frame: np.ndarray) -> np.ndarray:
    """Returns a frame at a size that is read, at most LARGEST. Raises ValueError for what is no frame."""
    height, width = frame.shape[:2]
    if frame.ndim != 3 or frame.shape[2] != 3 or min(height, width) < 16:
        raise ValueError(f"a frame must be (H, W, 3) of at least 16 pixels a side, not {frame.shape}")
    if max(height, width) <= LARGEST:
        return frame
    scale = max(LARGEST / max(height, width), 16 / min(height, width))
    return cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def _colour(pixels: np.ndarray) -> str:
    """Returns the palette's name nearest in hue to most of the coloured pixels, each weighted by its saturation."""
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
    """Returns the share of each pixel that the object covers: its chroma along the colour's, relative to the object's.

    Grounds are grey, so a border pixel that is half object has half the object's chroma: edges have subpixel accuracy.
    """
    hue = _hues()[list(PALETTE).index(colour)]
    chroma = pixels - pixels.mean(axis=2, keepdims=True)
    along = chroma @ hue
    full = np.percentile(along[along > 0.5 * along.max()], 60)
    return np.clip(along / max(float(full), 1e-6), 0.0, 1.0)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return mask if count <= 2 else np.asarray(labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()))


def _shape(cover: np.ndarray, centre: tuple[float, float], shapes: tuple[str, ...]) -> tuple[str, float]:
    """Returns the shape whose template, of a few sizes and shifts, overlaps most with the object, and the overlap."""
    # The window's half side is twice the radius of gyration, so that objects of any size fill it alike.
    height, width = cover.shape
    y, x = np.mgrid[0:height, 0:width] + 0.5
    spread = np.sqrt((cover * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2)).sum() / cover.sum())
    half = max(2.0 * float(spread), 2.0)
    scale = 2 * half / WINDOW
    # Output pixel (u, v) samples the input at centre - half + (u + 0.5) * scale, where pixel centres are at .5.
    matrix = np.array(
        [[scale, 0, centre[0] - half + 0.5 * scale - 0.5], [0, scale, centre[1] - half + 0.5 * scale - 0.5]]
    )
    source = cv2.GaussianBlur(cover.astype(np.float32), (0, 0), scale / 2) if scale > 1.5 else cover.astype(np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    window = cv2.warpAffine(source, matrix, (WINDOW, WINDOW), flags=flags).ravel()  # zero outside the frame
    templates, owners = _templates(shapes)
    both = templates @ window
    overlap = both / (templates.sum(axis=1) + window.sum() - both)
    best = int(overlap.argmax())
    return shapes[owners[best]], float(overlap[best])


@functools.cache
def _templates(shapes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns soft masks (templates, WINDOW^2) of the shapes over radii and shifts, and the index of each shape."""
    v, u = (np.mgrid[0:WINDOW, 0:WINDOW] + 0.5) / WINDOW * 2 - 1
    masks, owners = [], []
    for owner, radius, dx, dy in itertools.product(
        range(len(shapes)), TEMPLATE_RADII, TEMPLATE_SHIFTS, TEMPLATE_SHIFTS
    ):
        distance = signed_distance(shapes[owner], (u - dx) / radius, (v - dy) / radius) * radius * WINDOW / 2
        masks.append(np.clip(0.5 - distance / 1.5, 0, 1).ravel())
        owners.append(owner)
    return np.array(masks, np.float32), np.array(owners)


@dataclass(frozen=True)
class VideoReading:
    """All frames of one video as they were read, and the colour and shape that it should show (None: unknown)."""

    frames: tuple[Reading, ...]
    colour: str | None = None
    shape: str | None = None

    def share(self, kind: str) -> float:
        """Returns the share of frames with the right "colour" or "shape". A frame without a clear object is wrong."""
        wanted = getattr(self, kind)
        return float(np.mean([wanted is not None and getattr(frame, kind) == wanted for frame in self.frames]))

    def right(self, kind: str) -> bool:
        """Says whether more than half of the frames have the right "colour" or "shape"."""
        return self.share(kind) > 0.5

    @property
    def unreadable(self) -> int:
        return sum(frame.centre is None for frame in self.frames)

    @functools.cached_property
    def moves(self) -> list[np.ndarray | None]:
        """The displacement (x, y) between each pair of consecutive frames, in sides; None without an object in both."""
        centres = [frame.centre for frame in self.frames]
        return [np.subtract(b, a) if a and b else None for a, b in itertools.pairwise(centres)]

    @property
    def steps(self) -> list[float]:
        """The lengths of the displacements."""
        return [float(np.hypot(*move)) for move in self.moves if move is not None]

    @property
    def turns(self) -> list[float]:
        """The cosines between successive displacements: 1 goes straight on, -1 reverses."""
        pairs = ((a, b) for a, b in itertools.pairwise(self.moves) if a is not None and b is not None)
        norms = ((a, b, float(np.linalg.norm(a) * np.linalg.norm(b))) for a, b in pairs)
        return [float(a @ b) / norm for a, b, norm in norms if norm > 0]

    def filled_over_given(self, what: str, skip: int) -> float:
        """Returns the mean "area" or "saturation" of filled frames over that of given ones (every skip-th), less 1."""
        values = np.array([getattr(frame, what) for frame in self.frames])
        given = np.arange(len(values)) % skip == 0
        reference = float(values[given].mean())
        return float(values[~given].mean()) / reference - 1 if reference > 0 and not given.all() else float("nan")

    @property
    def persistence(self) -> float:
        """The share of later frames that show the colour and the shape of the first frame; 0 when that shows none."""
        first, *later = self.frames
        kept = [frame.colour == first.colour and frame.shape == first.shape for frame in later]
        return float(np.mean(kept)) if first.shape is not None and kept else 0.0


def read_video(
    frames: np.ndarray,
    truth: Mapping[str, Any] | None = None,
    shapes: tuple[str, ...] = SHAPES,
    read: Reader = read_frame,
) -> VideoReading:
    """Reads every frame of uint8 (F, H, W, 3). `truth` has the colour and shape it should show."""
    truth = truth or {}
    return VideoReading(tuple(read(f, shapes) for f in frames), truth.get("colour"), truth.get("shape"))
