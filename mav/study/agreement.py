"""Statistics of ratings: agreement of raters, intervals and tests of a preference, strengths of several systems."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mav.evaluation.intervals import NORMAL

Units = Sequence[Sequence[float]]  # the ratings of each item, by whoever gave one


def fleiss_kappa(units: Units) -> float:
    """Agreement beyond chance on unordered categories, for any number of raters an item (Fleiss 1971, averaged over items with two or
    more ratings); 1 = perfect, 0 = chance, nan when all ratings are of one category.
    """
    rated = [unit for unit in units if len(unit) > 1]
    categories = sorted({value for unit in rated for value in unit})
    if len(categories) < 2:
        return math.nan
    counts = np.array([[unit.count(c) for c in categories] for unit in map(list, rated)], np.float64)
    each = counts.sum(axis=1)
    observed = ((counts**2).sum(axis=1) - each) / (each * (each - 1))
    chance = ((counts.sum(axis=0) / counts.sum()) ** 2).sum()
    return float((observed.mean() - chance) / (1 - chance))


def krippendorff_alpha(units: Units, level: str = "nominal") -> float:
    """1 - observed over expected disagreement (Krippendorff 2011), nominal or ordinal; items with one rating say nothing.

    nan when all ratings are of one category.
    """
    rated = [list(unit) for unit in units if len(unit) > 1]
    values = sorted({value for unit in rated for value in unit})
    if len(values) < 2:
        return math.nan
    place = {value: i for i, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for unit in rated:
        counts = np.bincount([place[value] for value in unit], minlength=len(values)).astype(np.float64)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(axis=0)
    if level == "ordinal":
        # The squared number of ratings between two categories, half of each end's.
        below = np.cumsum(totals) - totals / 2
        difference = (below[:, None] - below[None]) ** 2
    else:
        difference = 1.0 - np.eye(len(values))
    expected = (np.outer(totals, totals) - np.diag(totals)) / (totals.sum() - 1)
    return float(1 - (coincidences * difference).sum() / (expected * difference).sum())


def wilson(wins: float, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) of nothing."""
    if count == 0:
        return 0.0, 1.0
    share, z = wins / count, NORMAL**2 / count
    middle, half = (
        (share + z / 2) / (1 + z),
        NORMAL * math.sqrt(share * (1 - share) / count + z / (4 * count)) / (1 + z),
    )
    return max(middle - half, 0.0), min(middle + half, 1.0)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact probability of a split at least so uneven when both sides are as likely."""
    count, rarer = wins + losses, min(wins, losses)
    tail = sum(math.comb(count, k) for k in range(rarer + 1))
    return min(1.0, 2 * tail / 2**count)


def cluster_bootstrap(clusters: Sequence[tuple[float, float]], draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of sum(wins) / sum(count) over clusters (wins, count) resampled whole: ratings of one item are not independent."""
    table = np.asarray(clusters, np.float64).reshape(-1, 2)
    if len(table) == 0:
        return 0.0, 1.0
    rows = np.random.default_rng([seed, len(table)]).integers(0, len(table), (draws, len(table)))
    sums = table[rows].sum(axis=1)
    low, high = np.percentile(sums[:, 0] / np.maximum(sums[:, 1], 1), [2.5, 97.5])
    return float(low), float(high)


def connected(wins: Mapping[tuple[str, str], float]) -> bool:
    """Whether every system has won, directly or through others, against every other: else no finite strengths fit."""
    systems = sorted({name for pair in wins for name in pair})
    beats = {name: {other for (one, other), count in wins.items() if one == name and count > 0} for name in systems}

    def reached(start: str, edges: Mapping[str, set[str]]) -> set[str]:
        seen, queue = {start}, [start]
        while queue:
            for other in edges[queue.pop()] - seen:
                seen.add(other)
                queue.append(other)
        return seen

    if not systems:
        return False
    loses = {name: {other for other in systems if name in beats[other]} for name in systems}
    return len(reached(systems[0], beats)) == len(reached(systems[0], loses)) == len(systems)


def bradley_terry(wins: Mapping[tuple[str, str], float], rounds: int = 100) -> dict[str, float]:
    """Log strengths of maximum likelihood, their mean 0: P(a beats b) = 1 / (1 + exp(b - a)). wins: (winner, loser) -> how often.

    By Newton's method. Raises ValueError when the comparisons do not connect the systems.
    """
    if not connected(wins):
        raise ValueError(
            "the comparisons do not connect all systems by wins and losses, so their strengths have no finite values"
        )
    systems = sorted({name for pair in wins for name in pair})
    table = np.array([[wins.get((a, b), 0.0) for b in systems] for a in systems])
    played, strength = table + table.T, np.zeros(len(systems))

    def likelihood(s: np.ndarray) -> float:
        return float(-(table * np.logaddexp(0, s[None] - s[:, None])).sum())

    for _ in range(rounds):
        chance = 1 / (1 + np.exp(strength[None] - strength[:, None]))
        gradient = (table - played * chance).sum(axis=1)
        weight = played * chance * (1 - chance)
        hessian = np.diag(weight.sum(axis=1)) - weight + 1 / len(systems)  # the last term fixes the mean at 0
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while likelihood(strength + size * step) < likelihood(strength) - 1e-12 and size > 1e-6:
            size /= 2
        strength = strength + size * step
        strength -= strength.mean()
        if np.abs(size * step).max() < 1e-12:
            break
    return dict(zip(systems, strength.tolist(), strict=True))
