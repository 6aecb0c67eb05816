"""A denoiser made of a network: x_t and a step in, the clean sample out, with classifier-free guidance."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mav.diffusion.objective import base_kind, to_x0
from mav.diffusion.schedule import Schedule, make_schedule
from mav.recipes import Objective

DROPPABLE = ("embedding", "text_embedding")  # the conditions that training drops, which is what guidance needs


@dataclass(frozen=True)
class Denoiser:
    """A trained network with its conditions: `denoiser(x_t, t)` predicts the clean sample.

    guidance: 1 = none; otherwise x0 = uncond + guidance (cond - uncond), both from one forward pass. Mixing x0, eps or
    v is equivalent. interval: shares of the schedule; a step outside of it takes the conditioned prediction as it is
    (Kynkäänniemi et al. 2024, arXiv 2404.07724: at the noisiest levels guidance costs variety, at the cleanest it does
    next to nothing). rescale: share of the way back to the standard deviation of the conditioned prediction (Lin et al.
    2023, section 3.4), against over-exposure. clip: limits pixels to [-1, 1]; not for embeddings. time: passed on to
    U-Nets; the prior has no layers over time. The frames that F^ is given (`conditions["known"]`) are copied into x0.
    """

    network: Callable[..., Tensor]
    objective: Objective
    conditions: dict[str, Tensor]
    guidance: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    clip: bool = True
    time: bool | None = None

    @property
    def schedule(self) -> Schedule:
        return make_schedule(self.objective)

    def __call__(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        """x_t: (B, ...). Returns x0 of the same shape, and the channels of a learned variance or None."""
        rows, conditions, x = len(x_t), self.conditions, x_t
        # With guidance the first half of the batch has the condition and the second half has not.
        low, high = self.interval
        within = low <= (t + 1) / self.schedule.steps <= high
        guided = self.guidance != 1.0 and within and any(name in conditions for name in DROPPABLE)
        if guided:
            conditions = {name: torch.cat([value, value]) for name, value in conditions.items()}
            conditions["keep"] = torch.arange(2 * rows, device=x_t.device) < rows
            x = torch.cat([x_t, x_t])
        both, variance = self._predict(x, t, conditions)
        x0 = with_condition = both[:rows]
        if guided:
            x0 = torch.lerp(both[rows:], with_condition, self.guidance)
            if self.rescale:
                wanted, found = _deviation(with_condition), _deviation(x0)
                x0 = x0 * (1 + self.rescale * (wanted / found.clamp_min(1e-8) - 1))
        if "known" in self.conditions:
            given, mask = self.conditions["known"].split([3, 1], dim=2)
            x0 = torch.where(mask > 0, given, x0)
        return (x0.clamp(-1, 1) if self.clip else x0), variance if variance is None else variance[:rows]

    def _predict(self, x: Tensor, t: int, conditions: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The clean samples that the network's output amounts to, and the channels of a learned variance or None."""
        schedule = self.schedule
        # Numbers that all samples share stay on the processor, because to copy them would wait for the card.
        step = torch.full((len(x),), float(schedule.network_time(torch.tensor(t))), device=x.device)
        options = {} if self.time is None else {"time": self.time}
        # A GPU computes products in bfloat16, as it does in training; the samples and their schedule stay float32.
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
            output = self.network(x, step, **conditions, **options).float()
        variance = None
        if self.objective.prediction == "eps_learned_sigma":
            output, variance = output.chunk(2, dim=2)
        return to_x0(output, x, schedule.alpha[t], schedule.sigma[t], base_kind(self.objective)), variance


def _deviation(x: Tensor) -> Tensor:
    """The standard deviation of each sample, shaped to multiply it."""
    return x.flatten(1).std(1).view((-1,) + (1,) * (x.ndim - 1))
