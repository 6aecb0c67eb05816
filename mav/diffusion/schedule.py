"""Noise schedules: x_t = alpha_t x_0 + sigma_t noise with alpha^2 + sigma^2 = 1, at steps t = 0 .. steps - 1."""

import functools
import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mav.recipes import Objective

NETWORK_STEPS = 1000.0  # networks get the step on this scale, whatever the number of steps


@dataclass(frozen=True)
class Schedule:
    """The tables of one schedule, in float64, (steps,) each."""

    alpha: Tensor
    sigma: Tensor

    @property
    def steps(self) -> int:
        return len(self.alpha)

    @property
    def snr(self) -> Tensor:
        """alpha^2 / sigma^2 at each step; 0 at the last one of a zero-terminal-SNR schedule."""
        return (self.alpha / self.sigma) ** 2

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of steps t (B,), shaped to multiply `like` (B, ...). Steps are where the tables are."""
        shape = (-1,) + (1,) * (like.ndim - 1)
        return self.alpha[t].to(like).view(shape), self.sigma[t].to(like).view(shape)

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for clean samples (B, ...) and steps t (B,)."""
        alpha, sigma = self.at(t, clean)
        return alpha * clean + sigma * noise

    def network_time(self, t: Tensor) -> Tensor:
        """Steps t on the networks' scale, 0..1000, float32."""
        return t.float() * (NETWORK_STEPS / self.steps)

    def trailing(self, count: int, start: float = 1.0) -> list[int]:
        """`count` sampling steps from the share `start` of the schedule down, evenly spaced and ending above 0.

        The first step of sampling is the last one of training, which zero terminal SNR needs ("trailing", Lin et al.
        2023).
        """
        noisy = round(self.steps * start)
        if not 1 <= count <= noisy:
            raise ValueError(f"{count} sampling steps do not fit a schedule of {noisy}: choose 1 to {noisy}")
        return [round(noisy * (count - i) / count) - 1 for i in range(count)]


@functools.lru_cache(maxsize=32)
def make_schedule(objective: Objective, device: str = "cpu") -> Schedule:
    """Makes an objective's schedule: cosine (Nichol and Dhariwal 2021) or linear (Ho et al. 2020).

    Training looks the steps up on its device; sampling counts them on the CPU.
    """
    steps = objective.steps
    if objective.schedule == "cosine":
        level = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        betas = torch.tensor([min(1 - b / a, 0.999) for a, b in itertools.pairwise(level)], dtype=torch.float64)
    else:
        scale = 1000 / steps
        betas = torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64).clamp(max=0.999)
    alpha = (1 - betas).cumprod(0).sqrt()
    if objective.zero_terminal_snr:  # Lin et al. 2023, algorithm 1
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    if objective.shift != 1.0:  # simple diffusion (Hoogeboom et al. 2023): the log-SNR is lowered by 2 log(shift)
        odds = alpha.square() / (1 - alpha.square()) / objective.shift**2
        alpha = (odds / (1 + odds)).sqrt()
    return Schedule(alpha.to(device), (1 - alpha.square()).sqrt().to(device))
