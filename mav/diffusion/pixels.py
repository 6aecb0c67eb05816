"""Pixels between resolutions: what SR networks are conditioned on, the same in training and in sampling.

All functions take clips (B, T, C, H, W) in [-1, 1].
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def to_unit(pixels: Tensor) -> Tensor:
    """Converts uint8 0..255 to float32 -1..1."""
    return pixels.float() / 127.5 - 1


def to_pixels(clip: Tensor) -> Tensor:
    """Converts -1..1 back to uint8, rounded."""
    return ((clip.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def downsample(clip: Tensor, size: int) -> Tensor:
    """Averages areas, down to `size` pixels a side."""
    if clip.shape[-1] == size:
        return clip
    return _each_frame(clip, lambda x: F.interpolate(x, size=(size, size), mode="area"))


def upsample(clip: Tensor, factor: int) -> Tensor:
    """Interpolates bilinearly, which does not ring."""
    return _each_frame(clip, lambda x: F.interpolate(x, scale_factor=float(factor), mode="bilinear"))


def blur(clip: Tensor, sigma: float) -> Tensor:
    """Blurs with a 3x3 Gaussian (unCLIP 2.1 blurs its upsampler's input with sigma 0.6)."""
    if sigma <= 0:
        return clip
    side, channels = math.exp(-0.5 / sigma**2), clip.shape[2]
    line = torch.ones(3, dtype=clip.dtype, device=clip.device)  # made on the device, as a CUDA graph needs it
    line[::2].fill_(side)
    line = line / (1 + 2 * side)
    kernel = (line[:, None] * line[None]).expand(channels, 1, 3, 3)
    return _each_frame(clip, lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=channels))


def augment(low: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Adds noise of a known level (B,) in 0..1, so that an SR network learns to doubt its input (Ho et al. 2021)."""
    angle = (level * (math.pi / 2)).view(-1, 1, 1, 1, 1)
    return angle.cos() * low + angle.sin() * noise


def crop(clip: Tensor, corner: Tensor, size: int) -> Tensor:
    """Cuts a square of `size` out of each clip, at the clip's own corner (B, 2) of y, x."""
    rows = [c[..., y : y + size, x : x + size] for c, (y, x) in zip(clip, corner.tolist(), strict=True)]
    return torch.stack(rows)


def _each_frame(clip: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a function of images (N, C, H, W) to all frames of clips."""
    frames = function(rearrange(clip, "b t c h w -> (b t) c h w"))
    return rearrange(frames, "(b t) c h w -> b t c h w", b=len(clip))
