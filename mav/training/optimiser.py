"""The optimiser and the schedule of its learning rate."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from mav.recipes import Optimisation


def make_optimiser(
    network: nn.Module, o: Optimisation, device: str, frozen: Collection[str] = (), frozen_samples: int = 0
) -> torch.optim.AdamW:
    """Makes AdamW, with weight decay for weights and none for biases and norms.

    The parameters named in `frozen` are in groups of their own, whose key `frozen_samples` is the sample at which they
    begin to train.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim >= 2, name in frozen), []).append(parameter)
    described: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": o.weight_decay * decays, "frozen_samples": frozen_samples * held}
        for (decays, held), parameters in sorted(groups.items(), reverse=True)
    ]
    fused = torch.device(device).type in ("cpu", "cuda")
    optimiser = torch.optim.AdamW(described, lr=o.learning_rate, betas=o.betas, eps=o.eps, fused=fused)
    # The state that AdamW would make at its first step is made here, because a checkpoint fills it in place.
    for p in (p for group in optimiser.param_groups for p in group["params"]):
        moments = {name: torch.zeros_like(p, memory_format=torch.preserve_format) for name in ("exp_avg", "exp_avg_sq")}
        optimiser.state[p] = {"step": torch.zeros((), dtype=torch.float32, device=p.device), **moments}
    return optimiser


def set_steps(optimiser: torch.optim.Optimizer, steps: int) -> None:
    """Sets how many steps were made. It is one number, because every parameter takes part in every step."""
    for moments in optimiser.state.values():
        moments["step"].fill_(steps)


def set_learning_rate(optimiser: torch.optim.Optimizer, o: Optimisation, samples: int) -> None:
    """Sets the learning rate of the next step, which is 0 for parameters that are still frozen."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(o, samples) * (samples >= group["frozen_samples"])


def learning_rate(o: Optimisation, samples: int) -> float:
    """A linear warm-up, then constant, then a linear cool-down to zero over the last samples."""
    rate = o.learning_rate
    if o.warmup_samples:
        rate *= min(1.0, (samples + o.batch_size) / o.warmup_samples)
    if o.cooldown_samples:
        rate *= min(1.0, max(0, o.samples - samples) / o.cooldown_samples)
    return rate
