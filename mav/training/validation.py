"""Loss on held-out samples at fixed noise levels, of the same samples, steps and noise every time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mav.diffusion.noise import Draws
from mav.training.sharding import evaluated

LEVELS = (0.125, 0.375, 0.625, 0.875)  # noise steps as shares of all: the middles of four equal parts

Batch = dict[str, Tensor]
Draw = Callable[[Batch, Draws, float | None], Batch]  # adds what is random, at a noise level or at drawn ones
Loss = Callable[[nn.Module, Batch], Tensor]  # mean loss of the rows of such a batch, a scalar


@dataclass(frozen=True)
class Validation:
    """The held-out samples, and the loss on them, which the ranks compute together."""

    rows: Batch
    chunk: int  # samples in a forward pass
    key: tuple[int | str, ...]  # of their random numbers
    draw: Draw
    loss: Loss
    rank: int = 0
    world_size: int = 1

    def __call__(self, network: nn.Module, device: str) -> dict[str, float]:
        """Returns the mean loss by level as `validation/LEVEL`, and over all as `validation`. Every rank calls it."""
        count = len(next(iter(self.rows.values())))
        sums = torch.zeros(len(LEVELS), device=device)
        with evaluated(network):
            for turn in range(0, count, self.chunk * self.world_size):
                # Ranks without a chunk of their own repeat the first, since sharded networks compute together.
                own = turn + self.rank * self.chunk
                first = own if own < count else 0
                batch = {name: value[first : first + self.chunk] for name, value in self.rows.items()}
                rows = len(next(iter(batch.values())))
                for place, level in enumerate(LEVELS):
                    draws = Draws((*self.key, "validation", first + row) for row in range(rows))
                    drawn = {name: value.to(device) for name, value in self.draw(batch, draws, level).items()}
                    sums[place] += self.loss(network, drawn) * (rows if own < count else 0)
        if self.world_size > 1:
            dist.all_reduce(sums)
        losses = dict(zip(LEVELS, (sums / count).tolist(), strict=True))
        by_level = {f"validation/{level}": loss for level, loss in losses.items()}
        return by_level | {"validation": sum(losses.values()) / len(losses)}
