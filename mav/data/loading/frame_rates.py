"""Which frames of a clip make a training sample: frame rates from the curriculum, indices from time."""

import numpy as np

from mav.recipes import FpsCurriculum


def draw_fps(curriculum: FpsCurriculum, progress: float, rng: np.random.Generator) -> float:
    """A frame rate in [low, high] from a Beta distribution that slides from `start` to `end` as progress goes from 0 to 1.

    Paper 3.2: each clip is seen at a random rate between 1 and 30 fps, drawn so that training begins with little motion (high rates)
    and moves to more (low rates).
    """
    share = min(max(progress, 0.0), 1.0)
    a, b = (s + (e - s) * share for s, e in zip(curriculum.start, curriculum.end, strict=True))
    return float(curriculum.low + (curriculum.high - curriculum.low) * rng.beta(a, b))


def frame_times(fps: float, frames: int) -> np.ndarray:
    """Seconds at which the frames of a clip of constant rate are shown, from the first."""
    return np.arange(frames) / fps


def frame_indices(times: np.ndarray, frames: int, fps: float, u: float) -> tuple[np.ndarray, float]:
    """(indices of the `frames` frames nearest in time to ticks of `fps`, the rate they really have).

    times: seconds of the clip's frames, growing. A clip too short for the rate is sampled as slowly as it allows, and none faster than it
    was filmed, so the rate handed back may differ from the one asked for: it is the one to condition on. u in [0, 1) places the sample
    within the clip. Raises ValueError when the clip has fewer frames than asked for.
    """
    if len(times) < frames:
        raise ValueError(f"{frames} frames asked of a clip of {len(times)}")
    length = float(times[-1] - times[0])
    filmed = (len(times) - 1) / length
    rate = float(min(max(fps, (frames - 1) / length), filmed))
    slack = max(length - (frames - 1) / rate, 0.0)
    ticks = times[0] + u * slack + np.arange(frames) / rate
    places = np.interp(ticks, times, np.arange(len(times)))
    return np.minimum(np.floor(places + 0.5 + 1e-9).astype(np.int64), len(times) - 1), rate


def too_short(times: np.ndarray, frames: int, fps: float) -> bool:
    """Whether a clip ends before `frames` frames at `fps` do, half a frame given."""
    return (frames - 1) / fps > float(times[-1] - times[0]) * (1 + 0.5 / (len(times) - 1)) if len(times) > 1 else True
