"""Precision, recall, density and coverage: which rows of one set lie among the nearest neighbours of the other's.

Around each row of a set is a ball that reaches its k-th nearest neighbour in the same set, itself not counted.

| metric | what it is | k | source |
|---|---|---|---|
| precision | share of generated rows in the ball of any real one | 3 | Kynkaanniemi et al. 2019, section 2 |
| recall | share of real rows in the ball of any generated one | 3 | the same |
| density | mean number of real balls around a generated row, over k | 5 | Naeem et al. 2020, section 3 |
| coverage | share of real balls that hold a generated row | 5 | the same |

Precision and recall count the edge of a ball as inside, density and coverage do not, as their authors' code has it.
The features are those that the protocol names, with one row a video; the sources took VGG-16's features of pictures,
so that values compare only within a protocol. Distances are Euclidean, in float64, and in memory one block of pairs at
a time.
"""

from collections.abc import Iterator

import numpy as np

MANIFOLD_K, DENSITY_K = 3, 5
BLOCK = 1024  # rows of each side whose distances are held at once
ROUNDING = 1e-13  # of the sum of both squared lengths: a smaller squared distance is that of equal rows


def precision(real: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Returns for each generated row (m, d) whether it lies in the ball of a real one (n, d), as 0.0 or 1.0 (m,).

    Its mean is the precision. With the sides exchanged it is the recall, for each real row. Raises ValueError when the
    set with the balls has at most k rows or the other one fewer than two, or when a feature is not finite.
    """
    return (_inside(real, generated, MANIFOLD_K, edge=True)[0] > 0).astype(np.float64)


def density(real: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Returns for each generated row how many real balls it lies in, over k (m,). Its mean is the density.

    Raises ValueError as `precision` does.
    """
    return _inside(real, generated, DENSITY_K, edge=False)[0] / DENSITY_K


def coverage(real: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Returns for each real row whether its ball holds a generated one, as 0.0 or 1.0 (n,). Its mean is the coverage.

    Raises ValueError as `precision` does.
    """
    return (_inside(real, generated, DENSITY_K, edge=False)[1] > 0).astype(np.float64)


def _inside(centres: np.ndarray, rows: np.ndarray, k: int, edge: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns in how many balls each row lies, and how many rows lie in the ball of each centre."""
    if len(centres) <= k or len(rows) < 2:
        needed = f"{k} neighbours need at least {k + 1} videos on their side and 2 on the other"
        raise ValueError(f"{needed}, not {len(centres)} and {len(rows)}")
    x, y = np.asarray(centres, np.float64), np.asarray(rows, np.float64)
    wrong = np.count_nonzero(~np.isfinite(x)) + np.count_nonzero(~np.isfinite(y))
    if wrong:
        raise ValueError(f"{wrong} features are not finite")
    middle = x.mean(axis=0)  # distances from it lose no digits to an offset that all rows share
    x, y = x - middle, y - middle
    reach = _reach(x, k)
    of_rows, of_centres = np.zeros(len(y), np.int64), np.zeros(len(x), np.int64)
    for first in range(0, len(x), BLOCK):
        radii = reach[first : first + BLOCK, None]
        for other, distances in _blocks(x[first : first + BLOCK], y):
            held = distances <= radii if edge else distances < radii
            of_rows[other : other + BLOCK] += held.sum(axis=0)
            of_centres[first : first + BLOCK] += held.sum(axis=1)
    return of_rows, of_centres


def _reach(x: np.ndarray, k: int) -> np.ndarray:
    """Returns the squared distance of each row (n, d) to its k-th nearest other row."""
    found = []
    for first in range(0, len(x), BLOCK):
        part = x[first : first + BLOCK]
        nearest = np.zeros((len(part), 0))
        for other, distances in _blocks(part, x):
            if other == first:
                np.fill_diagonal(distances, np.inf)
            both = np.concatenate([nearest, distances], axis=1)
            nearest = np.partition(both, k - 1, axis=1)[:, :k] if both.shape[1] > k else both
        found.append(nearest.max(axis=1))
    return np.concatenate(found)


def _blocks(part: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, squared distances from every row of `part` to a block of `rows`)."""
    lengths = (part**2).sum(axis=1)[:, None]
    for first in range(0, len(rows), BLOCK):
        block = rows[first : first + BLOCK]
        sums = lengths + (block**2).sum(axis=1)
        distances = sums - 2 * (part @ block.T)
        yield first, np.where(distances > ROUNDING * sums, distances, 0.0)
