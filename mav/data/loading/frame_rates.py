"""Chooses the frames of a clip for a training sample: a frame rate from the curriculum, then frames by their times."""

from typing import Any

import numpy as np

from mav.recipes import FpsCurriculum


def draw_fps(curriculum: FpsCurriculum, progress: float, rng: np.random.Generator) -> float:
    """Draws a frame rate in [low, high] from a Beta distribution that moves from `start` to `end` with progress, 0..1.

    Paper 3.2: each clip is seen at a random rate between 1 and 30 fps, drawn so that training begins with little motion
    (high rates) and moves to more (low rates).
    """
    share = min(max(progress, 0.0), 1.0)
    a, b = (s + (e - s) * share for s, e in zip(curriculum.start, curriculum.end, strict=True))
    return float(curriculum.low + (curriculum.high - curriculum.low) * rng.beta(a, b))


def frame_times(fps: float, frames: int) -> np.ndarray:
    """Returns the times (s) of the frames of a clip of constant rate; the first is 0."""
    return np.arange(frames) / fps


def clip_times(metadata: dict[str, Any]) -> np.ndarray:
    """Returns when each frame of a clip is shown, (frames,), by its own times or else by its `fps` and `frames`."""
    known = metadata.get("times")
    return frame_times(float(metadata["fps"]), int(metadata["frames"])) if known is None else np.asarray(known)


def frame_indices(times: np.ndarray, frames: int, fps: float, u: float) -> tuple[np.ndarray, float]:
    """Returns the indices of the `frames` frames that are nearest in time to ticks of `fps`, and their real rate.

    times: seconds of the clip's frames, increasing; u in [0, 1) places the sample within the clip. A clip too short for
    the rate is sampled as slowly as its length allows, and none faster than it was filmed, so the returned rate may
    differ from `fps`: condition on the returned one. Raises ValueError when the clip has fewer than `frames` frames.
    """
    if len(times) < frames:
        raise ValueError(f"{frames} frames asked of a clip of {len(times)}")
    length = float(times[-1] - times[0])
    filmed = (len(times) - 1) / length
    rate = float(min(max(fps, (frames - 1) / length), filmed))
    slack = max(length - (frames - 1) / rate, 0.0)
    ticks = times[0] + u * slack + np.arange(frames) / rate
    positions = np.interp(ticks, times, np.arange(len(times)))
    return np.minimum(np.floor(positions + 0.5 + 1e-9).astype(np.int64), len(times) - 1), rate


def too_short(times: np.ndarray, frames: int, fps: float) -> bool:
    """Says whether a clip is more than half a frame shorter than `frames` frames at `fps`."""
    return (frames - 1) / fps > float(times[-1] - times[0]) * (1 + 0.5 / (len(times) - 1)) if len(times) > 1 else True
