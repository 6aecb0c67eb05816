"""The oracle: reads colour, shape and place of objects back from frames of the demo world, whose truth is known.

It looks at pixels only and knows nothing about the networks, so its verdict on generated videos is independent of the
CLIP that conditioned them.

In a world of one object a frame, the object is the largest part of the colour that most coloured pixels have. In a
world of several, each colour of the palette that covers enough of the frame is an object, which is followed by its
colour; what others may hide of it is left out of the comparison with the shapes.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from mav.world.drawing import PALETTE, SHAPES, Kind, signed_distance
from mav.world.windows import centre_of_gravity, resampled

# Least difference between the largest and smallest channel of a coloured pixel, of 255; grounds are grey.
SATURATION = 60
LEAST_AREA = 0.015  # of the frame; the smallest object drawn covers about 0.06
LEAST_OVERLAP = 0.45  # with the best template; below it there is no clear object
LEAST_SEEN = 0.4  # of the best template; an object of which others hide more is not read at all
MOST_HIDDEN = 0.06  # of the best template; an object of which others hide more has no place and no size
LARGEST = 96  # pixels; larger frames are read at this size
WINDOW = 24  # side of the square to which the object is resampled before it is compared
TEMPLATE_RADII = np.linspace(0.66, 1.08, 11)  # of half the window
TEMPLATE_SHIFTS = np.linspace(-0.2, 0.2, 7)


@dataclass(frozen=True)
class Reading:
    """An object seen in one frame. colour, shape and centre (x, y as fractions of the side) are None if none is clear.

    overlap: intersection over union with the best template. area: share of the frame that the object covers.
    saturation: mean difference between the largest and smallest channel over the object, 0..1; of a digit, which has no
    colour, its mean brightness. covered: another object hides a part of it, so that only its colour is read.
    """

    colour: str | None
    shape: str | None
    centre: tuple[float, float] | None
    overlap: float
    area: float = 0.0
    saturation: float = 0.0
    covered: bool = False


NOTHING = Reading(None, None, None, 0.0)
Reader = Callable[[np.ndarray, tuple[str, ...]], Reading]  # a frame, uint8 (H, W, 3), and the shapes that it may show


def read_frame(frame: np.ndarray, shapes: tuple[str, ...] = SHAPES) -> Reading:
    """Reads a frame, uint8 (H, W, 3) RGB, H and W >= 16, of a world with these shapes and one object a frame."""
    pixels = frame_pixels(frame)
    coloured = _spread(pixels) >= SATURATION
    if coloured.mean() < LEAST_AREA:
        return NOTHING
    colour = _colour(pixels[coloured])
    return _object(pixels, colour, np.ones_like(coloured), np.zeros_like(coloured), shapes)


def read_objects(frame: np.ndarray, shapes: tuple[str, ...] = SHAPES) -> tuple[Reading, ...]:
    """Reads a frame of a world with several objects a frame, all of different colours: one reading for each seen."""
    pixels = frame_pixels(frame)
    coloured = _spread(pixels) >= SATURATION
    nearest = _nearest(pixels)
    found = []
    for index, colour in enumerate(PALETTE):
        own = nearest == index
        if (own & coloured).mean() >= LEAST_AREA:
            found.append(_object(pixels, colour, own, coloured & ~own, shapes))
    return tuple(reading for reading in found if reading.colour)


def frame_pixels(frame: np.ndarray) -> np.ndarray:
    """Returns a frame as float32, not larger than it is read. Raises ValueError for what is no frame."""
    height, width = frame.shape[:2]
    if frame.ndim != 3 or frame.shape[2] != 3 or min(height, width) < 16:
        raise ValueError(f"a frame must be (H, W, 3) of at least 16 pixels a side, not {frame.shape}")
    if max(height, width) > LARGEST:
        scale = max(LARGEST / max(height, width), 16 / min(height, width))
        frame = cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    return frame.astype(np.float32)


def _spread(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(pixels.max(axis=2) - pixels.min(axis=2))


def _object(pixels: np.ndarray, colour: str, own: np.ndarray, others: np.ndarray, shapes: tuple[str, ...]) -> Reading:
    """Reads the largest part of a colour. own: the pixels that may be its; others: those of objects that may hide it.

    Both are masks (H, W).
    """
    height, width = own.shape
    cover = _cover(pixels, colour, own)
    weight = np.where(own & (cover > 0.25), cover, 0.0)
    weight = weight * _largest_part(weight > 0)
    area = float(weight.sum())
    if area < LEAST_AREA * height * width:
        return NOTHING
    # Compare it with the shapes, around its centre of gravity.
    centre = centre_of_gravity(weight)
    shape, overlap, hidden = _shape(weight, others, centre, shapes)
    if overlap < LEAST_OVERLAP or hidden > 1 - LEAST_SEEN:
        return NOTHING
    if hidden > MOST_HIDDEN:
        return Reading(colour, None, None, overlap, covered=True)
    place, covered = (centre[0] / width, centre[1] / height), area / (height * width)
    return Reading(colour, shape, place, overlap, covered, float((_spread(pixels) * weight).sum() / area / 255))


def _colour(pixels: np.ndarray) -> str:
    """Returns the palette's name nearest in hue to most of the pixels (N, 3), each weighted by its saturation."""
    strength = np.linalg.norm(pixels - pixels.mean(axis=1, keepdims=True), axis=1)
    votes = np.bincount(_nearest(pixels), weights=strength, minlength=len(PALETTE))
    return list(PALETTE)[int(votes.argmax())]


