"""Statistics of ratings: agreement of raters, intervals and tests of a preference, strengths of several systems."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

ROUNDS = 100  # of Newton's method, at most; a handful is enough
Units = Sequence[Sequence[float]]  # the ratings of each item, from all raters that gave one


def fleiss_kappa(units: Units) -> float:
    """Returns the agreement beyond chance on unordered categories; 1 = perfect, 0 = chance.

    It is Fleiss's kappa (1971) for any number of raters, averaged over the items with two or more ratings. It is nan
    when all ratings are of one category.
    """
    rated = [list(unit) for unit in units if len(unit) > 1]
    categories = sorted({value for unit in rated for value in unit})
    if len(categories) < 2:
        return math.nan
    counts = np.array([[unit.count(c) for c in categories] for unit in rated], np.float64)
    each = counts.sum(axis=1)
    observed = ((counts**2).sum(axis=1) - each) / (each * (each - 1))
    chance = ((counts.sum(axis=0) / counts.sum()) ** 2).sum()
    return float((observed.mean() - chance) / (1 - chance))


def krippendorff_alpha(units: Units) -> float:
    """Returns 1 - observed over expected disagreement on unordered categories (Krippendorff 2011).

    Items with one rating do not count. It is nan when all ratings are of one category.
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
    difference = 1.0 - np.eye(len(values))
    expected = (np.outer(totals, totals) - np.diag(totals)) / (totals.sum() - 1)
    return float(1 - (coincidences * difference).sum() / (expected * difference).sum())


def sign_test(wins: int, losses: int) -> float:
    """Returns the exact two-sided probability of a split at least this uneven when both sides are equally likely."""
    count, rarer = wins + losses, min(wins, losses)
    tail = sum(math.comb(count, k) for k in range(rarer + 1))
    return min(1.0, 2 * tail / 2**count)


def connected(wins: Mapping[tuple[str, str], float]) -> bool:
    """Says whether every system has won, directly or through others, against every other; else no strengths fit."""
    systems = sorted({name for pair in wins for name in pair})
    beats = np.array([[a == b or wins.get((a, b), 0) > 0 for b in systems] for a in systems], np.float64)
    return bool(systems) and bool(np.linalg.matrix_power(beats, len(systems)).all())


def bradley_terry(wins: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Returns log strengths of maximum likelihood with mean 0, where P(a beats b) = 1 / (1 + exp(b - a)).

    `wins` maps (winner, loser) to how often. The method is Newton's. Raises ValueError when the comparisons do not
    connect the systems.
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

    for _ in range(ROUNDS):
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
