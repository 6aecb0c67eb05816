"""Pixels between resolutions: what SR networks are conditioned on, the same in training and in sampling.

All functions take clips (B, T, C, H, W) in [-1, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 to float32 -1..1."""
    return pixels.float() / 127.5 - 1


def to_pixels(clip: Tensor) -> Tensor:
    """The way back, rounded."""
    return ((clip.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def downsample(clip: Tensor, size: int) -> Tensor:
    """Area averages down to `size` pixels a side."""
    if clip.shape[-1] == size:
        return clip
    return F.interpolate(clip.flatten(0, 1), size=(size, size), mode="area").unflatten(0, clip.shape[:2])


def upsample(clip: Tensor, factor: int) -> Tensor:
    """Bilinear, so that nothing rings."""
    flat = F.interpolate(clip.flatten(0, 1), scale_factor=float(factor), mode="bilinear", align_corners=False)
    return flat.unflatten(0, clip.shape[:2])


def blur(clip: Tensor, sigma: float) -> Tensor:
    """A 3x3 Gaussian (unCLIP 2.1 blurs its upsampler's input with sigma 0.6)."""
    if sigma <= 0:
        return clip
    side = math.exp(-0.5 / sigma**2)
    line = torch.tensor([side, 1.0, side], dtype=clip.dtype, device=clip.device) / (1 + 2 * side)
    channels = clip.shape[2]
    kernel = (line[:, None] * line[None]).expand(channels, 1, 3, 3)
    padded = F.pad(clip.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel, groups=channels).unflatten(0, clip.shape[:2])


def augment(low: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Noise of a known level (B,) in 0..1 on the low-resolution input (Ho et al. 2021, section 4): the SR network learns to doubt it."""
    angle = (level * (math.pi / 2)).view(-1, 1, 1, 1, 1)
    return angle.cos() * low + angle.sin() * noise


def crop(clip: Tensor, corner: Tensor, size: int) -> Tensor:
    """A square of `size` from each clip, at its own corner (B, 2) of y, x."""
    rows = [c[..., y : y + size, x : x + size] for c, (y, x) in zip(clip, corner.tolist(), strict=True)]
    return torch.stack(rows)
