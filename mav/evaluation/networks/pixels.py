"""What is measured of a video without a network: four numbers, three of them by VBench's names.

| number | what it is | better |
|---|---|---|
| temporal_flickering | 1 less the mean absolute change from frame to frame (VBench, Huang et al. 2024, 3.1) | higher |
| motion_smoothness | 1 less the mean absolute error of odd frames made from their neighbours (the same) | higher |
| dynamic_degree | 1 when enough pairs of frames move, else 0 (the same) | higher |
| strobing | mean alternation of brightness between even and odd frames; ours | lower |

Changes and errors are shares of the range of a byte. Where VBench makes the odd frames with AMT and measures motion
with RAFT, here both come from DIS optical flow (Kroeger et al. 2016), which needs no weights: it follows large motion
and thin objects less well, so that smoothness is lower for them, and motion in flat areas is missed. The thresholds of
`dynamic_degree` are VBench's; `networks.raft` measures it with RAFT. A steady picture flickers and strobes least and is
smoothest, so that these numbers are read beside the dynamic degree.

Strobing compares every frame with the mean of its two neighbours, on a coarse grid of brightness, and keeps what has
the same sign in all even frames and the other one in all odd frames: motion at a steady pace and noise cancel out, and
so do the changes that temporal flickering sees. It is blind to brightness that returns every third frame or later.
"""

from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np

from mav.generation.between import optical_flow, warp

NAMES = ("temporal_flickering", "motion_smoothness", "dynamic_degree", "strobing")
VERSION = 2  # is part of the digest under which the numbers are kept
LEAST_FRAMES = 3
USUAL_RATE = 8.0  # frames a second at which motion is measured, and of a video that does not say its own
MOVING = 6.0  # pixels of the fastest twentieth, on a shorter side of 256, above which a pair of frames moves
FASTEST = 0.05  # share of the pixels of which the mean speed is taken
MOVING_PAIRS = 4 / 16  # pairs that must move, as a share of the frames
GRID = 8  # cells of a side on which brightness is compared
FLOW_SIDE = 256  # pixels of the shorter side above which frames are made smaller before flow is measured


def measure(frames: np.ndarray, fps: float = 0.0) -> np.ndarray:
    """Returns the numbers in the order of `NAMES`, float32 (4,), of uint8 frames (F, H, W, 3) at a rate; 0 = unknown.

    Raises ValueError for fewer than three frames.
    """
    if len(frames) < LEAST_FRAMES:
        raise ValueError(f"{LEAST_FRAMES} frames are needed, not {len(frames)}")
    small = _at_flow_size(frames)
    found = steadiness(frames), smoothness(small), moves(small, fps), strobing(frames)
    return np.asarray(found, np.float32)


def steadiness(frames: np.ndarray) -> float:
    """Returns the temporal flickering score."""
    changes = [np.mean(cv2.absdiff(a, b)) for a, b in pairwise(frames)]
    return float(1 - np.mean(changes) / 255)


def smoothness(frames: np.ndarray) -> float:
    """Returns the motion smoothness score."""
    made = warp(frames[::2], 2)
    if made is None:
        raise ValueError("this OpenCV has no DIS optical flow")
    errors = [np.mean(cv2.absdiff(a, b)) for a, b in zip(made[1::2], frames[1::2], strict=False)]
    return float(1 - np.mean(errors) / 255)


def moves(frames: np.ndarray, fps: float = 0.0, flow: Callable[..., np.ndarray] = optical_flow) -> float:
    """Says whether enough pairs of uint8 frames (F, H, W, 3) move, about eight of them a second: 1, 0, or nan where a
    flow is not finite. A video of less than an eighth of a second, of which there is no pair, does not move.

    flow: from a pair of frames to (H, W, 2) in pixels. Slower videos must move by as much more from frame to frame. No
    pair is measured that cannot change the answer.
    """
    rate = fps or USUAL_RATE
    taken = frames[:: max(1, round(rate / USUAL_RATE))]
    threshold = MOVING * max(1.0, USUAL_RATE / rate) * min(taken.shape[1:3]) / 256
    needed = max(round(MOVING_PAIRS * len(taken)), 1)
    left, moved = len(taken) - 1, 0
    for first, second in pairwise(taken):
        speed = _speed(flow(first, second))
        if np.isnan(speed):
            return float("nan")
        left, moved = left - 1, moved + (speed > threshold)
        if not needed - left <= moved < needed:
            break
    return float(moved >= needed)


def strobing(frames: np.ndarray) -> float:
    """Returns how much lighter even frames are than odd ones or darker, 0 to 1: the mean over cells of a grid."""
    cells = np.stack([
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32), (GRID, GRID), None, 0, 0, cv2.INTER_AREA)
        for frame in frames
    ])  # fmt: skip
    apart = cells[1:-1] - (cells[:-2] + cells[2:]) / 2  # of all frames that have two neighbours
    signs = (-1.0) ** np.arange(len(apart))
    # As many even frames as odd ones, or a steady curve of brightness would count as alternation.
    pairs = max(len(apart) // 2 * 2, 1)
    alternation = (apart[:pairs] * signs[:pairs, None, None]).mean(axis=0)
    return float(np.abs(alternation).mean() / 255)


def _at_flow_size(frames: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1:3]
    scale = FLOW_SIDE / min(height, width)
    if scale >= 1:
        return frames
    size = (round(width * scale), round(height * scale))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def _speed(flow: np.ndarray) -> float:
    """Returns the mean length of the longest twentieth of a flow (H, W, 2), in pixels."""
    lengths = np.hypot(flow[..., 0], flow[..., 1]).ravel()
    count = max(int(len(lengths) * FASTEST), 1)
    return float(np.partition(lengths, len(lengths) - count)[-count:].mean())
