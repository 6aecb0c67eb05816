"""Where an object is in a frame, and the square around it that it is recognised by."""

from collections.abc import Sequence

import cv2
import numpy as np


def centre_of_gravity(weight: np.ndarray) -> tuple[float, float]:
    """Returns the centre (x, y), in pixels from the corner, of an object that covers so much of each pixel (H, W)."""
    y, x = np.mgrid[0 : weight.shape[0], 0 : weight.shape[1]] + 0.5
    area = float(weight.sum())
    return float((weight * x).sum() / area), float((weight * y).sum() / area)


def resampled(mask: np.ndarray, corner: Sequence[float], scale: float, side: int) -> np.ndarray:
    """Returns a square (side, side) of a mask (H, W) from a corner (x, y) on; beyond the mask is nothing.

    scale: pixels of the mask for each of the square's.
    """
    source: np.ndarray = mask.astype(np.float32)
    if scale > 1.5:
        source = cv2.GaussianBlur(source, (0, 0), scale / 2)
    # Output pixel (u, v) samples the mask at corner + (u + 0.5) * scale, where pixel centres are at .5.
    matrix = np.array([[scale, 0, corner[0] + 0.5 * scale - 0.5], [0, scale, corner[1] + 0.5 * scale - 0.5]])
    return cv2.warpAffine(source, matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
