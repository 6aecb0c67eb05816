"""How a clip moves: the camera, the things in front of it, its shaking, and frames that are shown again.

The flow between neighbouring frames is DIS (Kroeger et al. 2016) at some 64 pixels. Its median over the picture is the
camera's motion; what is left is that of things.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

SIDE = 64  # pixels: smaller frames are enlarged before their flow is estimated
LONGEST = 256  # pixels of the longer side, of which a strip would have thousands
GRID = 4  # every fourth pixel of the flow is looked at
THING = 95  # percentile over the picture, so that a small thing's motion is seen
SAME = 0.08  # levels of mean difference, summed over Y, U and V, up to which a frame is the one before,
AROUND, LESS = 4, 0.1  # and this share of the largest among this many on each side: coding adds a little of its own


def flow_method() -> Any:
    """Returns OpenCV's DIS in its fastest setting."""
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)


def pair_motion(method: Any, before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Returns the camera's motion to the right and down and the things' own speed between two frames of luma.

    before, after: uint8 (h, w). All three are shares of the shorter side.
    """
    height, width = before.shape
    factor = max(SIDE / min(height, width), 1.0)
    size = [min(round(side * factor), LONGEST) for side in (width, height)]
    if size != [width, height]:
        before, after = (cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in (before, after))
    flow = method.calc(before, after, None)[GRID // 2 :: GRID, GRID // 2 :: GRID].reshape(-1, 2)
    flow *= np.array([width / size[0], height / size[1]], np.float32) / min(height, width)
    middle, thing = len(flow) // 2, len(flow) * THING // 100
    camera = np.partition(flow, middle, axis=0)[middle]
    things = np.partition(np.hypot(*(flow - camera).T), thing)[thing]
    return float(camera[0]), float(camera[1]), float(things)


def motion_scores(
    pairs: Mapping[int, tuple[float, float, float]], differences: Sequence[float], fps: float
) -> dict[str, float]:
    """Returns the scores of a clip whose neighbouring frames differ by `differences` levels.

    pairs: `pair_motion` of some of them, by their number. motion_global, motion_local: medians of the camera's and the
    things' speed, in shorter sides a second; shake: median change of the camera's motion from one frame to the next, in
    the same unit; repeated: share of the frames that are the ones before them.
    """
    changes = np.asarray(differences, np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(changes, AROUND), 2 * AROUND + 1)
    same = changes <= np.maximum(SAME, LESS * windows.max(axis=1))
    repeated = float(same.mean())
    moved = np.array([pair for number, pair in pairs.items() if not same[number]], np.float64).reshape(-1, 3)
    rate = fps * (1 - repeated)  # a frame that is shown again takes time in which nothing moves
    camera, things = np.hypot(moved[:, 0], moved[:, 1]), moved[:, 2]
    turns = np.hypot(*np.diff(moved[:, :2], axis=0).T)
    medians = {
        name: rate * float(np.median(values)) if len(values) else 0.0
        for name, values in (("motion_global", camera), ("motion_local", things), ("shake", turns))
    }
    return medians | {"repeated": repeated}
