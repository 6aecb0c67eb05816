"""The digits of a world of handwritten digits: who is drawn where, and how one is drawn at any size.

The first papers on video from text (Sync-DRAW and its followers) showed moving digits of MNIST with captions of their
motion. Here only stills have captions, as in Make-A-Video.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from mav.errors import UserError
from mav.recipes import World
from mav.storage import Folder
from mav.world.drawing import PALETTE, SHAPES, Kind, Scene, Sentences, random_scene
from mav.world.idx_files import SIDE, Digits, read_digits

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SENTENCES = (
    ("the digit {shape}", "a photo of {objects}"), ("a handwritten {shape}", "{objects}"),
    ("the digit {shape}", "{objects}"), ("the number {shape}", "{objects}, written by hand"),
)  # fmt: skip
INK = (240, 240, 240)
LEAST = 10  # different pictures of each digit in the files
EVALUATION, READER = 0.1, 0.4  # shares of each digit's pictures
MOST_READER = 600  # pictures of each digit that the reader has: enough, and its training stays short
READER_FOLDER = "reader"  # of the world: the digits that only the reader of videos sees
EXTENT = 0.95  # half the longer side of the ink, in radii


@dataclass(frozen=True)
class DigitScene(Scene):
    """One handwritten digit over a plain dark ground. It has no colour; its shape is the digit's name.

    ink: uint8 (H, W), the digit's picture without its borders.
    """

    ink: np.ndarray = field(kw_only=True, compare=False, repr=False)

    sentences: ClassVar[Sentences] = SENTENCES

    @property
    def paint(self) -> tuple[int, int, int]:
        """The ink's colour, 0..255."""
        return INK

    def cover(self, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
        """Returns the share of each pixel that is ink; x (1, W) and y (H, 1) are from the centre, in radii."""
        # Source pixels for each pixel of the drawing: above 1, a pixel gathers as many.
        scale = max(self.ink.shape) / (2 * EXTENT * self.radius * size)
        across, down = (
            _weights(places.ravel() * self.radius * size * scale + (side - 1) / 2, side, max(scale, 1.0))
            for places, side in ((x, self.ink.shape[1]), (y, self.ink.shape[0]))
        )
        return np.asarray(np.clip(down @ (self.ink / 255.0) @ across.T, 0, 1))


def _weights(places: np.ndarray, side: int, width: float) -> np.ndarray:
    """Returns (P, side): what each source pixel adds at each place; linear interpolation where `width` is 1."""
    return np.clip(1 - np.abs(places[:, None] - np.arange(side)) / width, 0, None) / width


def inked(image: np.ndarray) -> np.ndarray:
    """Returns a picture, uint8 (28, 28), without the empty rows and columns around its ink."""
    rows, columns = (np.flatnonzero(image.max(axis=axis) >= SIDE) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@dataclass(frozen=True)
class Parts:
    """Digits of training pictures and clips, of the evaluation sets, and those that only the reader of videos sees."""

    training: Digits
    evaluation: Digits
    reader: Digits


def split_digits(digits: Digits, seed: int) -> Parts:
    """Returns three parts that have no picture in common, each with every digit, in an order drawn from the seed.

    Raises UserError where a digit has too few pictures.
    """
    rng = np.random.default_rng([seed, 7])
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for label, name in enumerate(DIGITS):
        rows = rng.permutation(np.flatnonzero(digits.labels == label))
        if len(rows) < LEAST:
            raise UserError(
                f"`world.files` has {len(rows)} different pictures of the digit {name}, and a world needs {LEAST}: "
                "bring more."
            )
        held, read = int(EVALUATION * len(rows)), min(int(READER * len(rows)), MOST_READER)
        for part, chosen in zip(parts, np.split(rows, [len(rows) - held - read, len(rows) - read]), strict=True):
            part.append(chosen)
    return Parts(*(digits.take(np.concatenate(part)) for part in parts))


class DigitCast:
    """What a world of digits shows; see `mav.world.cast`."""

    sentences: Sentences = SENTENCES
    colours: tuple[str, ...] = ()
    shapes: tuple[str, ...] = DIGITS
    kinds: tuple[list[Kind], ...] = tuple([(None, name)] for name in DIGITS)

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    @classmethod
    def of(cls, world: World, seed: int) -> "DigitCast":
        """Reads the digits of `world.files` and splits them. Raises UserError for files that hold none."""
        return cls(split_digits(read_digits(Folder(world.files)), seed))

    def scene(self, rng: np.random.Generator) -> Scene:
        """Returns a scene drawn uniformly, of a digit to train on."""
        return digit_scene(rng, self.parts.training)

    def held_out(self, rng: np.random.Generator, index: int) -> Scene:
        """Returns a scene of an evaluation set: the digits in turn."""
        return digit_scene(rng, self.parts.evaluation, index % len(DIGITS))

    def another(self, rng: np.random.Generator, first: Scene) -> Scene:
        """Returns a scene of another digit than the first one's."""
        label = (DIGITS.index(first.shape) + int(rng.integers(1, len(DIGITS)))) % len(DIGITS)
        return digit_scene(rng, self.parts.training, label)


def digit_scene(rng: np.random.Generator, digits: Digits, label: int | None = None) -> DigitScene:
    """Returns a scene of one of these digits, or of one with this label; all of it comes from `rng`."""
    row = rng.choice(len(digits) if label is None else np.flatnonzero(digits.labels == label))
    as_shape = random_scene(rng, tuple(PALETTE), SHAPES)  # it is as large, and moves as fast
    return DigitScene(None, DIGITS[digits.labels[row]], as_shape.centre, as_shape.radius, as_shape.velocity, "plain",
                      as_shape.ground_seed, ink=inked(digits.images[row]))  # fmt: skip
