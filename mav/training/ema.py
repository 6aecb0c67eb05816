"""An exponential moving average of the weights: what a stage hands on."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; any other tensor as it is. Call it without gradients."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def warmed_up(decay: float) -> Callable[[int], float]:
    """A decay that begins as (1 + n) / (10 + n), so that short runs forget their start."""
    return lambda steps: min(decay, (1 + steps) / (10 + steps))


class Ema:
    """Shadows of parameters, pulled after each step by one fused operation over all of them; sharded where the parameters are."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: Callable[[int], float]) -> None:
        """decay: how much of the average stays at the n-th optimiser step, n from 1."""
        self.parameters = list(parameters)
        self.decay = decay
        self.shadows: list[Tensor] = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """After `steps` optimiser steps."""
        torch._foreach_lerp_(self._shadows(), self._parameters(), 1 - self.decay(steps))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While the block runs, the network is its average."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """The network becomes its average; for the end of training."""
        torch._foreach_copy_(self._parameters(), self._shadows())

    @torch.no_grad()
    def _exchange(self) -> None:
        before = [p.clone() for p in self._parameters()]
        torch._foreach_copy_(self._parameters(), self._shadows())
        torch._foreach_copy_(self._shadows(), before)

    def _parameters(self) -> list[Tensor]:
        return [local(p.detach()) for p in self.parameters]

    def _shadows(self) -> list[Tensor]:
        return [local(shadow) for shadow in self.shadows]
