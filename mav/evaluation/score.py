"""Computes the metrics of a protocol from features, each with its interval, counts and network.

Videos that are missing or cannot be read stay in the denominator. A mean over videos (CLIPSIM) counts them as 0 and
gives the mean over the readable ones as well. A distance between distributions can only use the readable ones, and so
can precision, recall, density and coverage (`neighbours`). VBench's dimensions and strobing are means over the readable
ones too.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mav.evaluation import neighbours
from mav.evaluation.feature_store import Features
from mav.evaluation.features import WHOLE, Networks, describe_clips, zero_shot
from mav.evaluation.intervals import (
    GROUPS,
    NORMAL,
    FrechetTo,
    bootstrapped,
    estimate,
    grouped,
    jackknife,
    mean_of,
    share_of,
)
from mav.evaluation.metrics import Moments, clipsim, frechet_features, inception_score, jedi, kernel_distance
from mav.evaluation.networks import pixels
from mav.evaluation.protocols import Protocol
from mav.evaluation.protocols.titles import kind_of
from mav.evaluation.sets import BenchmarkSet

IN_MEMORY = 1 << 26  # most numbers of one feature array that are held at once
LONGEST = 1024  # dimensions, or rows if there are fewer, up to which hundreds of Frechet distances are affordable
KERNEL_ROWS = 20_000  # most rows that a kernel distance or neighbours use, spread evenly

# By name: (real, generated) -> a number for each row of one side, and that side.
NEIGHBOURS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], str]] = {
    "precision": (neighbours.precision, "videos"),
    "recall": (lambda real, generated: neighbours.precision(generated, real), "real clips"),
    "density": (neighbours.density, "videos"),
    "coverage": (neighbours.coverage, "real clips"),
}

# Means of a number of each video, which stands at this place of the row that its network makes of one.
BY_VIDEO = {name: place for place, name in enumerate(pixels.NAMES)} | {
    "subject_consistency": 0, "background_consistency": 0, "aesthetic_quality": 1, "imaging_quality": 1,
    "overall_consistency": 1, "dynamic_degree_raft": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Scorer:
    """Computes every metric of a protocol."""

    protocol: Protocol
    networks: Networks
    set: BenchmarkSet
    ours: Features
    real: Features | None
    draws: int = 200
    seed: int = 0
    endless: bool = False  # also extrapolate Frechet distances to endlessly many videos

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Returns every metric of the protocol. One that cannot be computed has `value` None and a `reason`."""
        kinds: dict[str, Callable[[str], dict[str, Any]]] = {
            "fvd": self._frechet, "fid": self._frechet, "kvd": self._kernel, "kid": self._kernel, "is": self._inception,
            "fd": self._frechet, **dict.fromkeys(NEIGHBOURS, self._neighbours), **dict.fromkeys(BY_VIDEO, self._mean),
            "clipsim": self._clipsim, "jedi": self._jedi,
        }  # fmt: skip
        found = {}
        for name, network in self.protocol.features.items():
            try:
                found[name] = kinds[kind_of(name)](name) | {"network": network}
            except ValueError as error:
                found[name] = {"value": None, "low": None, "high": None, "reason": str(error), "network": network}
        return found

    def _rows(self, features: Features, metric: str) -> np.ndarray:
        """Returns (n, F, d) features of the readable videos: one row a clip or, for picture metrics, a row a frame."""
        array = by_clip(features.load(self.protocol.features[metric])[1], metric)
        return array[:, None] if array.ndim == 2 else array

    def _reference(self) -> Features:
        if self.real is None:
            raise ValueError("this benchmark has no real videos")
        return self.real

    def _frechet(self, metric: str) -> dict[str, Any]:
        network, covariance = self.protocol.features[metric], self.protocol.covariance_of(metric)
        biased = covariance == "biased"
        real, n = self._reference(), self.ours.readable
        if min(n, real.readable) < 2:
            raise ValueError(f"a Frechet distance needs at least 2 videos on each side, not {n} and {real.readable}")
        _, (first, *_) = next(self.ours.stream(network))
        rows, length = n * first.size // first.shape[-1], first.shape[-1]
        # Large sets: moments of groups, and a jackknife.
        if min(rows, length) > LONGEST or max(n, real.readable) * first.size > IN_MEMORY:
            reference = functools.reduce(Moments.merge, _moments(real, network, metric))
            groups = _moments(self.ours, network, metric)
            interval = f"jackknife over {len(groups)} groups"
            return estimate(*jackknife(groups, reference, biased), interval=interval, covariance=covariance)
        # Others: all features in memory, and a bootstrap.
        ours, theirs = self._rows(self.ours, metric), self._rows(real, metric)
        quick = FrechetTo(ours, Moments.of(flat(theirs)), biased)
        value, low, high = quick.interval(self.draws, self.seed)
        interval = f"bootstrap of videos, {self.draws} draws"
        found = estimate(value, max(low, 0.0), high, interval=interval, covariance=covariance)
        if len(theirs) >= 4:  # the distance of two halves of the real clips is what a perfect generator would reach
            found["real_halves"] = frechet_features(flat(theirs[::2]), flat(theirs[1::2]), biased)
        if self.endless:
            found["endless"] = quick.endless(seed=self.seed)
        return found

    def _kernel(self, metric: str) -> dict[str, Any]:
        network = self.protocol.features[metric]
        value, error = kernel_distance(spread(self.ours, network, metric), spread(self._reference(), network, metric))
        low, high = value - NORMAL * error, value + NORMAL * error
        return estimate(value, low, high, interval="standard error of a U-statistic")

    def _jedi(self, metric: str) -> dict[str, Any]:
        """JEDi is biased, as its authors' code has it; `unbiased` does not depend on the number of videos."""
        network = self.protocol.features[metric]
        ours, real = spread(self.ours, network, metric), spread(self._reference(), network, metric)
        value, error = jedi(ours, real)
        low, high = max(value - NORMAL * error, 0.0), value + NORMAL * error
        found = estimate(value, low, high, interval="standard error of a U-statistic")
        found["unbiased"] = jedi(ours, real, biased=False)[0]
        if len(real) >= 4:  # what a perfect generator of half as many videos would reach
            found["real_halves"] = jedi(real[::2], real[1::2])[0]
        return found

    def _neighbours(self, metric: str) -> dict[str, Any]:
        """The interval is that of the rows over which the metric is a share or, of the density, a mean.

        The balls around the neighbours stay, so that it is narrow: of 200 pairs of sets of 12 to 48 rows of 16 normal
        features, 84 to 96 % of the intervals held the value expected of so many, and 78 to 83 % those of the density.
        """
        network, (measure, side) = self.protocol.features[metric], NEIGHBOURS[kind_of(metric)]
        real, ours = spread(self._reference(), network, metric), spread(self.ours, network, metric)
        each = measure(real, ours)
        found = mean_of(each, side, (0, math.inf)) if kind_of(metric) == "density" else share_of(each, side)
        if len(real) // 2 > neighbours.DENSITY_K:  # what a perfect generator of half as many videos would reach
            found["real_halves"] = float(measure(real[::2], real[1::2]).mean())
        return found

    def each(self, metric: str, of: Features | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns (indices, numbers) of the readable videos, of a metric that is a mean over them."""
        network, place = self.protocol.features[metric], BY_VIDEO[kind_of(metric)]
        features = of or self.ours
        indices, rows = features.load(network)
        if kind_of(metric) != "overall_consistency":
            return indices, rows.reshape(len(rows), -1)[:, place].astype(np.float64)
        prompts = [features.entries[index].prompt for index in indices]
        if not all(prompts):
            raise ValueError("a video has no prompt: name the files as their prompts, or list both in videos.json")
        texts = self.networks.texts(network.removeprefix(WHOLE), prompts)
        return indices, np.einsum("nd,nd->n", rows[:, place:].astype(np.float64), texts)

    def _mean(self, metric: str) -> dict[str, Any]:
        """A mean over the readable videos alone."""
        _, each = self.each(metric)
        if not len(each):
            raise ValueError("no video can be read")
        if kind_of(metric).startswith("dynamic_degree"):  # yes or no: draws of equal answers would all be the same
            found = share_of(each)
        else:
            found = mean_of(each, within=(-1 if kind_of(metric) == "overall_consistency" else 0, 1))
        if self.real is not None and self.real.readable and kind_of(metric) != "overall_consistency":
            found["real"] = float(self.each(metric, self.real)[1].mean())
        return found

    def _inception(self, metric: str) -> dict[str, Any]:
        probabilities, splits = self._classes(self.ours, metric), self.protocol.splits
        n = len(probabilities)
        if n < 2:
            raise ValueError(f"an inception score needs at least 2 videos, not {n}")
        # The videos come class by class, but a split must not hold only a few classes.
        probabilities = probabilities[np.random.default_rng(self.seed).permutation(n)]
        found = bootstrapped(lambda rows: inception_score(probabilities[rows], splits), n, self.draws, self.seed)
        if self.real is not None and self.real.readable:
            found["real"] = inception_score(self._classes(self.real, metric), splits)
        return found

    def _classes(self, features: Features, metric: str) -> np.ndarray:
        """Returns the class probabilities (n, k) of the readable videos."""
        network = self.protocol.features[metric]
        _, array = features.load(network)
        if len(array) and array.ndim == 3:  # CLIP compares its frame embeddings with the class sentences
            sentences = self.networks.texts(network, self.set.sentences)
            return zero_shot(array, sentences, self.networks.temperature(network))
        return array.reshape(len(array), -1)

    def _clipsim(self, metric: str) -> dict[str, Any]:
        network = self.protocol.features[metric]
        prompts = [entry.prompt for entry in self.ours.entries]
        n = len(prompts)
        if not any(prompts):
            remedy = "number the files as the prompts, or list both in videos.json"
            raise ValueError(f"nothing says which prompt each video was made for: {remedy}")
        similarity, shuffled = np.zeros(n), []
        texts = self.networks.texts(network, prompts)
        for indices, frames in self.ours.stream(network):
            similarity[indices] = clipsim(frames, texts[indices]) * [bool(prompts[index]) for index in indices]
            shuffled.append(clipsim(frames, texts[(indices + n // 2) % n]))
        found = mean_of(similarity, within=(-1, 1))
        # The two ends of the scale: our videos with another video's text, and real clips with their own.
        found["shuffled"] = float(np.concatenate(shuffled).mean()) if shuffled else None
        if self.ours.readable and self.ours.readable < n:
            found["of_readable"] = float(similarity.sum() / self.ours.readable)
        if self.real is not None and any(self.set.real_texts):
            found["real"] = self._real_clipsim(self.real, network)
        return found

    def _real_clipsim(self, real: Features, network: str) -> float | None:
        """Returns the mean CLIPSIM of the real clips that have a caption."""
        captions, values = self.set.real_texts, list[float]()
        for indices, frames in real.stream(network):
            captioned = [i for i, index in enumerate(indices) if captions[index]]
            if captioned:
                texts = self.networks.texts(network, [captions[indices[i]] for i in captioned])
                values += clipsim(frames[captioned], texts).tolist()
        return float(np.mean(values)) if values else None


def by_clip(array: np.ndarray, metric: str) -> np.ndarray:
    """Returns one row of each video (n, d), or rows of frames (n, F, d) for the distances of pictures."""
    return array if kind_of(metric) in ("fid", "fd", "kid") or array.ndim != 3 else describe_clips(array)


def flat(rows: np.ndarray) -> np.ndarray:
    """Returns rows (n, d) of features of any more dimensions."""
    return rows.reshape(-1, rows.shape[-1])


def _moments(features: Features, network: str, metric: str) -> list[Moments]:
    """Returns the moments of GROUPS groups of videos: of chunks or, where there are few videos, of parts of them."""
    size = max(features.readable // GROUPS, 1)
    arrays = (array for _, array in features.stream(network))
    parts = (array[first : first + size] for array in arrays for first in range(0, len(array), size))
    return grouped(Moments.of(flat(by_clip(part, metric))) for part in parts)


def spread(features: Features, network: str, metric: str) -> np.ndarray:
    """Returns at most KERNEL_ROWS rows (n, d), evenly from all videos."""
    kept: list[np.ndarray] = []
    seen, step = 0, 0
    for _, array in features.stream(network):
        rows = flat(by_clip(array, metric))
        step = step or -(-features.readable * len(rows) // len(array) // KERNEL_ROWS) or 1
        kept.append(rows[-seen % step :: step])
        seen += len(rows)
    return np.concatenate(kept) if kept else np.zeros((0, 1))
