"""Random numbers that belong to a sample, not to the batch around it.

Every row of a batch has its own generator, keyed by what it is for (seed, purpose, sample number, frame). So a row is
the same alone, in any batch, on any number of workers and after a resume, and no state of a generator is stored.
Numbers are drawn on the CPU, so that a GPU gets the same samples.
"""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from einops import rearrange
from torch import Tensor

Key = tuple[int | str, ...]


def generator(*key: int | str) -> torch.Generator:
    """Makes a generator whose stream is a pure function of the key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Draws:
    """One generator for each row. Each call draws the next numbers of every row, on the CPU."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.generators = [generator(*key) for key in keys]

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, *shape: int) -> Tensor:
        """(rows, *shape), standard normal."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])

    def uniform(self, *shape: int) -> Tensor:
        """(rows, *shape), uniform in [0, 1)."""
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators])

    def integers(self, high: int, *shape: int) -> Tensor:
        """(rows, *shape), int64 in 0..high-1."""
        return torch.stack([torch.randint(high, shape, generator=g) for g in self.generators])


def mix(own: Tensor, common: Tensor, share: float) -> Tensor:
    """Noise whose frames have `share` of their variance in common, each standard normal (PYoCo, section 4.2)."""
    return (1 - share) ** 0.5 * own + share**0.5 * common


class SampleNoise:
    """The noise of one sampling run: call k returns the k-th tensor, (B, *shape), or (B, T, *shape) of frames.

    Each frame has its own key, and frames with the same key get the same noise: `range(T)` gives independent noise, all
    zeros gives SR_h one noise for the whole video (paper section 3.2), and windows of a long video agree where they
    overlap. `share` of the variance is common to all frames (see `mix`).
    """

    def __init__(
        self, seeds: Sequence[int], purpose: str, shape: Sequence[int], frames: Sequence[int] | None = None,
        device: torch.device | str = "cpu", share: float = 0.0,
    ) -> None:  # fmt: skip
        keys = sorted(set(frames)) if frames is not None else [0]
        self.order = [keys.index(frame) for frame in frames] if frames is not None else None
        self.draws = Draws((seed, purpose, key) for seed in seeds for key in keys)
        self.rows, self.shape, self.device = len(seeds), tuple(shape), device
        self.share, self.common = share, Draws((seed, purpose, "common") for seed in seeds)

    def __call__(self) -> Tensor:
        noise = self.draws.normal(*self.shape).to(self.device)
        if self.order is None:
            return noise
        noise = rearrange(noise, "(b key) ... -> b key ...", b=self.rows)[:, self.order]
        return mix(noise, self.common.normal(1, *self.shape).to(self.device), self.share) if self.share else noise
