"""What a network predicts (x0, eps, v, or the paper's eps with a learned variance), and the loss it is trained with.

With x_t = alpha x_0 + sigma eps, the three predictions can be converted into one another: v = alpha eps - sigma x_0
(Salimans and Ho 2022). Losses have min-SNR weights (Hang et al. 2023), which make the three losses the same too:

    min(snr, g) |dx_0|^2  =  min(snr, g) / snr |deps|^2  =  min(snr, g) / (snr + 1) |dv|^2

What a clip's frames have in common, its background above all, is most of their error, and a short training learns it
first. So the error's change from frame to frame may be weighed too (`motion_weight`). Whatever the weight, the same
prediction is best, the mean of what may be true, but its motion is learned sooner.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mav.diffusion.noise import Draws, mix
from mav.diffusion.schedule import Schedule
from mav.recipes import Objective

VLB_WEIGHT = 0.001  # of the variational bound in the hybrid loss (improved DDPM, section 4)


def to_x0(prediction: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, kind: str) -> Tensor:
    """Converts a prediction of `kind` (x0, eps, v) into the clean sample."""
    if kind == "x0":
        return prediction
    if kind == "v":
        return alpha * x_t - sigma * prediction
    return (x_t - sigma * prediction) / alpha.clamp_min(1e-4)  # with zero terminal SNR alpha is 0 at the last step


def to_eps(x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Converts a clean sample into the noise that is left in x_t."""
    return (x_t - alpha * x0) / sigma.clamp_min(1e-8)


def target(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, kind: str) -> Tensor:
    """The right output of a network that predicts `kind`."""
    return {"x0": x0, "eps": eps}[kind] if kind != "v" else alpha * eps - sigma * x0


def weights(snr: Tensor, gamma: float, kind: str) -> Tensor:
    """Min-SNR weight of each sample's squared error in its own parametrisation; gamma 0 = unweighted."""
    if gamma <= 0:
        return torch.ones_like(snr)
    capped = snr.clamp(max=gamma)
    if kind == "x0":
        return capped
    return capped / (snr + 1) if kind == "v" else capped / snr.clamp_min(1e-8)


def base_kind(objective: Objective) -> str:
    """x0, eps or v: the parametrisation of the mean."""
    return "eps" if objective.prediction == "eps_learned_sigma" else objective.prediction


def draw_noise(
    draws: Draws, shape: Sequence[int], objective: Objective, *, drops: bool, level: float | None = None
) -> dict[str, Tensor]:
    """Draws all that is random in the loss of samples of a shape: the step `t` (B,) and the noise (B, *shape).

    drops: also `keep` (B,), whether the condition is kept. level: the step of all samples as a share of the schedule's,
    instead of drawn ones.
    """
    steps = objective.steps
    t = draws.integers(steps) if level is None else torch.full((len(draws),), int(level * steps))
    noise = draws.normal(*shape)
    if objective.shared_noise and len(shape) == 4:
        noise = mix(noise, draws.normal(1, *shape[1:]), objective.shared_noise)
    drawn = {"t": t, "noise": noise}
    return drawn | {"keep": draws.uniform() >= objective.condition_dropout} if drops else drawn


