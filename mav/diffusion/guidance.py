"""From a network to a denoiser: x_t and a step in, the clean sample out, with classifier-free guidance in one batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mav.diffusion.objective import base_kind, to_x0
from mav.diffusion.schedule import Schedule, make_schedule
from mav.recipes import Objective

DROPPABLE = (
    "embedding",
    "text_embedding",
)  # the conditions that training drops, so that guidance has something to lean on


@dataclass(frozen=True)
class Denoiser:
    """A trained network with its conditions: `denoiser(x_t, t)` gives the clean sample it sees.

    guidance: 1 = none; otherwise x0 = uncond + guidance (cond - uncond), both halves in one forward. Mixing x0, eps or v is the same thing.
    rescale: share of the way back to the conditioned prediction's own spread (Lin et al. 2023, section 3.4), against over-exposure.
    clip: hold pixels in [-1, 1]; not for embeddings.
    Frames that F^ was given (`conditions["known"]`) stand in x0 as they are.
    """

    network: Callable[..., Tensor]
    objective: Objective
    conditions: dict[str, Tensor]
    guidance: float = 1.0
    rescale: float = 0.0
    clip: bool = True
    time: bool | None = None  # passed on to U-Nets; the prior has no time layers

    @property
    def schedule(self) -> Schedule:
        return make_schedule(self.objective)

    def __call__(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        """x_t: (B, ...). Returns x0 of the same shape, and the learned variance's channels when the network has them."""
        rows, schedule = len(x_t), self.schedule
        guided = self.guidance != 1.0 and any(name in self.conditions for name in DROPPABLE)
        conditions = self.conditions
        x = x_t
        if guided:
            conditions = {name: torch.cat([value, value]) for name, value in conditions.items()}
            conditions["keep"] = torch.arange(2 * rows, device=x_t.device) < rows
            x = torch.cat([x_t, x_t])
        step = torch.full((len(x),), t, dtype=torch.long)
        options = {} if self.time is None else {"time": self.time}
        output = self.network(x, schedule.network_time(step).to(x.device), **conditions, **options).float()
        variance = None
        if self.objective.prediction == "eps_learned_sigma":
            output, variance = output.chunk(2, dim=2)
            variance = variance[:rows]
        alpha, sigma = schedule.at(step, x)
        x0 = to_x0(output, x, alpha, sigma, base_kind(self.objective))
        if guided:
            with_condition, without = x0.chunk(2)
            x0 = torch.lerp(without, with_condition, self.guidance)
            if self.rescale:
                own, now = _spread(with_condition), _spread(x0)
                x0 = x0 * (1 + self.rescale * (own / now.clamp_min(1e-8) - 1))
        if "known" in self.conditions:
            given, mask = self.conditions["known"].split([3, 1], dim=2)
            x0 = torch.where(mask > 0, given, x0)
        return (x0.clamp(-1, 1) if self.clip else x0), variance


def _spread(x: Tensor) -> Tensor:
    return x.flatten(1).std(1).view((-1,) + (1,) * (x.ndim - 1))