def _nearest(pixels: np.ndarray) -> np.ndarray:
    """Returns the index of the palette's colour that is nearest in hue to each pixel, (..., 3) to (...)."""
    return np.asarray(((pixels - pixels.mean(axis=-1, keepdims=True)) @ _hues().T).argmax(axis=-1))


@functools.cache
def _hues() -> np.ndarray:
    chroma = np.array(list(PALETTE.values()), np.float32)
    chroma = chroma - chroma.mean(axis=1, keepdims=True)
    return chroma / np.linalg.norm(chroma, axis=1, keepdims=True)


def _cover(pixels: np.ndarray, colour: str, own: np.ndarray) -> np.ndarray:
    """Returns the share of each pixel that the object covers: its chroma along the colour's, relative to the object's.

    Grounds are grey, so a border pixel that is half object has half the object's chroma: edges have subpixel accuracy.
    """
    hue = _hues()[list(PALETTE).index(colour)]
    chroma = pixels - pixels.mean(axis=2, keepdims=True)
    along = chroma @ hue
    full = np.percentile(along[own & (along > 0.5 * along[own].max())], 60)
    return np.clip(along / max(float(full), 1e-6), 0.0, 1.0)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return mask if count <= 2 else np.asarray(labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()))


def _shape(
    cover: np.ndarray, others: np.ndarray, centre: tuple[float, float], shapes: tuple[str, ...]
) -> tuple[str, float, float]:
    """Returns the shape whose template, of a few sizes and shifts, overlaps most with the object, and the overlap.

    It is compared where nothing else may hide it; the third value is the share of that template which is hidden.
    """
    # The window's half side is twice the radius of gyration, so that objects of any size fill it alike.
    height, width = cover.shape
    y, x = np.mgrid[0:height, 0:width] + 0.5
    spread = np.sqrt((cover * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2)).sum() / cover.sum())
    half = max(2.0 * float(spread), 2.0)
    scale = 2 * half / WINDOW

    def window_of(mask: np.ndarray) -> np.ndarray:
        return resampled(mask, (centre[0] - half, centre[1] - half), scale, WINDOW).ravel()

    templates, owners = _templates(shapes)
    full = templates.sum(axis=1)
    window, seen = window_of(cover), full
    if others.any():
        free = 1 - window_of(others)
        window, seen = window * free, templates @ free
    both = templates @ window
    overlap = both / (seen + window.sum() - both)
    best = int(overlap.argmax())
    return shapes[owners[best]], float(overlap[best]), float(1 - seen[best] / full[best])


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
    """All frames of one video as they were read, and what they should show.

    frames: the objects of each frame, by what tells them apart: their colours in a world of several objects a frame,
    and nothing ("") in a world of one. wanted: colour and shape of each object that was asked for, by the same keys.
    """

    frames: tuple[Mapping[str, Reading], ...]
    wanted: Mapping[str, Kind]

    def right(self, kind: str) -> bool:
        """Says whether more than half of the frames have the right "colour", or each object has its "shape"."""
        if kind == "shape":
            return bool(self.wanted) and all(map(self.shape_right, self.wanted))
        colours = {colour for colour, _ in self.wanted.values()}
        seen = [{reading.colour for reading in frame.values()} == colours for frame in self.frames]
        return bool(colours) and float(np.mean(seen)) > 0.5

    def shape_right(self, key: str) -> bool:
        """Says whether a wanted object has its shape in more than half of the frames in which nothing covers it."""
        readings = [frame.get(key, NOTHING) for frame in self.frames]
        right = [reading.shape == self.wanted[key][1] for reading in readings if not reading.covered]
        return bool(right) and float(np.mean(right)) > 0.5

    @property
    def unreadable(self) -> int:
        """The number of frames without a clear object."""
        return sum(not frame for frame in self.frames)

    @functools.cached_property
    def moves(self) -> list[list[np.ndarray | None]]:
        """The displacements (x, y) of each object between consecutive frames, in sides; None where it is not read."""
        keys = sorted({key for frame in self.frames for key in frame})
        tracks = [[frame.get(key, NOTHING).centre for frame in self.frames] for key in keys]
        return [[np.subtract(b, a) if a and b else None for a, b in itertools.pairwise(track)] for track in tracks]

    @property
    def steps(self) -> list[float]:
        """The lengths of the displacements."""
        return [float(np.hypot(*move)) for moves in self.moves for move in moves if move is not None]

    @property
    def turns(self) -> list[float]:
        """The cosines between successive displacements: 1 goes straight on, -1 reverses."""
        pairs = [pair for moves in self.moves for pair in itertools.pairwise(moves)]
        norms = (
            (a, b, float(np.linalg.norm(a) * np.linalg.norm(b))) for a, b in pairs if a is not None and b is not None
        )
        return [float(a @ b) / norm for a, b, norm in norms if norm > 0]

    def filled_over_given(self, what: str, skip: int) -> list[float]:
        """Returns the mean "area" or "saturation" of filled frames over that of given ones (every skip-th), less 1.

        There is a value for each object that can be measured. A frame without any object counts as 0; one in which
        another object may hide this one does not count.
        """
        ratios = []
        for key in sorted({key for frame in self.frames for key in frame}):
            known = [i for i, frame in enumerate(self.frames) if not frame or (key in frame and not frame[key].covered)]
            values = np.array([getattr(self.frames[i].get(key, NOTHING), what) for i in known])
            given = np.array(known) % skip == 0
            if given.any() and not given.all() and (reference := float(values[given].mean())) > 0:
                ratios.append(float(values[~given].mean()) / reference - 1)
        return ratios

    @property
    def persistence(self) -> float:
        """The share of later frames that show the first frame's objects, and no others; 0 when that shows none.

        A shape that is covered, then or now, is taken to be the same.
        """
        first, *later = self.frames

        def kept(frame: Mapping[str, Reading]) -> bool:
            same = {reading.colour for reading in frame.values()} == {reading.colour for reading in first.values()}
            pairs = [(first[key], frame[key]) for key in first if key in frame]
            return same and all(a.shape == b.shape for a, b in pairs if not (a.covered or b.covered))

        return float(np.mean([kept(frame) for frame in later])) if first and later else 0.0


def read_video(
    frames: np.ndarray, truth: Mapping[str, Any] | None = None, shapes: tuple[str, ...] = SHAPES, objects: int = 1,
    reader: Reader = read_frame,
) -> VideoReading:  # fmt: skip
    """Reads every frame of uint8 (F, H, W, 3) of a world with up to this number of objects in a frame.

    truth: the colour and shape that it should show, and those of another object under "second". reader: of one object.
    """
    kinds = [(each["colour"], each["shape"]) for each in (truth, (truth or {}).get("second")) if each]
    if objects == 1:
        seen = [reader(frame, shapes) for frame in frames]
        only = tuple({"": reading} if reading.shape else {} for reading in seen)
        return VideoReading(only, {"": kinds[0]} if kinds else {})
    several = ({reading.colour or "": reading for reading in read_objects(frame, shapes)} for frame in frames)
    return VideoReading(tuple(several), {colour: (colour, shape) for colour, shape in kinds})