def diffusion_loss(
    network: Callable[..., Tensor], x0: Tensor, conditions: dict[str, Tensor], drawn: Mapping[str, Tensor],
    objective: Objective, schedule: Schedule,
) -> Tensor:  # fmt: skip
    """Each sample's weighted squared error, (B,), for clean samples x0 (B, T, C, H, W) or (B, d).

    drawn: what `draw_noise` drew. All tensors, the schedule's too, are on the network's device, and the loss reads none
    of their values on the processor.
    """
    t, noise = drawn["t"], drawn["noise"].to(x0)
    if "keep" in drawn:
        conditions = conditions | {"keep": drawn["keep"]}
    # The prediction and its error.
    x_t = schedule.noised(x0, noise, t)
    output = network(x_t, schedule.network_time(t), **conditions).float()
    kind = base_kind(objective)
    mean, variance = output.chunk(2, dim=2) if objective.prediction == "eps_learned_sigma" else (output, None)
    alpha, sigma = schedule.at(t, x0)
    error = mean - target(x0, noise, alpha, sigma, kind)
    # The loss of F^ is of the frames it was not given: to copy the others teaches nothing about motion, and their mean,
    # which nothing trains, would teach a wrong variance.
    unknown = 1 - conditions["known"][:, :, 3:] if "known" in conditions else None
    squared = _mean(error.square(), unknown)
    weight = objective.motion_weight
    if weight and error.ndim == 5 and error.shape[1] > 1:
        squared = (squared + weight * _mean_of_changes(error, unknown)) / (1 + 2 * weight)
    # The weighted mean, and the term that trains the variance.
    loss = squared * weights(schedule.snr[t].to(error), objective.min_snr_gamma, kind)
    if variance is not None:
        bound = _vlb(x0, x_t, mean.detach(), variance, t, schedule)
        loss = loss + VLB_WEIGHT * schedule.steps * _mean(bound, unknown)
    return loss


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of each sample, (B,), over all values or over those of a mask (B, T, 1, H, W)."""
    if mask is not None:
        values = values * mask * (mask[0].numel() / mask.flatten(1).sum(1).view(-1, 1, 1, 1, 1))
    return values.flatten(1).mean(1)


def _mean_of_changes(error: Tensor, unknown: Tensor | None) -> Tensor:
    """The mean square of how the error (B, T, C, H, W) changes from frame to frame. Given frames have no error."""
    if unknown is None:
        return _mean(error.diff(dim=1).square(), None)
    return _mean((error * unknown).diff(dim=1).square(), torch.maximum(unknown[:, 1:], unknown[:, :-1]))


# ------------------------------------------------------------------------------------- learned variance (improved DDPM)


def posterior(x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of q(x_s | x_t, x_0) for an earlier step s (-1 = clean), and two logarithms of variances, shaped to x_t.

    The variances are the two ends for a learned one: the posterior's own, and beta, that of the forward step.
    """
    alpha_t, sigma_t = schedule.at(t, x_t)
    alpha_s, sigma_s = schedule.at(s.clamp_min(0), x_t)
    clean = (s < 0).view(alpha_s.shape).to(x_t.device)
    alpha_s, sigma_s = torch.where(clean, 1.0, alpha_s), torch.where(clean, 0.0, sigma_s)
    step = alpha_t / alpha_s
    beta = (1 - step.square()).clamp_min(1e-12)
    mean = alpha_s * beta / sigma_t.square() * x0 + step * sigma_s.square() / sigma_t.square() * x_t
    small = beta * sigma_s.square() / sigma_t.square()
    return mean, small.clamp_min(1e-12).log(), beta.log()


def learned_log_variance(fraction: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Interpolates the two ends in the log domain by the network's channel in [-1, 1] (improved DDPM, eq. 15)."""
    share = (fraction + 1) / 2
    return share * high + (1 - share) * low


def _vlb(x0: Tensor, x_t: Tensor, eps: Tensor, fraction: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """The variational bound of each value in bits. It trains the variance only: the mean is detached."""
    alpha, sigma = schedule.at(t, x_t)
    first = (t == 0).view(alpha.shape).to(x_t.device)
    true_mean, true_log, high = posterior(x0, x_t, t, t - 1, schedule)
    # At step 0 the posterior's own variance is 0; improved DDPM clips it to that of step 1.
    one = torch.ones_like(t)
    _, floor, _ = posterior(x0, x_t, one, one - 1, schedule)
    true_log = torch.where(first, floor, true_log)
    mean, _, _ = posterior(to_x0(eps, x_t, alpha, sigma, "eps"), x_t, t, t - 1, schedule)
    log_variance = learned_log_variance(fraction, true_log, high)
    distance = (true_mean - mean).square() * (-log_variance).exp()
    kl = 0.5 * (log_variance - true_log + (true_log - log_variance).exp() + distance - 1)
    likelihood = -_discrete_log_likelihood(x0, mean, 0.5 * log_variance)
    return torch.where(first, likelihood, kl) / math.log(2.0)


def _discrete_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log p of 8-bit values in [-1, 1] under a Gaussian that is integrated over each value's bin (DDPM, eq. 13)."""

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.erf(z / 2**0.5))

    inverse = (-log_scale).exp()
    upper, lower = cdf(inverse * (x - mean + 1 / 255)), cdf(inverse * (x - mean - 1 / 255))
    mass = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return mass.clamp_min(1e-12).log()
