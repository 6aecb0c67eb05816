"""Scores of a clip for its curation, taken from the frames that are being encoded, at low size and without a second
decoding: cuts (`cuts`), motion (`motion`), overlays, borders and blank frames (`overlays`), and the perceptual hash of
the middle frame, by which near duplicates are found.

A score says what is in a clip; what may be trained on is decided later, by the thresholds of `video-select`. Equal
frames have equal scores: flow is estimated in one thread, and scores are rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mav.data.images.hashes import SIDE as HASHED
from mav.data.images.hashes import perceptual_hash
from mav.data.videos.scores.cuts import find_cuts
from mav.data.videos.scores.motion import SAME, flow_method, motion_scores, pair_motion
from mav.data.videos.scores.overlays import blank_score, border_score, overlay_score, picture_box

if TYPE_CHECKING:
    from mav.data.videos.scores.learned import LearnedCuts

SIDE, THUMB = 64, 16  # least pixels of the shorter side for motion and overlays, and for cuts
SPREAD = 24  # frames, at most twice as many, in which overlays are looked for
SAMPLED = (1, 4)  # of every 7 frames, because flow is the dearest of all; new ones are among them if others repeat
DIGITS = 4
# The columns of scores beside `VIDEO_ROWS`, which all clips have that came through. cut_before, cut_after, cut_scores:
# what a `Cut` says of each change of the shot. box: of the picture within the borders (`picture_box`).
SCORES = {
    "cut": "double", "cut_before": "[]int32", "cut_after": "[]int32", "cut_scores": "[]double",
    "motion_global": "double", "motion_local": "double", "shake": "double", "repeated": "double", "overlay": "double",
    "border": "double", "box": "[]double", "blank": "double", "hash": "uint64",
}  # fmt: skip


class ClipScorer:
    """Collects what the scores of a clip need, frame by frame: bytes a frame, not pictures.

    shot_weights: file of TransNetV2, which then finds the cuts, with probabilities for scores. Raises UserError.
    """

    def __init__(self, shot_weights: str = "") -> None:
        self._learned = _learned_cuts(shot_weights) if shot_weights else None
        self._thumbs: list[np.ndarray] = []
        self._small: list[np.ndarray] = []  # luma of a hash's size
        self._spread: list[np.ndarray] = []  # every `_step`-th frame's luma
        self._step = 1
        self._before: np.ndarray | None = None
        self._size = 0, 0  # height and width of the frames
        self._pairs: dict[int, tuple[float, float, float]] = {}
        self._differences: list[float] = []
        self._flow = flow_method()

    def add(self, planes: np.ndarray) -> None:
        """Takes the next frame: uint8 (3/2 H, W), the planes of 8-bit 4:2:0 with even sides, as PyAV lays them out."""
        luma, thumb = small_pictures(planes)
        self._size = planes.shape[0] * 2 // 3, planes.shape[1]
        number = len(self._thumbs)
        self._thumbs.append(thumb)
        if self._learned:
            self._learned.add(planes)
        self._small.append(cv2.resize(luma, (HASHED, HASHED), interpolation=cv2.INTER_AREA))
        if number % self._step == 0:
            self._spread.append(luma)
            if len(self._spread) == 2 * SPREAD:
                self._spread, self._step = self._spread[::2], 2 * self._step
        if self._before is not None:
            chroma_change = cv2.mean(cv2.absdiff(self._thumbs[-2], self._thumbs[-1]))[1:3]
            change = cv2.mean(cv2.absdiff(self._before, luma))[0] + sum(chroma_change)
            self._differences.append(change)
            if change > SAME and number % 7 in SAMPLED:
                self._pairs[number - 1] = pair_motion(self._flow, self._before, luma)
        self._before = luma

    def scores(self, fps: float, times: Sequence[float] = ()) -> dict[str, Any]:
        """Returns the clip's row of `SCORES`, its frames being shown at `fps` a second.

        times: seconds from the first frame at which each is shown, where they are not even.
        """
        thumbs, luma = np.stack(self._thumbs), np.stack(self._spread)
        cuts = self._learned.cuts() if self._learned else find_cuts(thumbs)
        scores = motion_scores(self._pairs, self._differences, fps)
        rows, columns = picture_box(luma)
        scores |= {"overlay": overlay_score(luma, (rows, columns)), "border": border_score(luma)}
        scores |= {"blank": blank_score(thumbs)}
        scores |= {"cut": max((cut.score for cut in cuts), default=0.0)}
        rounded: dict[str, Any] = {name: round(float(value), DIGITS) for name, value in scores.items()}
        half = (times[-1] + 1 / fps) / 2 if times else 0.0
        middle = int(np.searchsorted(times, half, "right")) - 1 if times else len(thumbs) // 2
        rounded |= {"cut_before": [cut.before for cut in cuts], "cut_after": [cut.after for cut in cuts]}
        rounded |= {"cut_scores": [round(cut.score, DIGITS) for cut in cuts]}
        return rounded | {"box": self._box(rows, columns), "hash": perceptual_hash(self._small[middle])}

    def _box(self, rows: slice, columns: slice) -> list[float]:
        """Returns left, top, right and bottom of this part of the reduced pictures, as shares of width and height."""
        factor, ends = _factor(self._size, SIDE), []
        for part, length in ((columns, self._size[1]), (rows, self._size[0])):
            first, last = (length % factor // 2 + place * factor for place in (part.start, part.stop))
            whole = part.stop == length // factor
            ends.append((first / length if part.start else 0.0, 1.0 if whole else last / length))
        return [round(end, DIGITS) for side in zip(*ends, strict=True) for end in side]


def _learned_cuts(weights: str) -> LearnedCuts:
    from mav.data.videos.scores.learned import LearnedCuts  # here, since nothing else of this needs torch

    return LearnedCuts(weights)


def small_pictures(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a frame's luma at some 64 pixels, uint8 (h, w), and Y, U and V at some 16, uint8 (h, w, 3).

    planes: as `ClipScorer.add` takes them.
    """
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    luma = _reduced(planes[:height], SIDE)
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    thumb = _reduced(luma, THUMB)
    size = thumb.shape[1], thumb.shape[0]
    parts = (cv2.resize(_reduced(plane, THUMB), size, interpolation=cv2.INTER_LINEAR) for plane in chroma)
    return luma, np.dstack([thumb, *parts])


def _reduced(plane: np.ndarray, side: int) -> np.ndarray:
    """Returns a plane reduced by a whole factor, with at least `side` pixels where it has them.

    A whole factor is several times as fast as another. The few rows and columns that do not fill one are left out.
    """
    factor = _factor(plane.shape, side)
    height, width = (length // factor for length in plane.shape)
    top, left = ((length % factor) // 2 for length in plane.shape)
    part = plane[top : top + height * factor, left : left + width * factor]
    if factor == 1:
        return part.copy()
    while factor % 2 == 0:  # OpenCV is several times as fast in halves, each of which rounds
        factor //= 2
        part = cv2.resize(part, (width * factor, height * factor), interpolation=cv2.INTER_AREA)
    return part if factor == 1 else cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)


def _factor(shape: tuple[int, ...], side: int) -> int:
    return max(1, min(shape) // side)
