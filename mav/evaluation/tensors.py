"""Reads a video that is stored as an array, npy or pt."""

import io

import numpy as np

# The reasons why one cannot be used.
BAD_TENSOR, BAD_SHAPE = "not a readable tensor", "not of the shape (F, H, W, 3) or (F, 3, H, W)"
BAD_TYPE, BAD_RANGE = "neither bytes nor floats", "floats must lie in 0 to 1 or -1 to 1"
NOT_FINITE = "not finite"
REASONS = (BAD_TENSOR, BAD_SHAPE, BAD_TYPE, BAD_RANGE, NOT_FINITE)


def read_tensor(data: bytes, ending: str) -> np.ndarray:
    """Returns uint8 frames (F, H, W, 3) of a stored array (F, H, W, 3) or (F, 3, H, W) of bytes or floats.

    Raises ValueError with one of `REASONS`.
    """
    try:
        if ending == ".npy":
            x = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)  # np.load would take an npz too
        else:
            from mav.models.checkpoints.weight_files import read_torch

            x = read_torch(io.BytesIO(data)).numpy()
    except Exception:  # a file of another format fails in many ways
        raise ValueError(BAD_TENSOR) from None
    if x.ndim != 4 or 3 not in (x.shape[-1], x.shape[1]) or 0 in x.shape:
        raise ValueError(BAD_SHAPE)
    x = x if x.shape[-1] == 3 else x.transpose(0, 2, 3, 1)
    if x.dtype == np.uint8:
        return np.asarray(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(BAD_TYPE)
    if not np.isfinite(x).all():
        raise ValueError(NOT_FINITE)
    if x.min() < -1 or x.max() > 1:
        raise ValueError(BAD_RANGE)
    unit = (x + 1) / 2 if x.min() < 0 else x
    return np.asarray((unit * 255 + 0.5).astype(np.uint8))
