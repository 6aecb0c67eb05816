"""Samplers: DDIM (Song et al. 2020), ancestral (Ho et al. 2020) and DPM-Solver++(2M) (Lu et al. 2022).

All three take the same "trailing" steps from pure noise to the clean sample and call the denoiser once a step. Their
noise comes only from the caller, so a sample is a function of its own seed. DDIM and DPM-Solver++ are deterministic
after the first draw.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mav.diffusion.guidance import Denoiser
from mav.diffusion.objective import learned_log_variance, posterior, to_eps
from mav.diffusion.schedule import Schedule
from mav.recipes import Sampling

Noise = Callable[[], Tensor]  # returns the next tensor of standard normal noise, of the samples' shape


@torch.no_grad()  # not inference mode: a training that samples goes on with the tensors that are kept here
def sample(
    denoiser: Denoiser, noise: Noise, sampling: Sampling, progress: Callable[[int, int], None] | None = None,
    guess: Tensor | None = None, start: float = 1.0,
) -> Tensor:  # fmt: skip
    """Samples a batch; `progress` is called with the steps done and the number of steps.

    A sample begins as pure noise, or, with `start` below 1, as the `guess` with the noise of that share of the schedule
    (SDEdit, Meng et al. 2022).
    """
    schedule = denoiser.schedule
    steps = schedule.trailing(sampling.steps, start if guess is not None else 1.0)
    x = noise()
    if guess is not None and start < 1:
        alpha, sigma = _level(schedule, steps[0])
        x = alpha * guess + sigma * x
    last: tuple[Tensor, int] | None = None
    for index, t in enumerate(steps):
        s = steps[index + 1] if index + 1 < len(steps) else -1  # -1 is the clean sample
        x0, variance = denoiser(x, t)
        if sampling.sampler == "ddim":
            x = _ddim(x, x0, t, s, schedule)
        elif sampling.sampler == "ancestral":
            x = _ancestral(x, x0, variance, t, s, schedule, noise)
        else:
            x, last = _dpm_solver(x, x0, last, t, s, schedule), (x0, t)
        if progress:
            progress(index + 1, len(steps))
    return x


def _level(schedule: Schedule, t: int) -> tuple[Tensor, Tensor]:
    """alpha and sigma of a step as float64 numbers; step -1 is the clean sample."""
    if t < 0:
        return torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    return schedule.alpha[t], schedule.sigma[t]


def _ddim(x: Tensor, x0: Tensor, t: int, s: int, schedule: Schedule) -> Tensor:
    """Mixes the same noise with the clean sample again, at the next level: x_s = alpha_s x0 + sigma_s eps."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _level(schedule, t), _level(schedule, s)
    return alpha_s * x0 + sigma_s * to_eps(x0, x, alpha_t, sigma_t)


def _ancestral(
    x: Tensor, x0: Tensor, variance: Tensor | None, t: int, s: int, schedule: Schedule, noise: Noise
) -> Tensor:
    """Draws from q(x_s | x_t, x0), with the learned variance if there is one, otherwise with the posterior's own."""
    rows = torch.ones(len(x), dtype=torch.long)
    mean, low, high = posterior(x0, x, t * rows, s * rows, schedule)
    if s < 0:
        return mean
    log_variance = low if variance is None else learned_log_variance(variance, low, high)
    return mean + (0.5 * log_variance).exp() * noise()


def _dpm_solver(x: Tensor, x0: Tensor, last: tuple[Tensor, int] | None, t: int, s: int, schedule: Schedule) -> Tensor:
    """A second-order multistep in the log of alpha / sigma, on x0. The last step, to the clean sample, is x0 itself."""
    if s < 0:
        return x0
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _level(schedule, t), _level(schedule, s)
    h = (alpha_s / sigma_s).log() - (alpha_t / sigma_t).log()
    data = x0
    if last is not None:
        previous, r = last
        alpha_r, sigma_r = _level(schedule, r)
        ratio = ((alpha_t / sigma_t).log() - (alpha_r / sigma_r).log()) / h
        data = torch.lerp(previous, x0, float(1 + 1 / (2 * ratio)))
    return (sigma_s / sigma_t) * x - (alpha_s * torch.expm1(-h)) * data
