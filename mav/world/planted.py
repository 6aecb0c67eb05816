"""Clips of the demo world that nobody should train on, each with the truth about what is wrong with it.

They stand at the end of the list, so that the other clips are the same with them and without.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mav.recipes import World
from mav.world.cast import Cast
from mav.world.drawing import Scene, draw_clip

WHITE = np.array([250.0, 250.0, 250.0])
LETTERS = ("101101111101101", "111100111001111", "111101101101111", "010101111101101")  # 3 x 5 pixels each


@dataclass(frozen=True)
class Planted:
    """A planted clip: uint8 (F, S, S, 3), why `video-select` should drop it, and where its shots change.

    Each change is (first frame, last frame): equal for a cut, the extent of a fade or a dissolve.
    """

    kind: str
    frames: np.ndarray
    reasons: tuple[str, ...]
    changes: tuple[tuple[int, int], ...] = ()


def plant(kind: str, world: World, cast: Cast, rng: np.random.Generator) -> Planted:
    """Draws a clip of a kind of `KINDS`; all of it comes from `rng`."""
    return KINDS[kind](world, cast, rng)


def _drawn(world: World, cast: Cast, rng: np.random.Generator) -> np.ndarray:
    return _clip(cast.scene(rng), world)


def _clip(scene: Scene, world: World) -> np.ndarray:
    return draw_clip(scene, world.size, world.clip_frames, world.clip_fps)


def _two(world: World, cast: Cast, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns two shots, of objects that differ where the world has others, and a frame near the middle."""
    first = cast.scene(rng)
    shots = (_clip(scene, world) for scene in (first, cast.another(rng, first)))
    return *shots, int(rng.integers(world.clip_frames // 3, 2 * world.clip_frames // 3))  # type: ignore[return-value]


def _cut(world: World, cast: Cast, rng: np.random.Generator) -> Planted:
    before, after, at = _two(world, cast, rng)
    return Planted("cut", np.concatenate([before[:at], after[at:]]), ("cut",), ((at, at),))


def _dissolve(world: World, cast: Cast, rng: np.random.Generator) -> Planted:
    before, after, at = _two(world, cast, rng)
    half = max(world.clip_frames // 8, 4)
    share = np.clip((np.arange(world.clip_frames) - at + half) / (2 * half), 0, 1)[:, None, None, None]
    mixed = (before * (1 - share) + after * share + 0.5).astype(np.uint8)
    return Planted("dissolve", mixed, ("cut",), ((at - half, at + half),))


def _fade(world: World, cast: Cast, rng: np.random.Generator) -> Planted:
    before, after, at = _two(world, cast, rng)
    half = max(world.clip_frames // 8, 4)
    number = np.arange(world.clip_frames)
    light = np.clip(np.abs(number - at) / half, 0, 1)[:, None, None, None]
    shots = np.where((number < at)[:, None, None, None], before, after)
    return Planted("fade", (shots * light + 0.5).astype(np.uint8), ("cut",), ((at - half, at + half),))


def _still(world: World, cast: Cast, rng: np.random.Generator) -> Planted:
    frames = np.repeat(_drawn(world, cast, rng)[:1], world.clip_frames, axis=0)
    return Planted("still", frames, ("still", "repeated"))


def _repeated(world: World, cast: Cast, rng: np.random.Generator) -> Planted:
    return Planted("repeated", np.repeat(_drawn(world, cast, rng), 3, axis=0)[: world.clip_frames], ("repeated",))


def _moved(frames: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Moves each frame by its place (down, right) in sides; what leaves at one side comes in at the other."""
    pixels = np.round(places * frames.shape[1]).astype(int)
    return np.stack([np.roll(frame, tuple(place), axis=(0, 1)) for frame, place in zip(frames, pixels, strict=True)])


def _panned(world: World, cast: Cast, rng: np.random.Generator, speed: float) -> np.ndarray:
    """A camera that moves at a speed, in sides a second, in one direction."""
    angle = rng.uniform(0, 2 * np.pi)
    seconds = np.arange(world.clip_frames)[:, None] / world.clip_fps
    return _moved(_drawn(world, cast, rng), seconds * speed * np.array([np.sin(angle), np.cos(angle)]))


def _too_fast(world: World, cast: Cast, rng: np.random.Generator) -> Planted:
    return Planted("too_fast", _panned(world, cast, rng, rng.uniform(2.5, 3.5)), ("too_fast",))


def _shaky(world: World, cast: Cast, rng: np.random.Generator) -> Planted:
    return Planted(
        "shaky", _moved(_drawn(world, cast, rng), rng.uniform(-0.05, 0.05, (world.clip_frames, 2))), ("shaky",)
    )


def _overlay(world: World, cast: Cast, rng: np.random.Generator) -> Planted:
    """A word that stands still over a camera that moves slowly."""
    frames = _panned(world, cast, rng, rng.uniform(0.4, 0.7))
    pixel = max(world.size // 32, 1)
    word = np.concatenate(
        [np.array(list(LETTERS[i]), int).reshape(5, 3) for i in rng.permutation(len(LETTERS))], axis=1
    )
    word = np.insert(word, [3, 6, 9], 0, axis=1).repeat(pixel, 0).repeat(pixel, 1)[..., None]
    top = int(rng.choice([pixel, world.size - word.shape[0] - pixel]))
    left = int(rng.choice([pixel, world.size - word.shape[1] - pixel]))
    place = slice(None), slice(top, top + word.shape[0]), slice(left, left + word.shape[1])
    frames[place] = np.where(word, WHITE, frames[place]).astype(np.uint8)
    return Planted("overlay", frames, ("overlay",))


def _border(world: World, cast: Cast, rng: np.random.Generator) -> Planted:
    frames, width = _drawn(world, cast, rng), world.size // 8
    if rng.uniform() < 0.5:
        frames = frames.transpose(0, 2, 1, 3).copy()
    frames[:, :width] = frames[:, -width:] = 0
    return Planted("border", frames, ("border",))


def _blank(world: World, cast: Cast, rng: np.random.Generator) -> Planted:
    level = 0 if rng.uniform() < 0.5 else int(rng.integers(60, 200))
    frames = np.full((world.clip_frames, world.size, world.size, 3), level, np.uint8)
    return Planted("blank", frames, ("blank", "still", "repeated"))


KINDS: dict[str, Callable[[World, Cast, np.random.Generator], Planted]] = {
    "cut": _cut, "dissolve": _dissolve, "fade": _fade, "still": _still, "repeated": _repeated, "too_fast": _too_fast,
    "shaky": _shaky, "overlay": _overlay, "border": _border, "blank": _blank,
}  # fmt: skip
