"""Weights for networks whose published ones are not here."""

import torch


def shake(module, seed=0):
    """Random weights of a size that keeps signals alive, and batch norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.dtype.is_floating_point:
            noise = torch.rand(value.shape, generator=generator)
            scale = (3 / max(value[0].numel(), 1)) ** 0.5 if value.ndim > 1 else 0.2
            value.copy_(0.5 + noise if name.endswith(("running_var", "bn.weight")) else scale * (2 * noise - 1))
    return module.eval()
