"""How a distance falls with the number of videos: at an eighth, a quarter, half and all of them.

A distance between sets is larger the fewer videos there are, even if nothing else changes, and to first order the
excess is proportional to 1 / n (Chong and Forsyth 2020). The videos are dealt at random into 16 groups, whose sums give
the distance of any groups together, so that a set of any size is read once and memory does not grow with it. For each
smaller number, groups are drawn several times; the interval is the range of 95 % of single measurements with that many
videos. It is widened by what drawing from a finite set narrows. The line through the four values in 1 / n, at 0, is the
distance of endlessly many videos; the bias from the number of real ones stays in it.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from mav.evaluation.intervals import NORMAL, FrechetBetween
from mav.evaluation.metrics import JEDI_SCALE, Moments
from mav.evaluation.protocols.titles import kind_of
from mav.evaluation.score import LONGEST, Scorer, by_clip, flat, spread

GROUPS = 16
SHARES = (2, 4, 8)  # groups that make an eighth, a quarter and half of the videos
DRAWS, FEW_DRAWS = 12, 4  # of groups, for each share; the fewer ones where a distance takes seconds
LEAST = 32  # videos, so that an eighth is a set
KINDS = ("fvd", "fid", "fd", "jedi")
Distance = Callable[[Sequence[int]], float]  # of some groups together


def convergence(scorer: Scorer, metric: str, found: dict[str, Any]) -> dict[str, Any] | None:
    """Returns `points` ({"n", "value", "low", "high"}, n rising) and `endless` of a metric that the scorer has `found`.

    None = the metric is no such distance, has no value, or there are fewer than 32 videos.
    """
    n = scorer.ours.readable
    if kind_of(metric) not in KINDS or found["value"] is None or n < LEAST:
        return None
    rng = np.random.default_rng([scorer.seed, n, 3])
    order = rng.permutation(n)
    group_of = np.empty(n, np.int64)
    group_of[order] = np.arange(n) % GROUPS
    sizes = np.bincount(group_of, minlength=GROUPS)
    distance, draws = (_kernel if kind_of(metric) == "jedi" else _frechet)(scorer, metric, group_of)
    points = []
    for share in SHARES:
        drawn = [rng.permutation(GROUPS)[:share].tolist() for _ in range(draws)]
        values = np.array([distance(groups) for groups in drawn])
        half = NORMAL * values.std(ddof=1) / np.sqrt(1 - share / GROUPS)
        mean = float(values.mean())
        count = float(np.mean([sizes[groups].sum() for groups in drawn]))
        points.append({"n": count, "value": mean, "low": max(mean - half, 0.0), "high": mean + half})
    ends = {end: found["value"] if found[end] is None else found[end] for end in ("low", "high")}
    points.append({"n": float(n), "value": found["value"], **ends})
    inverse, values = np.array([1 / point["n"] for point in points]), np.array([point["value"] for point in points])
    return {"points": points, "endless": float(np.polyfit(inverse, values, 1)[1])}


def _frechet(scorer: Scorer, metric: str, group_of: np.ndarray) -> tuple[Distance, int]:
    """Returns the distance of groups, from their moments, and how many draws it is quick enough for."""
    network, biased = scorer.protocol.features[metric], scorer.protocol.covariance_of(metric) == "biased"
    assert scorer.real is not None
    reference = reduce(Moments.merge, (Moments.of(flat(by_clip(a, metric))) for _, a in scorer.real.stream(network)))
    parts: list[Moments | None] = [None] * GROUPS
    seen = 0
    for _, array in scorer.ours.stream(network):
        rows, groups = by_clip(array, metric), group_of[seen : seen + len(array)]
        seen += len(array)
        for group in np.unique(groups):
            own = Moments.of(flat(rows[groups == group]))
            before = parts[group]
            parts[group] = own if before is None else before.merge(own)
    moments = [part for part in parts if part is not None]
    to_reference = FrechetBetween(reference, biased)
    draws = DRAWS if len(reference.mean) <= LONGEST else FEW_DRAWS
    return lambda groups: to_reference(reduce(Moments.merge, (moments[group] for group in groups))), draws


def _kernel(scorer: Scorer, metric: str, group_of: np.ndarray) -> tuple[Distance, int]:
    """Returns JEDi of groups, from the sums of the kernel between them."""
    network = scorer.protocol.features[metric]
    assert scorer.real is not None
    ours, real = (spread(side, network, metric).astype(np.float64) for side in (scorer.ours, scorer.real))
    step = -(-len(group_of) // len(ours))  # of many videos, an even part is taken
    groups_of = group_of[::step][: len(ours)]
    parts = [ours[groups_of == group] for group in range(GROUPS)]

    def sums(a: np.ndarray, b: np.ndarray) -> float:
        return float(sum(((a @ b[i : i + 2048].T / a.shape[1]) ** 2).sum() for i in range(0, len(b), 2048)))

    own = np.zeros((GROUPS, GROUPS))
    for one in range(GROUPS):
        for other in range(one + 1):
            own[one, other] = own[other, one] = sums(parts[one], parts[other])
    cross, counts = np.array([sums(part, real) for part in parts]), np.array([len(part) for part in parts])
    theirs = sum(sums(real[i : i + 2048], real) for i in range(0, len(real), 2048)) / len(real) ** 2

    def distance(groups: Sequence[int]) -> float:
        n = counts[groups].sum()
        between = cross[groups].sum() / (n * len(real))
        return float(JEDI_SCALE * (own[np.ix_(groups, groups)].sum() / n**2 + theirs - 2 * between))

    return distance, DRAWS
