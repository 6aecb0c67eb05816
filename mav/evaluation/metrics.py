"""The numbers: Frechet and kernel distances, inception score, CLIPSIM, PSNR, SSIM. and the bootstrap. All in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass
class Moments:
    """Count, mean and scatter of features seen so far; two of them merge exactly, so workers can split the videos."""

    count: int
    mean: np.ndarray  # (d,)
    scatter: np.ndarray  # (d, d): sum of outer products of deviations from the mean

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """(n, d) features, any float type. Raises ValueError on NaN or infinity."""
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or not np.isfinite(x).all():
            raise ValueError(
                f"features must be finite and (n, d), not {x.shape} with {np.count_nonzero(~np.isfinite(x))} that are not finite"
            )
        mean = x.mean(axis=0) if len(x) else np.zeros(x.shape[1])
        deviations = x - mean
        return cls(len(x), mean, deviations.T @ deviations)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan's update)."""
        count = self.count + other.count
        if count == 0:
            return self
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, self.mean + gap * (other.count / count), scatter)

    def without(self, part: Moments) -> Moments:
        """Moments of what is left when a part that was merged in is taken out again."""
        count = self.count - part.count
        mean = (self.mean * self.count - part.mean * part.count) / max(count, 1)
        gap = part.mean - mean
        scatter = self.scatter - part.scatter - np.outer(gap, gap) * (count * part.count / max(self.count, 1))
        return Moments(count, mean, scatter)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased; needs at least two."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 videos, not {self.count}")
        return self.scatter / (self.count - 1)


def frechet(a: Moments, b: Moments, biased: bool = False) -> float:
    """Frechet distance between two Gaussians. tr (A B)^1/2 is the sum of root eigenvalues of A^1/2 B A^1/2, which is symmetric.

    biased: covariances divided by n instead of n - 1, as StyleGAN-V's.
    """
    share = [(m.count - 1) / m.count if biased else 1.0 for m in (a, b)]
    first, second = a.covariance * share[0], b.covariance * share[1]
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second @ root), 0, None)).sum()
    return _distance(a.mean - b.mean, np.trace(first), np.trace(second), float(cross))


def frechet_features(x: np.ndarray, y: np.ndarray) -> float:
    """The same from features (n, d) and (m, d). With fewer videos than dimensions the trace term is the nuclear norm of
    Xc Yc^T / sqrt((n - 1)(m - 1)), an n by m matrix instead of a d by d one."""
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a Frechet distance needs at least 2 videos on each side, not {len(x)} and {len(y)}")
    if max(len(x), len(y)) >= x.shape[1]:
        return frechet(Moments.of(x), Moments.of(y))
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    xc = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    yc = (y - y.mean(axis=0)) / np.sqrt(len(y) - 1)
    cross = float(np.linalg.svd(xc @ yc.T, compute_uv=False).sum())
    return _distance(x.mean(axis=0) - y.mean(axis=0), float((xc**2).sum()), float((yc**2).sum()), cross)


def _distance(gap: np.ndarray, first: float, second: float, cross: float) -> float:
    return max(float(gap @ gap + first + second - 2 * cross), 0.0)


def inception_score(probabilities: np.ndarray, splits: int = 1) -> float:
    """exp of the mean KL from each video's class probabilities (n, k) to their mean; the mean over contiguous splits.

    A class that no video of a split shows has zero mean probability and adds nothing.
    """
    p = np.asarray(probabilities, np.float64)
    scores = []
    for part in np.array_split(p, min(splits, len(p))):
        mean = part.mean(axis=0)
        ratio = np.divide(part, mean, out=np.ones_like(part), where=(part > 0) & (mean > 0))
        scores.append(np.exp((part * np.log(ratio)).sum(axis=1).mean()))
    return float(np.mean(scores))


def clipsim(frames: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Mean cosine of each video's frames with its text: (n, f, d) and (n, d), both of unit norm, to (n,)."""
    return np.asarray(
        np.einsum("nfd,nd->nf", np.asarray(frames, np.float64), np.asarray(text, np.float64)).mean(axis=1)
    )


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 arrays in dB; equal arrays give 99."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 99.0 if error == 0 else min(99.0, 10 * np.log10(255.0**2 / error))


def kernel_distance(x: np.ndarray, y: np.ndarray, block: int = 2048) -> tuple[float, float]:
    """(unbiased MMD^2, its standard error) under KID's kernel (x . y / d + 1)^3: the kernel inception or video distance.

    x, y: features (n, d) and (m, d), at least two each. All pairs are used, a block of rows at a time. The error is that of a
    U-statistic to first order in the rows of x, the generated ones; those of y are what the protocol fixes.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"a kernel distance needs at least 2 videos on each side, not {n} and {m}")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)

    def means(a: np.ndarray, b: np.ndarray, same: bool) -> np.ndarray:
        """Mean kernel of each row of a with the rows of b, itself left out when they are the same set."""
        sums = np.zeros(len(a))
        for start in range(0, len(a), block):
            part = a[start : start + block]
            for other in range(0, len(b), block):
                sums[start : start + block] += ((part @ b[other : other + block].T / a.shape[1] + 1) ** 3).sum(axis=1)
        if same:
            sums -= ((a**2).sum(axis=1) / a.shape[1] + 1) ** 3
        return sums / (len(b) - same)

    own, cross = means(x, x, True), means(x, y, False)
    value = float(own.mean() + means(y, y, True).mean() - 2 * cross.mean())
    return value, float(2 * (own - cross).std(ddof=1) / np.sqrt(n))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity (Wang et al. 2004: Gaussian window of 11, sigma 1.5) of uint8 frames (F, H, W, 3), away from borders."""
    radius, constants = 5, ((0.01 * 255) ** 2, (0.03 * 255) ** 2)
    if min(a.shape[1:3]) <= 2 * radius:
        raise ValueError(f"SSIM needs frames of more than {2 * radius} pixels a side, not {a.shape[1:3]}")

    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (11, 11), 1.5)[radius:-radius, radius:-radius]

    values = []
    for one, other in zip(a.astype(np.float64), b.astype(np.float64), strict=True):
        mean, mean_b = blur(one), blur(other)
        variance, variance_b, covariance = (
            blur(one**2) - mean**2,
            blur(other**2) - mean_b**2,
            blur(one * other) - mean * mean_b,
        )
        top = (2 * mean * mean_b + constants[0]) * (2 * covariance + constants[1])
        values.append((top / ((mean**2 + mean_b**2 + constants[0]) * (variance + variance_b + constants[1]))).mean())
    return float(np.mean(values))


def bootstrap(
    statistic: Callable[[np.ndarray], float], count: int, draws: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of `statistic(rows)` under resampling `count` videos with replacement; rows is an int array.

    Resampling repeats videos, which biases a Frechet distance upwards and would push plain percentiles off the estimate. So the
    spread of the draws around their own median is laid around the estimate on all videos. Draws that are not finite are left out.
    """
    rng = np.random.default_rng([seed, count])
    values = [statistic(rng.integers(0, count, count)) for _ in range(draws)]
    return around(statistic(np.arange(count)), values)


def around(estimate: float, draws: Sequence[float]) -> tuple[float, float]:
    """The spread of the draws around their median, laid around the estimate."""
    values = np.asarray(draws, np.float64)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return estimate, estimate
    low, middle, high = np.percentile(values, [2.5, 50, 97.5])
    return float(min(estimate + low - middle, estimate)), float(max(estimate + high - middle, estimate))
