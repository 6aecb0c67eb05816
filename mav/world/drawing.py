"""Draws the demo world's pictures: coloured shapes over grey textured grounds, and the sentences that describe them.

Everything is a pure function of its arguments, so the truth about a picture is known: `mav.world.oracle` reads it back
from generated pixels. Lengths are in units of the picture's side, so that one scene can be drawn at any size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mav.recipes import World

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 30), "green": (30, 190, 40), "blue": (40, 70, 235), "yellow": (235, 220, 30),
    "cyan": (30, 215, 225), "magenta": (220, 40, 215),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
GROUNDS = ("smooth", "striped", "cloudy", "speckled")
# How a sentence names an object, and the whole of it.
SENTENCES = (
    ("a {colour} {shape}", "{objects} on a {ground} ground"), ("a {colour} {shape}", "a photo of {objects}"),
    ("a {colour} {shape}", "{objects}"), ("one {shape}, {colour},", "{objects} before a {ground} wall"),
)  # fmt: skip
PLAIN = 2  # the number of the sentence that names the objects only
ALONE, TOGETHER = (0.25, 0.32), (0.16, 0.2)  # least and largest radius of one object, and of each of two
SPEEDS = 0.4, 0.7  # sides a second; slower ones move by less than a pixel a frame of D^t in the demo

Kind = tuple[str | None, str]  # colour and shape of an object; a digit has no colour
Sentences = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Thing:
    """A coloured shape. centre: x, y; velocity: sides per second; it bounces off the borders."""

    colour: str | None
    shape: str
    centre: tuple[float, float]
    radius: float
    velocity: tuple[float, float]

    @property
    def name(self) -> str:
        """What the object is called: "red circle"; of a digit, "seven"."""
        return f"{self.colour} {self.shape}" if self.colour else self.shape

    @property
    def paint(self) -> tuple[int, int, int]:
        """The object's RGB, 0..255."""
        return PALETTE[str(self.colour)]

    def cover(self, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
        """Returns the share of each pixel that the object covers; x (1, W) and y (H, 1) are from its centre, in radii.

        size: pixels of the picture's side.
        """
        return np.clip(0.5 - signed_distance(self.shape, x, y) * self.radius * size, 0, 1)

    def centre_at(self, seconds: float) -> tuple[float, float]:
        """Returns the object's centre after this time, reflected so that the object stays inside the picture."""
        (x, y), (right, down) = self.centre, self.velocity
        return self._bounce(x + right * seconds), self._bounce(y + down * seconds)

    def _bounce(self, position: float) -> float:
        low, span = self.radius, (1.0 - self.radius) - self.radius
        phase = (position - low) % (2 * span)
        return low + (phase if phase <= span else 2 * span - phase)


@dataclass(frozen=True)
class Scene(Thing):
    """An object over a ground, and perhaps a second one of another colour, which covers it where they meet."""

    ground: str
    ground_seed: int
    second: Thing | None = None

    sentences: ClassVar[Sentences] = SENTENCES

    @property
    def objects(self) -> tuple[Thing, ...]:
        return (self,) if self.second is None else (self, self.second)

    @property
    def kinds(self) -> list[Kind]:
        return [(thing.colour, thing.shape) for thing in self.objects]

    def caption(self, sentence: int) -> str:
        """Returns the description by the sentence of this number."""
        return describe(self.kinds, self.ground, sentence, self.sentences)


def truth_of(kinds: Sequence[Kind]) -> dict[str, Any]:
    """Returns kinds of one or two objects as plain data: {"colour", "shape"}, of the second one under "second"."""
    return nested([{"colour": colour, "shape": shape} for colour, shape in kinds])


def nested(objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns what is known of the first object, with what is known of a second one under "second"."""
    first, *others = objects
    return first | {"second": others[0]} if others else first


def describe(kinds: Sequence[Kind], ground: str, sentence: int, sentences: Sentences = SENTENCES) -> str:
    """Returns the sentence of this number about objects of these kinds on a ground."""
    thing, whole = sentences[sentence % len(sentences)]
    objects = " and ".join(thing.format(colour=colour, shape=shape) for colour, shape in kinds)
    return whole.format(objects=objects, ground=ground)


def world_scene(world: World, rng: np.random.Generator) -> Scene:
    """Returns a scene of a world; where it has up to two objects a frame, both numbers have equal chances."""
    return random_scene(rng, world.colours, world.shapes, 1 if world.objects == 1 else int(rng.integers(1, 3)))


def random_scene(rng: np.random.Generator, colours: Sequence[str], shapes: Sequence[str], objects: int = 1) -> Scene:
    """Returns a scene of one object or two, of different colours, drawn uniformly; all of it comes from `rng`."""
    radius = float(rng.uniform(*(ALONE if objects == 1 else TOGETHER)))
    velocity, centre = _velocity(rng), _place(rng, radius)
    colour, shape, ground = (str(rng.choice(list(names))) for names in (colours, shapes, GROUNDS))
    seed = int(rng.integers(2**31))
    if objects == 1:
        return Scene(colour, shape, centre, radius, velocity, ground, seed)
    # The second object stands clear of the first; from any place, some corner is far enough.
    width, other = float(rng.uniform(*TOGETHER)), centre
    while np.hypot(other[0] - centre[0], other[1] - centre[1]) < radius + width:
        other = _place(rng, width)
    others, form = [name for name in colours if name != colour], str(rng.choice(list(shapes)))
    second = Thing(str(rng.choice(others)), form, other, width, _velocity(rng))
    return Scene(colour, shape, centre, radius, velocity, ground, seed, second)


def _velocity(rng: np.random.Generator) -> tuple[float, float]:
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*SPEEDS)
    return float(speed * np.cos(angle)), float(speed * np.sin(angle))


def _place(rng: np.random.Generator, radius: float) -> tuple[float, float]:
    x, y = rng.uniform(radius, 1 - radius, size=2)
    return float(x), float(y)


def draw(scene: Scene, size: int, seconds: float = 0.0) -> np.ndarray:
    """Returns the scene after this time as uint8 (size, size, 3) RGB."""
    return draw_objects(draw_ground(scene.ground, scene.ground_seed, size), scene, seconds)


def draw_clip(scene: Scene, size: int, frames: int, fps: float) -> np.ndarray:
    """Returns uint8 (frames, size, size, 3): the ground stays, the objects move."""
    ground = _to_bytes(draw_ground(scene.ground, scene.ground_seed, size))
    return np.stack([draw_objects(ground, scene, i / fps) for i in range(frames)])


def draw_ground(kind: str, seed: int, size: int) -> np.ndarray:
    """Returns a grey texture, float (size, size, 3), in 25..130 of 255 so that no object colour appears in it."""
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size
    # Grounds have little contrast, so that a short training is spent on the objects.
    base, depth, angle = rng.uniform(50, 100), rng.uniform(6, 14), rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    if kind == "smooth":
        texture = 2 * along - 1
    elif kind == "plain":
        texture = np.zeros_like(along)
    elif kind == "striped":
        texture = np.sign(np.sin(2 * np.pi * rng.uniform(2, 3.5) * along + rng.uniform(0, 6)))
    elif kind == "cloudy":
        waves = zip(rng.uniform(-2, 2, 4), rng.uniform(-2, 2, 4), rng.uniform(0, 6, 4), strict=True)
        texture = sum(np.cos(2 * np.pi * (fx * x + fy * y) + phase) for fx, fy, phase in waves) / 2.5
    elif kind == "speckled":
        cells = 6
        grid = rng.uniform(-1.5, 1.5, (cells, cells))
        texture = grid[(y * cells).astype(int), (x * cells).astype(int)]
    else:
        raise ValueError(f"unknown ground {kind!r}: one of plain, {', '.join(GROUNDS)}")
    return np.repeat(np.clip(base + depth * texture, 25, 130)[..., None], 3, axis=2)


def draw_objects(ground: np.ndarray, scene: Scene, seconds: float = 0.0) -> np.ndarray:
    """Returns a new uint8 picture: the scene's objects after this time over a square ground (float or uint8)."""
    for thing in scene.objects:
        ground = _draw_object(ground, thing, thing.centre_at(seconds))
    return ground


def _draw_object(ground: np.ndarray, thing: Thing, centre: tuple[float, float]) -> np.ndarray:
    """Returns a new uint8 picture: the object with antialiased edges over a square ground (float or uint8)."""
    size, radius = ground.shape[0], thing.radius
    picture = ground.copy() if ground.dtype == np.uint8 else _to_bytes(ground)
    # No shape's outline is farther out than this, so only this box changes.
    reach = 1.1 * radius * size + 1
    bounds = ((max(int(c * size - reach), 0), min(int(c * size + reach) + 1, size)) for c in centre)
    (left, right), (top, bottom) = bounds
    x = (np.arange(left, right) + 0.5)[None, :] / size
    y = (np.arange(top, bottom) + 0.5)[:, None] / size
    cover = thing.cover((x - centre[0]) / radius, (y - centre[1]) / radius, size)[..., None]
    box = picture[top:bottom, left:right]
    box[:] = _to_bytes(box * (1 - cover) + np.array(thing.paint) * cover)
    return picture


def _to_bytes(picture: np.ndarray) -> np.ndarray:
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the distance to the outline of a shape of radius 1 at the origin, negative inside. y points down."""
    if shape == "circle":
        return np.hypot(x, y) - 0.95
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.82
    if shape == "triangle":  # it points up
        return np.maximum(0.866 * np.abs(x) - 0.5 * y - 0.52, y - 0.78)
    if shape == "cross":
        lying = np.maximum(np.abs(x) - 0.95, np.abs(y) - 0.32)
        return np.minimum(lying, np.maximum(np.abs(y) - 0.95, np.abs(x) - 0.32))
    raise ValueError(f"unknown shape {shape!r}: one of {', '.join(SHAPES)}")
