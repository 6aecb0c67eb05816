"""What needs no learning between given frames: linear blending and motion by optical flow; and which gaps are wide."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np

WIDE = 0.25  # of the object's width: in a gap of this displacement or more, blending shows two objects
FLOW_SIDE = 64  # pixels: smaller frames are enlarged before their flow is estimated


def blend(given: np.ndarray, skip: int) -> np.ndarray:
    """Blends linearly between given uint8 frames (K, ...); returns ((K - 1) * skip + 1, ...)."""
    count = (len(given) - 1) * skip + 1
    place = np.arange(count) / skip
    left = np.minimum(place.astype(int), max(len(given) - 2, 0))
    share = (place - left).reshape(-1, *[1] * (given.ndim - 1))
    right = np.minimum(left + 1, len(given) - 1)
    return np.asarray((given[left] * (1 - share) + given[right] * share + 0.5).astype(np.uint8))


def warp(given: np.ndarray, skip: int) -> np.ndarray | None:
    """Moves given uint8 frames (K, H, W, 3) along the optical flow between neighbours; (K - 1) * skip + 1 frames.

    The flow is DIS (Kroeger et al. 2016), in both directions; the two warped neighbours are blended. None where OpenCV
    was built without it.
    """
    if not hasattr(cv2, "DISOpticalFlow_create"):
        return None
    with _one_thread():
        return _warped(given, skip, _dis())


def optical_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the DIS flow from one uint8 frame (H, W, 3) to another, float32 (H, W, 2) in pixels, x before y.

    Raises ValueError where OpenCV was built without it.
    """
    if not hasattr(cv2, "DISOpticalFlow_create"):
        raise ValueError("this OpenCV has no DIS optical flow")
    height, width = first.shape[:2]
    factor = max(1, -(-FLOW_SIDE // min(height, width)))
    grey = [cv2.cvtColor(_enlarged(frame, factor), cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    with _one_thread():
        flow = _dis().calc(*grey, None)
    return cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / factor


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps OpenCV on one thread while the block runs: on more of them the flow is another, stripe by stripe."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _dis() -> Any:
    module: Any = cv2
    return module.DISOpticalFlow_create(module.DISOPTICAL_FLOW_PRESET_MEDIUM)


def _enlarged(frame: np.ndarray, factor: int) -> np.ndarray:
    return cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)


def _warped(given: np.ndarray, skip: int, method: Any) -> np.ndarray:
    height, width = given.shape[1:3]
    factor = max(1, -(-FLOW_SIDE // min(height, width)))
    large = [_enlarged(frame, factor) for frame in given]
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in large]
    y, x = np.mgrid[0 : height * factor, 0 : width * factor].astype(np.float32)
    made = [given[0]]
    for index in range(len(given) - 1):
        ends = large[index : index + 2]
        flows = method.calc(grey[index], grey[index + 1], None), method.calc(grey[index + 1], grey[index], None)
        for number in range(1, skip):
            share = number / skip
            parts = [
                cv2.remap(end, x - way * flow[..., 0], y - way * flow[..., 1], cv2.INTER_LINEAR, None,
                          cv2.BORDER_REPLICATE)
                for end, flow, way in zip(ends, flows, (share, 1 - share), strict=True)
            ]  # fmt: skip
            both = cv2.addWeighted(parts[0], 1 - share, parts[1], share, 0)
            made.append(cv2.resize(both, (width, height), interpolation=cv2.INTER_AREA))
        made.append(given[index + 1])
    return np.stack(made)


def wide_gaps(truth: Mapping[str, Any], indices: list[int], skip: int) -> list[int]:
    """Returns the numbers of the gaps between given frames in which an object moves at least `WIDE` of its width.

    truth: `radius`, and `centres` (x, y) of each filmed frame, in sides; those of a second object under `second`.
    indices: the filmed frames that were taken, of which every skip-th is given.
    """
    wide = np.zeros(len(indices[::skip]) - 1, bool)
    for thing in (truth, truth["second"]) if "second" in truth else (truth,):
        moved = np.linalg.norm(np.diff(np.array(thing["centres"])[indices[::skip]], axis=0), axis=1)
        wide |= moved >= WIDE * 2 * thing["radius"]
    return [int(gap) for gap in np.flatnonzero(wide)]
