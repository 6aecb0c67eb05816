"""Cuts and gradual changes of the shot, from small pictures of all frames of a clip.

A cut is a change that is large beside those around it (as in PySceneDetect's AdaptiveDetector) and that stays: after a
flash the picture is as it was before. A fade or a dissolve is found by what defines it: the frame in the middle is the
mean of the two ends, and the ends show different things. Moving objects and cameras make no such mean; where objects
move through a dissolve, the rest of the picture does.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

AROUND = 4  # frames on each side whose changes a cut must exceed
LEVELS = 4.0  # of a change, that are nothing beside a cut: noise and compression
FLASH = 6  # frames; a shorter interruption is none
LEAST = 1.0  # score below which a place is not kept
SPANS = (4, 8, 16, 32, 64)  # frames of a gradual change
MERGED = 8  # frames between two gradual changes that are one, such as out of black after into black
LINEAR = 0.3  # agreement of the middle with the mean of the ends that chance may bring
MOVING, STRAIGHT = 0.3, 0.4  # share of the picture that may move all the while, and what chance may bring in the rest
LONG = 8  # frames of a span from which on motion is not nearly linear
ALIKE = 0.65  # contrast that the ends have in common, above which they show the same thing
BLACK = 30  # luma up to which all of a frame is black
FAR = 1.7  # levels by which the ends differ, times the agreement above chance, for each unit of the score
JUMP = 0.5  # share of the difference over a gradual change that from one frame to the next is a cut
LASTS = 0.6  # share of a span's score that another over the same frames must have, to count for where a change ends


@dataclass(frozen=True)
class Cut:
    """A change of the shot, and its score.

    before: the last frame of the shot before it; after: the first frame of the shot after it. Frames between them are
    of a gradual change.
    """

    before: int
    after: int
    score: float

    @property
    def frame(self) -> int:
        """The first new frame, or the middle of a gradual change."""
        return (self.before + self.after + 1) // 2


def find_cuts(frames: np.ndarray) -> list[Cut]:
    """Returns the changes of the shot with a score of `LEAST` or more, in order.

    frames: uint8 (F, h, w, 3), Y, U and V of every frame at some 16 pixels. From a score of 3 on a change is meant.
    """
    if len(frames) < 2:
        return []
    levels = frames.astype(np.int16)
    sharp, gradual = _sharp(levels), list[Cut]()
    for change in _gradual(frames):
        # A jump that makes half of the difference is the cut itself; a lesser one is a flicker of the gradual change.
        ends = levels[[change.before, change.frame, change.after]]
        most = max(_difference(ends, np.roll(ends, 1, axis=0)))
        within = [cut for cut in sharp if change.before <= cut.before and cut.after <= change.after]
        if any(_difference(levels[cut.before], levels[cut.after]) >= JUMP * most for cut in within):
            continue
        sharp = [cut for cut in sharp if cut not in within]
        gradual.append(change)
    return sorted([*sharp, *gradual], key=lambda cut: cut.frame)


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the mean absolute difference of frames, summed over Y, U and V, in levels."""
    apart = np.abs(a - b)
    return np.asarray(apart.mean(axis=(-3, -2, -1)) * apart.shape[-1], np.float64)


def _sharp(frames: np.ndarray) -> list[Cut]:
    changes = np.concatenate([[0.0], _difference(frames[1:], frames[:-1])])  # of each frame from the one before
    found: list[Cut] = []
    for at in np.flatnonzero(changes >= LEAST * LEVELS).tolist():
        sides = changes[max(at - AROUND, 1) : at], changes[at + 1 : at + 1 + AROUND]
        usual = max((float(np.sort(side)[-2:][0]) for side in sides if len(side)), default=0.0)
        if changes[at] < LEAST * (usual + LEVELS):
            continue
        after, before = frames[at + 1 : at + 1 + FLASH], frames[max(at - 1 - FLASH, 0) : at - 1]
        stays = np.concatenate([_difference(after, frames[at - 1]), _difference(before, frames[at])])
        score = min(changes[at], stays.min(initial=np.inf)) / (usual + LEVELS)
        if score < LEAST:
            continue
        if found and at - found[-1].after <= 2:  # a cut over a blended frame is one
            found[-1] = Cut(found[-1].before, at, max(found[-1].score, float(score)))
            continue
        found.append(Cut(at - 1, at, float(score)))
    return found


