"""From features to numbers: each metric of a protocol with its interval, count, network and weights' digest.

Videos that are missing or cannot be read stay in the denominator: a mean over videos (CLIPSIM) counts them as 0 and gives the mean over
readable ones beside it; a distance between distributions can only be taken over readable ones, and says how many they are.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mav.evaluation.features import Networks, describe_clips, zero_shot
from mav.evaluation.intervals import GROUPS, NORMAL, FrechetTo, bootstrapped, facts, grouped, jackknife
from mav.evaluation.metrics import Moments, clipsim, frechet_features, inception_score, kernel_distance
from mav.evaluation.protocols import Protocol
from mav.evaluation.sets import BenchmarkSet
from mav.evaluation.store import Features

IN_MEMORY = 1 << 26  # numbers of one feature array that are held at once
LONGEST = 1024  # dimensions, or rows if they are fewer, up to which hundreds of Frechet distances are affordable
KERNEL_ROWS = 20_000  # rows a kernel distance uses at most, spread evenly


@dataclass(frozen=True)
class Scorer:
    """All that a protocol's metrics are computed from."""

    protocol: Protocol
    networks: Networks
    set: BenchmarkSet
    ours: Features
    real: Features | None
    draws: int = 200
    seed: int = 0
    endless: bool = False  # also extrapolate Frechet distances to endlessly many videos

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Every metric of the protocol; one that cannot be had carries `value` None and `reason`."""
        kinds: dict[str, Callable[[str], dict[str, Any]]] = {
            "fvd": self._frechet, "fid": self._frechet, "kvd": self._kernel, "kid": self._kernel, "is": self._inception,
            "clipsim": self._clipsim,
        }  # fmt: skip
        found = {}
        for name, network in self.protocol.features.items():
            kind = name.split("_")[0]
            try:
                found[name] = kinds[kind](name) | {"network": network}
            except ValueError as error:
                found[name] = {"value": None, "low": None, "high": None, "reason": str(error), "network": network}
        return found

    # ------------------------------------------------------------------------------------------------------- distances

    def _rows(self, features: Features, metric: str) -> np.ndarray:
        """(n, F, d) rows of each readable video: a clip's one row for video metrics, its frames' rows for picture metrics."""
        network = self.protocol.features[metric]
        array = _by_clip(features.load(network)[1], metric)
        return array[:, None] if array.ndim == 2 else array

    def _reference(self) -> Features:
        if self.real is None:
            raise ValueError("this benchmark has no real videos")
        return self.real

    def _frechet(self, metric: str) -> dict[str, Any]:
        network, biased = self.protocol.features[metric], self.protocol.covariance == "biased"
        real = self._reference()
        if min(self.ours.readable, real.readable) < 2:
            raise ValueError(
                f"a Frechet distance needs at least 2 videos on each side, not {self.ours.readable} and {real.readable}"
            )
        _, first = next(self.ours.stream(network))
        rows, length = self.ours.readable * first[0].size // first.shape[-1], first.shape[-1]
        numbers = max(self.ours.readable, real.readable) * first[0].size
        if min(rows, length) > LONGEST or numbers > IN_MEMORY:
            reference = functools.reduce(Moments.merge, _moments(real, network, metric))
            value, low, high = jackknife(_moments(self.ours, network, metric), reference, biased)
            return facts(value, low, high, interval=f"jackknife over {GROUPS} groups")
        ours, theirs = self._rows(self.ours, metric), self._rows(real, metric)
        flat = theirs.reshape(-1, theirs.shape[-1])
        quick = FrechetTo(ours, Moments.of(flat), biased)
        value, low, high = quick.interval(self.draws, self.seed)
        found = facts(value, low, high, interval=f"bootstrap of videos, {self.draws} draws")
        if len(theirs) >= 4:  # two halves of the real clips: what a perfect generator would score at about this count
            found["real_halves"] = frechet_features(*(theirs[i::2].reshape(-1, theirs.shape[-1]) for i in (0, 1)))
        if self.endless:
            found["endless"] = quick.endless(seed=self.seed)
        return found

    def _kernel(self, metric: str) -> dict[str, Any]:
        network = self.protocol.features[metric]
        value, error = kernel_distance(_spread(self.ours, network, metric), _spread(self._reference(), network, metric))
        return facts(value, value - NORMAL * error, value + NORMAL * error, interval="standard error of a U-statistic")

    # ----------------------------------------------------------------------------------------------- scores of each video

    def _inception(self, metric: str) -> dict[str, Any]:
        probabilities = self._classes(self.ours, metric)
        if len(probabilities) < 2:
            raise ValueError(f"an inception score needs at least 2 videos, not {len(probabilities)}")
        # Generated videos come class by class: splits must not.
        probabilities = probabilities[np.random.default_rng(self.seed).permutation(len(probabilities))]
        splits = self.protocol.splits
        found = bootstrapped(
            lambda rows: inception_score(probabilities[rows], splits), len(probabilities), self.draws, self.seed
        )
        if self.real is not None and self.real.readable:
            found["real"] = inception_score(self._classes(self.real, metric), splits)
        return found

    def _classes(self, features: Features, metric: str) -> np.ndarray:
        network = self.protocol.features[metric]
        _, array = features.load(network)
        if len(array) and array.ndim == 3:  # frame embeddings of a CLIP: its opinion of the class sentences
            return zero_shot(
                array, self.networks.texts(network, self.set.sentences), self.networks.temperature(network)
            )
        return array.reshape(len(array), -1)

    def _clipsim(self, metric: str) -> dict[str, Any]:
        network = self.protocol.features[metric]
        prompts = [entry.prompt for entry in self.ours.entries]
        if not any(prompts):
            raise ValueError(
                "nothing says which prompt each video was made for: number the files as the prompts, or list both in videos.json"
            )
        similarity, shuffled = np.zeros(len(prompts)), []
        texts = self.networks.texts(network, prompts)
        for indices, frames in self.ours.stream(network):
            similarity[indices] = clipsim(frames, texts[indices]) * [bool(prompts[index]) for index in indices]
            shuffled.append(clipsim(frames, texts[(indices + len(prompts) // 2) % len(prompts)]))
        found = bootstrapped(lambda rows: float(similarity[rows].mean()), len(similarity), self.draws, self.seed)
        # The scale's two ends: ours with somebody else's text, and real clips with their own.
        found["shuffled"] = float(np.concatenate(shuffled).mean()) if shuffled else None
        if self.ours.readable and self.ours.readable < len(prompts):
            found["of_readable"] = float(similarity.sum() / self.ours.readable)
        if self.real is not None and any(self.set.real_texts):
            found["real"] = self._real_clipsim(network)
        return found

    def _real_clipsim(self, network: str) -> float | None:
        assert self.real is not None
        captions = self.set.real_texts
        values: list[float] = []
        for indices, frames in self.real.stream(network):
            told = [i for i, index in enumerate(indices) if captions[index]]
            if told:
                texts = self.networks.texts(network, [captions[indices[i]] for i in told])
                values += clipsim(frames[told], texts).tolist()
        return float(np.mean(values)) if values else None


def _by_clip(array: np.ndarray, metric: str) -> np.ndarray:
    """Features as a metric takes them: one row a video (n, d) for video metrics, rows of frames (n, F, d) for picture metrics."""
    return describe_clips(array) if metric.startswith(("fvd", "kvd")) and array.ndim == 3 else array


def _moments(features: Features, network: str, metric: str) -> list[Moments]:
    """Moments of groups of chunks."""
    chunks = (_by_clip(array, metric) for _, array in features.stream(network))
    return grouped(Moments.of(rows.reshape(-1, rows.shape[-1])) for rows in chunks)


def _spread(features: Features, network: str, metric: str) -> np.ndarray:
    """At most KERNEL_ROWS rows (n, d), evenly from all videos."""
    kept: list[np.ndarray] = []
    seen, step = 0, 0
    for _, array in features.stream(network):
        rows = _by_clip(array, metric)
        rows = rows.reshape(-1, rows.shape[-1])
        step = step or -(-features.readable * len(rows) // len(array) // KERNEL_ROWS) or 1
        kept.append(rows[-seen % step :: step])
        seen += len(rows)
    return np.concatenate(kept) if kept else np.zeros((0, 1))
