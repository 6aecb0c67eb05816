"""How a clip moves: the camera, the things in front of it, its shaking, and frames that are shown again.

The flow between neighbouring frames is DIS (Kroeger et al. 2016) at some 64 pixels. Its median over the picture is the
camera's motion; what is left is that of things.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

SIDE = 64  # pixels: smaller frames are enlarged before their flow is estimated
GRID = 4  # every fourth pixel of the flow is looked at
THING = 95  # percentile over the picture, so that a small thing's motion is seen
SAME = 0.08  # levels: mean difference of luma up to which a frame is the one before


def flow_method() -> Any:
    """Returns OpenCV's DIS in its fastest setting."""
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)


def pair_motion(method: Any, before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Returns the camera's motion to the right and down and the things' own speed between two frames of luma.

    before, after: uint8 (h, w). All three are shares of the shorter side.
    """
    factor = max(1, -(-SIDE // min(before.shape)))
    if factor > 1:
        before, after = (cv2.resize(f, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR) for f in (before, after))
    flow = method.calc(before, after, None)[GRID // 2 :: GRID, GRID // 2 :: GRID].reshape(-1, 2)
    middle, thing = len(flow) // 2, len(flow) * THING // 100
    camera = np.partition(flow, middle, axis=0)[middle]
    things = np.partition(np.hypot(*(flow - camera).T), thing)[thing]
    right, down = camera / min(before.shape)
    return float(right), float(down), float(things / min(before.shape))


def motion_scores(
    pairs: Sequence[tuple[float, float, float]], differences: Sequence[float], fps: float
) -> dict[str, float]:
    """Returns the scores of a clip whose neighbouring frames differ by `differences` levels.

    pairs: `pair_motion` of every second pair of frames that are not the same. motion_global, motion_local: medians of
    the camera's and the things' speed, in shorter sides a second; shake: median change of the camera's motion between
    one frame and the next, in the same unit; repeated: share of the frames that are the ones before them.
    """
    repeated = float(np.mean(np.asarray(differences) <= SAME)) if len(differences) else 0.0
    moved = np.asarray(pairs, np.float64).reshape(-1, 3)
    rate = fps * (1 - repeated)  # a frame that is shown again takes time in which nothing moves
    camera, things = np.hypot(moved[:, 0], moved[:, 1]), moved[:, 2]
    turns = np.hypot(*np.diff(moved[:, :2], axis=0).T)
    scores = {"motion_global": camera, "motion_local": things, "shake": turns}
    medians = {name: rate * float(np.median(values)) if len(values) else 0.0 for name, values in scores.items()}
    return medians | {"repeated": repeated}
