"""Scores of a clip for its curation, taken from the frames that are being encoded, at low size and without a second
decoding: cuts (`cuts`), motion (`motion`), overlays, borders and blank frames (`overlays`), and the perceptual hash of
the middle frame, by which near duplicates are found.

A score says what is in a clip; what may be trained on is decided later, by the thresholds of `video-select`. Equal
frames have equal scores: flow is estimated in one thread, and scores are rounded.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from mav.data.images.hashes import SIDE as HASHED
from mav.data.images.hashes import perceptual_hash
from mav.data.videos.scores.cuts import find_cuts
from mav.data.videos.scores.motion import SAME, flow_method, motion_scores, pair_motion
from mav.data.videos.scores.overlays import blank_score, border_score, overlay_score

SIDE, THUMB = 64, 16  # least pixels of the shorter side for motion and overlays, and for cuts
SPREAD = 24  # frames, at most twice as many, in which overlays are looked for
SAMPLED = (1, 4)  # of every 7 frames, because flow is the dearest of all; new ones are among them if others repeat
DIGITS = 4
# The ledger's columns of scores, which all clips have that came through.
SCORES = {
    "cut": "double", "cut_frames": "[]int32", "cut_scores": "[]double", "motion_global": "double",
    "motion_local": "double", "shake": "double", "repeated": "double", "overlay": "double", "border": "double",
    "blank": "double", "hash": "uint64",
}  # fmt: skip


class ClipScorer:
    """Collects what the scores of a clip need, frame by frame: bytes a frame, not pictures."""

    def __init__(self) -> None:
        self._thumbs: list[np.ndarray] = []
        self._small: list[np.ndarray] = []  # luma of a hash's size
        self._spread: list[np.ndarray] = []  # every `_step`-th frame's luma
        self._step = 1
        self._before: np.ndarray | None = None
        self._pairs: dict[int, tuple[float, float, float]] = {}
        self._differences: list[float] = []
        self._flow = flow_method()

    def add(self, planes: np.ndarray) -> None:
        """Takes the next frame: uint8 (3/2 H, W), the planes of 8-bit 4:2:0 with even sides, as PyAV lays them out."""
        width = planes.shape[1]
        height = planes.shape[0] * 2 // 3
        luma = _reduced(planes[:height], SIDE)
        chroma = planes[height:].reshape(2, height // 2, width // 2)
        thumb = _reduced(luma, THUMB)
        size = thumb.shape[1], thumb.shape[0]
        parts = (cv2.resize(_reduced(plane, THUMB), size, interpolation=cv2.INTER_LINEAR) for plane in chroma)
        number = len(self._thumbs)
        self._thumbs.append(np.dstack([thumb, *parts]))
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
        cuts = find_cuts(thumbs)
        scores = motion_scores(self._pairs, self._differences, fps)
        scores |= {"overlay": overlay_score(luma), "border": border_score(luma)}
        scores |= {"blank": blank_score(thumbs)}
        scores |= {"cut": max((cut.score for cut in cuts), default=0.0)}
        rounded: dict[str, Any] = {name: round(float(value), DIGITS) for name, value in scores.items()}
        half = (times[-1] + 1 / fps) / 2 if times else 0.0
        middle = int(np.searchsorted(times, half, "right")) - 1 if times else len(thumbs) // 2
        places = {"cut_frames": [cut.frame for cut in cuts], "hash": perceptual_hash(self._small[middle])}
        return rounded | places | {"cut_scores": [round(cut.score, DIGITS) for cut in cuts]}


def _reduced(plane: np.ndarray, side: int) -> np.ndarray:
    """Returns a plane reduced by a whole factor, with at least `side` pixels where it has them.

    A whole factor is several times as fast as another. The few rows and columns that do not fill one are left out.
    """
    factor = max(1, min(plane.shape) // side)
    height, width = (length // factor for length in plane.shape)
    top, left = ((length % factor) // 2 for length in plane.shape)
    part = plane[top : top + height * factor, left : left + width * factor]
    return part.copy() if factor == 1 else cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
