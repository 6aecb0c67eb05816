"""Damage of known strength to real clips, so that metrics can be asked what they see (`card`).

Each function takes uint8 frames (F, H, W, 3) and a strength, and returns frames of the same shape. Strength 0, where a
kind has one, changes nothing. Equal clips, strengths and seeds give equal bytes. `wrong_prompts` leaves the frames as
they are and damages what the clips are said to show.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Kind:
    """One kind of damage: what its strength means, and the strengths of the card, rising."""

    function: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
    about: str
    strengths: tuple[float, ...]


@dataclass(frozen=True)
class Corruption:
    """One kind at one strength, called with a clip and its number in the list. It can be pickled."""

    kind: str
    strength: float
    seed: int = 0

    def __call__(self, frames: np.ndarray, number: int) -> np.ndarray:
        """Returns the damaged clip, uint8 (F, H, W, 3). Raises ValueError for frames of another form."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"a clip must be uint8 (F, H, W, 3), not {frames.dtype} {frames.shape}")
        rng = np.random.default_rng([self.seed, number, *self.kind.encode()])  # of equal draws at every strength
        return np.ascontiguousarray(KINDS[self.kind].function(frames, self.strength, rng))


def noise(frames: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Adds Gaussian noise of this standard deviation in grey levels, anew in each frame."""
    return _bytes(frames + strength * rng.standard_normal(frames.shape))


def blur(frames: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """Blurs each frame with a Gaussian whose sigma is this share of the shorter side."""
    sigma = strength * min(frames.shape[1:3])
    return frames.copy() if sigma == 0 else np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])


def shuffle(frames: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Puts this share of the frames, at least two of them, in each other's places, so that none stays in its own."""
    count = min(max(round(strength * len(frames)), 2), len(frames)) if strength else 0
    chosen, order = rng.permutation(len(frames))[:count], np.arange(len(frames))
    order[chosen] = np.roll(chosen, 1)
    return frames[order]


def freeze(frames: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """Lets the clip stand still for this share of its frames, at its end."""
    moving = max(len(frames) - round(strength * len(frames)), 1)
    return frames[np.minimum(np.arange(len(frames)), moving - 1)]


def reverse(frames: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """Runs this share of the frames backwards, at the clip's end."""
    forward = len(frames) - round(strength * len(frames))
    return np.concatenate([frames[:forward], frames[forward:][::-1]])


def strobe(frames: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """Darkens every second frame by this share."""
    made = frames.copy()
    made[1::2] = _bytes(frames[1::2] * (1.0 - strength))
    return made


def resolution(frames: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """Shrinks each side by a factor, 2 to the power of the strength, and enlarges it again; 1 is half resolution."""
    height, width = frames.shape[1:3]
    small = (max(round(width / 2**strength), 1), max(round(height / 2**strength), 1))
    shrunk = (cv2.resize(frame, small, interpolation=cv2.INTER_AREA) for frame in frames)
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR) for frame in shrunk])


def jpeg(frames: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """Compresses each frame as JPEG of the quality 100 less the strength; 0 leaves the frames alone."""
    if strength == 0:
        return frames.copy()
    settings = [cv2.IMWRITE_JPEG_QUALITY, round(100 - strength)]
    files = (cv2.imencode(".jpg", frame[..., ::-1], settings)[1] for frame in frames)
    return np.stack([np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR))[..., ::-1] for file in files])


def _bytes(frames: np.ndarray) -> np.ndarray:
    return (np.clip(frames, 0, 255) + 0.5).astype(np.uint8)


SHARES = (0.25, 0.5, 0.75, 1.0)
KINDS: dict[str, Kind] = {
    "noise": Kind(noise, "standard deviation in grey levels", (4, 8, 16, 32)),
    "blur": Kind(blur, "sigma as a share of the shorter side", (0.01, 0.02, 0.04, 0.08)),
    "frame shuffle": Kind(shuffle, "share of the frames that change places", SHARES),
    "freeze": Kind(freeze, "share of the clip that stands still", SHARES),
    "reversed": Kind(reverse, "share of the clip that runs backwards", (0.5, 1.0)),
    "strobing": Kind(strobe, "share by which every second frame is darkened", (0.05, 0.1, 0.2, 0.4)),
    "half resolution": Kind(resolution, "number of times that each side is halved", (1, 2, 3)),
    "JPEG": Kind(jpeg, "100 less the quality", (20, 50, 80, 95)),
}


WRONG_PROMPT = "wrong prompt"
WRONG_PROMPT_ABOUT = "share of the clips that get the prompt of another"
WRONG_PROMPT_STRENGTHS = SHARES


def wrong_prompts(prompts: Sequence[str], strength: float, seed: int = 0) -> list[str]:
    """Returns the prompts of clips, of which this share is replaced by another clip's, of other words.

    A greater strength replaces the same ones and more. Where all prompts are equal, nothing can be replaced.
    """
    order = np.random.default_rng([seed, len(prompts), *WRONG_PROMPT.encode()]).permutation(len(prompts))
    made = list(prompts)
    for place, index in enumerate(order[: round(strength * len(prompts))].tolist()):
        others = (prompts[order[(place + step) % len(order)]] for step in range(1, len(order)))
        made[index] = next((text for text in others if text != prompts[index]), prompts[index])
    return made


def every(seed: int = 0) -> Sequence[Corruption]:
    """Returns every kind at every strength of the card, in order."""
    return [Corruption(name, strength, seed) for name, kind in KINDS.items() for strength in kind.strengths]
