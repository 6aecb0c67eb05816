"""Which frames of a clip make a training sample: frame rates from the curriculum, indices from time."""

from __future__ import annotations

import numpy as np

from mav.recipe import FpsCurriculum


def draw_fps(curriculum: FpsCurriculum, progress: float, rng: np.random.Generator) -> float:
    """A frame rate in [low, high] from a Beta distribution that slides from `start` to `end` as progress goes from 0 to 1.

    Paper 3.2: each clip is seen at a random rate between 1 and 30 fps, drawn so that training begins with little motion (high rates)
    and moves to more (low rates).
    """
    share = min(max(progress, 0.0), 1.0)
    a, b = (s + (e - s) * share for s, e in zip(curriculum.start, curriculum.end, strict=True))
    return float(curriculum.low + (curriculum.high - curriculum.low) * rng.beta(a, b))


def frame_indices(native_fps: float, frames_available: int, frames: int, fps: float, u: float) -> tuple[np.ndarray, float]:
    """(indices of `frames` frames as if filmed at `fps`, the rate they really have).

    A clip too short for the rate is sampled as slowly as it allows, and none faster than it was filmed, so the rate handed back may differ
    from the one asked for: it is the one to condition on. u in [0, 1) places the sample within the clip. Raises ValueError when the
    clip has fewer frames than asked for.
    """
    if frames_available < frames:
        raise ValueError(f"{frames} frames asked of a clip of {frames_available}")
    slowest = native_fps * (frames - 1) / max(frames_available - 1, 1)
    rate = float(min(max(fps, slowest), native_fps))
    step = native_fps / rate
    slack = max(frames_available - 1 - (frames - 1) * step, 0.0)
    indices = np.floor(u * slack + np.arange(frames) * step + 0.5 + 1e-9).astype(np.int64)
    return np.minimum(indices, frames_available - 1), rate