def _gradual(frames: np.ndarray) -> list[Cut]:
    """Fades and dissolves: linear over one of the `SPANS`, between ends that have little in common."""
    pictures = frames.astype(np.float32)
    luma = pictures[..., 0].reshape(len(frames), -1)
    luma = luma - luma.mean(axis=1, keepdims=True)
    power = np.maximum((luma**2).mean(axis=1), 1.0)
    spans: list[tuple[int, int, float]] = []
    for span in SPANS:
        starts = np.arange(0, len(frames) - span, max(span // 8, 1))
        apart = _difference(pictures[starts], pictures[starts + span])
        starts = starts[apart * (1 - LINEAR) >= LEAST * FAR]
        common = (luma[starts] * luma[starts + span]).mean(axis=1) / np.maximum(power[starts], power[starts + span])
        starts = starts[common <= ALIKE]
        if len(starts):
            first, last = pictures[starts], pictures[starts + span]
            between, bent = _apart(first, last), np.zeros((len(starts), luma.shape[1]), np.float32)
            for part in (1, 2, 3):
                bent += _apart(pictures[starts + span * part // 4], first + (last - first) * np.float32(part / 4))
            # What moves through the change is off the line; the rest of the picture must then keep closer to it.
            rest = int(bent.shape[1] * (1 - MOVING))
            still = bent <= np.partition(bent, rest, axis=1)[:, rest : rest + 1]
            behind = _linear(bent * still, between * still, STRAIGHT) / still.mean(axis=1)
            score = np.maximum(_linear(bent, between, LINEAR), behind) / FAR * min(span / LONG, 1.0)
            strong = score >= LEAST
            spans += zip(starts[strong].tolist(), (starts[strong] + span).tolist(), score[strong].tolist(), strict=True)
    black = (pictures[..., 0].max(axis=(1, 2)) <= BLACK).tolist()
    found: list[Cut] = []
    for start, end, strength in _joined(spans):
        found += [Cut(before, after, strength) for before, after in itertools.pairwise(_edges(black, start, end))]
    return found


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the difference of frames at each place of the picture, summed over Y, U and V: (N, places)."""
    apart = np.abs(a - b)
    return np.asarray((apart[..., 0] + apart[..., 1] + apart[..., 2]).reshape(len(a), -1))


def _linear(bent: np.ndarray, apart: np.ndarray, chance: float) -> np.ndarray:
    """Returns by how many levels the ends differ, times the agreement of what is between them with a straight line.

    bent, apart: (N, places) of three frames in between, and of the ends.
    """
    return np.asarray(apart.mean(axis=1, dtype=np.float64) * (1 - chance) - bent.mean(axis=1, dtype=np.float64) / 1.25)


def _joined(spans: list[tuple[int, int, float]]) -> Iterator[tuple[int, int, float]]:
    """Yields first frame, last frame and score of each group of spans that overlap or nearly do.

    A long span is also a little like a short change in its middle, and says nothing about where that begins and ends.
    """
    for group in _groups(spans):
        start, end, score = np.array(group).T
        shared = np.minimum(end[:, None], end) - np.maximum(start[:, None], start)
        same = shared >= np.minimum((end - start)[:, None], end - start) / 2
        tells = score >= LASTS * np.where(same, score, 0).max(axis=1)
        for part in _groups([span for span, kept in zip(group, tells, strict=True) if kept]):
            starts, ends, scores = zip(*part, strict=True)
            yield min(starts), max(ends), max(scores)


def _groups(spans: list[tuple[int, int, float]]) -> list[list[tuple[int, int, float]]]:
    reach = -np.inf
    groups: list[list[tuple[int, int, float]]] = []
    for span in sorted(spans):
        if span[0] > reach + MERGED:
            groups.append([])
        groups[-1].append(span)
        reach = max(reach, span[1])
    return groups


def _edges(black: list[bool], start: int, end: int) -> list[int]:
    """Returns where the changes between these frames begin and end: one, or one for each run of black frames."""
    runs = [list(run) for dark, run in itertools.groupby(range(start, end + 1), lambda frame: black[frame]) if dark]
    between = [(before[-1] + after[0]) // 2 for before, after in itertools.pairwise(runs)]
    return [start, *between, end]
