"""An exponential moving average of the weights, which is what a stage exports."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def local_shards(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's part of each sharded tensor, in the same memory; others whole. Call it without gradients."""
    return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]


def warmed_up(decay: float) -> Callable[[int], float]:
    """A decay that begins as (1 + n) / (10 + n), so that short runs forget their start."""
    return lambda steps: min(decay, (1 + steps) / (10 + steps))


class Ema:
    """Averages of parameters, sharded where these are, and updated after each step by one fused operation."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: Callable[[int], float]) -> None:
        """decay: the share of the average that stays at the n-th optimiser step, n from 1."""
        self.parameters = list(parameters)
        self.decay = decay
        self.shadows: list[Tensor] = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Updates the average after optimiser step number `steps`."""
        torch._foreach_lerp_(local_shards(self.shadows), local_shards(self.parameters), 1 - self.decay(steps))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Makes the network its average while the block runs."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Makes the network its average, at the end of training."""
        torch._foreach_copy_(local_shards(self.parameters), local_shards(self.shadows))

    @torch.no_grad()
    def _exchange(self) -> None:
        before = [p.clone() for p in local_shards(self.parameters)]
        self.copy_to_parameters()
        torch._foreach_copy_(local_shards(self.shadows), before)
