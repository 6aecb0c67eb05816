"""What was laid over a clip or around it: text and logos that stand still, borders, and frames without a picture.

Text and logos are edges that are there at all times although the picture beside them changes. An edge of a resting
ground is covered when something passes before it; one of an overlay never is.
"""

import math

import numpy as np

EDGE = 10  # levels between neighbouring pixels
ALWAYS = 12  # per cent of the frames in which an edge may be weaker: an overlay comes late, or the picture matches it
SPREAD = 20  # per cent of the frames at either end that do not count for the range of a pixel's levels
CHANGES = 6  # levels, the range of a pixel beside an overlay's edge
EVEN = 10  # levels within a border, over all its pixels and frames
BLACK, WHITE = 30, 225  # luma up to and from which a border may be
FLAT = 3.0  # levels of standard deviation within a frame, below which it shows nothing


def overlay_score(luma: np.ndarray, box: tuple[slice, slice] = (slice(None), slice(None))) -> float:
    """Returns the length of the edges that stand still over a moving picture, in shorter sides of the frame.

    luma: uint8 (F, h, w), frames spread over the clip. box: what `picture_box` returns, because the edge of a border is
    no overlay.
    """
    if len(luma) < 2:
        return 0.0
    levels = luma[:, *box].astype(np.int16)
    # A change of the exposure is no change beside an edge.
    relative = np.sort(levels - levels.mean(axis=(1, 2), keepdims=True).astype(np.int16), axis=0)
    rank = len(levels) * SPREAD // 100
    changes = relative[-1 - rank] - relative[rank] >= CHANGES
    length = 0
    for axis in (1, 2):
        steps = np.sort(np.diff(levels, axis=axis), axis=0)
        rank = len(steps) * ALWAYS // 100
        stands = np.maximum(steps[rank], -steps[-1 - rank]) >= EDGE
        sides = np.stack([np.delete(changes, end, axis - 1) for end in (0, -1)])
        length += int((stands & sides.any(axis=0)).sum())
    return length / min(luma.shape[1:])


def border_score(luma: np.ndarray) -> float:
    """Returns the share of the picture that black or white borders take; 0 where there is nothing else.

    luma: as in `overlay_score`.
    """
    ends, lengths = _inner(luma), luma.shape[1:]
    return 1 - math.prod((end - first) / length for (first, end), length in zip(ends, lengths, strict=True))


def picture_box(luma: np.ndarray) -> tuple[slice, slice]:
    """Returns the rows and the columns of the picture within the borders; all of them where there are none.

    A row or column beside a border is left out, since a part of it may be border. luma: as in `overlay_score`.
    """
    rows, columns = (
        slice(first + (first > 0), end - (end < length)) if end - first > 2 else slice(first, end)
        for (first, end), length in zip(_inner(luma), luma.shape[1:], strict=True)
    )
    return rows, columns


def _inner(luma: np.ndarray) -> list[tuple[int, int]]:
    """Returns the first row or column of the picture within the borders, and the one after its last."""
    low, high = luma.min(axis=0), luma.max(axis=0)
    inner = []
    for axis, length in ((1, luma.shape[1]), (0, luma.shape[2])):
        darkest, brightest = low.min(axis=axis).astype(int), high.max(axis=axis).astype(int)
        blank = (brightest - darkest <= EVEN) & ((brightest <= BLACK) | (darkest >= WHITE))
        picture = np.flatnonzero(~blank)
        inner.append((int(picture[0]), int(picture[-1]) + 1) if len(picture) else (0, length))
    return inner


def blank_score(frames: np.ndarray) -> float:
    """Returns the share of the frames that are of one colour all over. frames: uint8 (F, h, w, 3), Y, U and V."""
    return float((frames.std(axis=(1, 2)) < FLAT).all(axis=1).mean())
