"""Loss on held-out samples at fixed noise levels: the same samples, steps and noise every time, so that two numbers can be compared."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mav.diffusion.noise import Draws

LEVELS = (0.125, 0.375, 0.625, 0.875)  # noise steps over the number of steps: middles of four equal parts

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Validation:
    """This rank's part of the held-out samples, and how they are judged."""

    rows: Batch
    first: int  # number of the first of them
    chunk: int  # samples a forward pass
    key: tuple[int | str, ...]
    loss: Callable[
        [nn.Module, Batch, Draws, float], Tensor
    ]  # mean loss of rows whose noise step is this share of all steps

    @torch.no_grad()
    def __call__(self, network: nn.Module, device: str) -> dict[str, float]:
        """Mean loss by level, as `validation/LEVEL`, and over all as `validation`. Every rank calls it."""
        count = len(next(iter(self.rows.values())))
        sums = torch.zeros(len(LEVELS), device=device)
        network.eval()
        for first in range(0, count, self.chunk):
            batch = {name: value[first : first + self.chunk].to(device) for name, value in self.rows.items()}
            rows = len(next(iter(batch.values())))
            for place, level in enumerate(LEVELS):
                draws = Draws((*self.key, "validation", self.first + first + row) for row in range(rows))
                sums[place] += self.loss(network, batch, draws, level) * rows
        network.train()
        if dist.is_initialized():
            dist.all_reduce(sums)
            count *= dist.get_world_size()
        losses = (sums / count).tolist()
        return {f"validation/{level}": loss for level, loss in zip(LEVELS, losses, strict=True)} | {
            "validation": sum(losses) / len(losses)
        }
