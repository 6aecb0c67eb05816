"""The metrics in float64: Frechet and kernel distances, inception score, CLIPSIM, PSNR, SSIM, and the bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

JEDI_SCALE = 100.0  # the factor of MMD^2 in its authors' code
Statistic = Callable[[np.ndarray], float]  # a number from the rows (integers) of some videos


@dataclass
class Moments:
    """Count, mean and scatter of a set of features. Two of them merge exactly, so that workers can share the videos."""

    count: int
    mean: np.ndarray  # (d,)
    scatter: np.ndarray  # (d, d), the sum of outer products of deviations from the mean

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Computes the moments of features (n, d) of any float type. Raises ValueError on NaN or infinity."""
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or not np.isfinite(x).all():
            wrong = f"{x.shape} with {np.count_nonzero(~np.isfinite(x))} that are not finite"
            raise ValueError(f"features must be finite and (n, d), not {wrong}")
        mean = x.mean(axis=0) if len(x) else np.zeros(x.shape[1])
        deviations = x - mean
        return cls(len(x), mean, deviations.T @ deviations)

    def merge(self, other: Moments) -> Moments:
        """Returns the moments of both sets together (Chan's update)."""
        count = self.count + other.count
        if count == 0:
            return self
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, self.mean + gap * (other.count / count), scatter)

    def without(self, part: Moments) -> Moments:
        """Returns the moments of the rest of the set after the removal of a part that was merged in before."""
        count = self.count - part.count
        mean = (self.mean * self.count - part.mean * part.count) / max(count, 1)
        gap = part.mean - mean
        scatter = self.scatter - part.scatter - np.outer(gap, gap) * (count * part.count / max(self.count, 1))
        return Moments(count, mean, scatter)

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance. Raises ValueError when there are fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 videos, not {self.count}")
        return self.scatter / (self.count - 1)

    def covariance_by(self, biased: bool) -> np.ndarray:
        """Returns the covariance divided by n (biased, as in StyleGAN-V) or by n - 1."""
        return self.covariance * ((self.count - 1) / self.count if biased else 1.0)


def frechet(a: Moments, b: Moments, biased: bool = False) -> float:
    """Returns the Frechet distance of two Gaussians; tr (A B)^1/2 comes from the symmetric A^1/2 B A^1/2."""
    first, second = a.covariance_by(biased), b.covariance_by(biased)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = root_eigenvalues(root @ second @ root)
    return frechet_sum(a.mean - b.mean, np.trace(first), np.trace(second), cross)


def frechet_features(x: np.ndarray, y: np.ndarray, biased: bool = False) -> float:
    """Returns the Frechet distance between features (n, d) and (m, d), of covariances as `Moments.covariance_by`.

    With fewer videos than dimensions, the trace term is the nuclear norm of Xc Yc^T / sqrt((n - 1)(m - 1)), or of
    Xc Yc^T / sqrt(n m), an n by m matrix instead of a d by d one.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a Frechet distance needs at least 2 videos on each side, not {len(x)} and {len(y)}")
    if max(len(x), len(y)) >= x.shape[1]:
        return frechet(Moments.of(x), Moments.of(y), biased)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    xc = (x - x.mean(axis=0)) / np.sqrt(len(x) - (not biased))
    yc = (y - y.mean(axis=0)) / np.sqrt(len(y) - (not biased))
    cross = float(np.linalg.svd(xc @ yc.T, compute_uv=False).sum())
    return frechet_sum(x.mean(axis=0) - y.mean(axis=0), float((xc**2).sum()), float((yc**2).sum()), cross)


def root_eigenvalues(matrix: np.ndarray) -> float:
    """Returns the sum of the roots of a symmetric matrix's eigenvalues; negative ones are rounding and count as 0."""
    return float(np.sqrt(np.clip(np.linalg.eigvalsh(matrix), 0, None)).sum())


def frechet_sum(gap: np.ndarray, first: float, second: float, cross: float) -> float:
    """Returns the distance from the gap of the means (d,), the traces of both covariances and the cross term."""
    return max(float(gap @ gap + first + second - 2 * cross), 0.0)


def inception_score(probabilities: np.ndarray, splits: int = 1) -> float:
    """Returns exp of the mean KL divergence from class probabilities (n, k) to their mean, averaged over splits."""
    p = np.asarray(probabilities, np.float64)
    scores = []
    for part in np.array_split(p, min(splits, len(p))):
        mean = part.mean(axis=0)  # it is zero for a class that no video of the split shows, which adds nothing
        ratio = np.divide(part, mean, out=np.ones_like(part), where=(part > 0) & (mean > 0))
        scores.append(np.exp((part * np.log(ratio)).sum(axis=1).mean()))
    return float(np.mean(scores))


