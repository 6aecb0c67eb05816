"""Changes of the shot by TransNetV2 (`mav.models.shots`), from the frames that are being encoded."""

import cv2
import numpy as np
import torch

from mav.data.videos.scores.cuts import Cut
from mav.models.shots import HEIGHT, WIDTH, read_shot_network

PUBLISHED, LEAST = 0.5, 0.1  # probability of a change as published; below which a frame is of none
# RGB from the Y, U and V of ITU-R BT.601 with limited range, over what they are of black.
TO_RGB = np.array([[1.164, 0.0, 1.596], [1.164, -0.392, -0.813], [1.164, 2.017, 0.0]], np.float32)


def small_colours(planes: np.ndarray) -> np.ndarray:
    """Returns a frame as the network reads it, uint8 (27, 48, 3), RGB. planes: as `ClipScorer.add` takes them."""
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    parts = [planes[:height], *planes[height:].reshape(2, height // 2, width // 2)]
    small = [cv2.resize(part, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for part in parts]
    levels = np.dstack(small).astype(np.float32) - np.array([16, 128, 128], np.float32)
    return np.asarray((levels @ TO_RGB.T + 0.5).clip(0, 255).astype(np.uint8))


class LearnedCuts:
    """Collects a clip's frames as the network reads them, 4 kB each. Raises UserError for a file of something else."""

    def __init__(self, weights: str) -> None:
        self._network = read_shot_network(weights)
        self._frames: list[np.ndarray] = []

    def add(self, planes: np.ndarray) -> None:
        """Takes the next frame, as `ClipScorer.add` does."""
        self._frames.append(small_colours(planes))

    def cuts(self) -> list[Cut]:
        """Returns the changes of the shot, in order; their scores are probabilities."""
        return changes_of(self._network.probabilities(torch.from_numpy(np.stack(self._frames))).numpy())


def changes_of(probabilities: np.ndarray) -> list[Cut]:
    """Returns the runs of frames above the published threshold, and of weaker ones where there is none of these.

    probabilities: (F,), that a shot ends with a frame. A score is the greatest of its run.
    """
    strong = _runs(probabilities > PUBLISHED)
    weak = [run for run in _runs(probabilities > LEAST) if not (probabilities[slice(*run)] > PUBLISHED).any()]
    last = len(probabilities) - 1
    return [Cut(a, min(b, last), float(probabilities[a:b].max())) for a, b in sorted(strong + weak) if a < last]


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Returns the first place of each run, and the one after its last."""
    ends = np.flatnonzero(np.diff(np.pad(mask.astype(np.int8), 1)))
    return [(int(a), int(b)) for a, b in ends.reshape(-1, 2)]
