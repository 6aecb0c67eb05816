"""An exponential moving average of the weights: what a stage hands on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Ema:
    """Shadows of parameters, pulled after each step by one fused operation over all of them."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.shadows: list[Tensor] = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """After `steps` optimiser steps. The decay warms up as (1 + n) / (10 + n), so that short runs forget their start."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(self.shadows, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """The network becomes its average; for the end of training."""
        torch._foreach_copy_([p.detach() for p in self.parameters], self.shadows)

    def state(self) -> list[Tensor]:
        return self.shadows

    @torch.no_grad()
    def load(self, state: list[Tensor]) -> None:
        torch._foreach_copy_(self.shadows, [s.to(own) for s, own in zip(state, self.shadows, strict=True)])