def clipsim(frames: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Returns the mean cosine (n,) of the frames of each video (n, f, d) with its text (n, d), all of unit norm."""
    cosines = np.einsum("nfd,nd->nf", np.asarray(frames, np.float64), np.asarray(text, np.float64))
    return np.asarray(cosines.mean(axis=1))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio of two uint8 arrays in dB; equal arrays give 99."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 99.0 if error == 0 else min(99.0, 10 * np.log10(255.0**2 / error))


def kernel_distance(
    x: np.ndarray, y: np.ndarray, block: int = 2048, degree: int = 3, offset: float = 1.0, biased: bool = False
) -> tuple[float, float]:
    """Returns (MMD^2, its standard error) under the kernel (x . y / d + offset)^degree.

    With the defaults it is the kernel inception or video distance of features (n, d) and (m, d), with at least two rows
    each (Binkowski et al. 2018); with degree 2, offset 0 and `biased` that of JEDi, before its factor of 100, in which
    each row is also paired with itself. All pairs are used, one block of rows at a time. The error is that of a
    U-statistic to first order in the rows of x, which are the generated ones; the protocol fixes those of y.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"a kernel distance needs at least 2 videos on each side, not {n} and {m}")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)

    def means(a: np.ndarray, b: np.ndarray, without_itself: bool) -> np.ndarray:
        """Returns the mean kernel of each row of a with the rows of b."""
        sums = np.zeros(len(a))
        for start in range(0, len(a), block):
            part = a[start : start + block]
            for other in range(0, len(b), block):
                products = part @ b[other : other + block].T / a.shape[1]
                sums[start : start + block] += ((products + offset) ** degree).sum(axis=1)
        if without_itself:
            sums -= ((a**2).sum(axis=1) / a.shape[1] + offset) ** degree
        return sums / (len(b) - without_itself)

    own, cross = means(x, x, not biased), means(x, y, False)
    value = float(own.mean() + means(y, y, not biased).mean() - 2 * cross.mean())
    return value, float(2 * (own - cross).std(ddof=1) / np.sqrt(n))


def jedi(x: np.ndarray, y: np.ndarray, biased: bool = True) -> tuple[float, float]:
    """Returns (JEDi, its standard error) of V-JEPA features (n, d) and (m, d) (Luo et al. 2025).

    It is JEDI_SCALE times MMD^2, biased as in its authors' code.
    """
    value, error = kernel_distance(x, y, degree=2, offset=0.0, biased=biased)
    return JEDI_SCALE * value, JEDI_SCALE * error


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the mean SSIM of uint8 frames (F, H, W, 3) with a Gaussian window of sigma 1.5 (Wang et al. 2004)."""
    radius, c1, c2 = 5, (0.01 * 255) ** 2, (0.03 * 255) ** 2  # the window has 11 pixels; the border is left out
    if min(a.shape[1:3]) <= 2 * radius:
        raise ValueError(f"SSIM needs frames of more than {2 * radius} pixels a side, not {a.shape[1:3]}")

    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (11, 11), 1.5)[radius:-radius, radius:-radius]

    values = []
    for x, y in zip(a.astype(np.float64), b.astype(np.float64), strict=True):
        mean_x, mean_y = blur(x), blur(y)
        variances = (blur(x**2) - mean_x**2) + (blur(y**2) - mean_y**2)
        covariance = blur(x * y) - mean_x * mean_y
        top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        values.append((top / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))).mean())
    return float(np.mean(values))


def bootstrap(statistic: Statistic, count: int, draws: int = 200, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of `statistic(rows)` when `count` videos are resampled with replacement.

    Resampling repeats videos, which biases a Frechet distance upwards and would move plain percentiles away from the
    estimate. The spread of the draws around their own median is therefore laid around the estimate on all videos. Draws
    that are not finite are left out.
    """
    rng = np.random.default_rng([seed, count])
    values = [statistic(rng.integers(0, count, count)) for _ in range(draws)]
    return around(statistic(np.arange(count)), values)


def around(estimate: float, draws: Sequence[float]) -> tuple[float, float]:
    """Returns the spread of the draws around their median, laid around the estimate."""
    values = np.asarray(draws, np.float64)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return estimate, estimate
    low, middle, high = np.percentile(values, [2.5, 50, 97.5])
    return float(min(estimate + low - middle, estimate)), float(max(estimate + high - middle, estimate))
