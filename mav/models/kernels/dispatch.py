"""The one place where a faster way for a device is chosen. The networks call these functions and name no device."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mav.models.kernels import cpu_norm
from mav.models.kernels.cpu_convolution import TemporalConvolution
from mav.models.kernels.layout import as_images, as_rows

SHORT_SEQUENCE = 32  # tokens; up to this length attention on a CPU is faster as two matrix products
GRID_LIMIT = 65_535  # rows x heads that one launch of the fused attention kernels can take


def frame_norm(x: Tensor, groups: int, eps: float, scale: Tensor, shift: Tensor, silu: bool) -> Tensor:
    """Group norm of each image, scaled and shifted for each channel, and with `silu` a SiLU of that.

    x: (N, C, H, W) channels-last; scale, shift: (C,), or (B, C), where each row belongs to N / B images.
    """
    if _is_plain_cpu(x):
        return cpu_norm.norm(x, groups, eps, scale, shift, silu)
    if scale.ndim == 1:
        y = F.group_norm(x, groups, scale, shift, eps)
    else:
        y = as_images(as_rows(F.group_norm(x, groups, eps=eps), len(scale)) * scale[:, None] + shift[:, None], x)
    return F.silu(y) if silu else y


def temporal_convolution(clip: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution over the T frames of each pixel, padded to keep T.

    clip: (B, C, T, H*W) channels-last; weight: (C, C, K, 1), K odd; bias: (C,).
    """
    if _is_plain_cpu(clip):
        return TemporalConvolution.apply(clip, weight, bias)
    return F.conv2d(clip, weight, bias, padding=(weight.shape[2] // 2, 0))


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(channels)) v, for q, k, v of (rows, heads, length, channels of a head)."""
    fused: Callable[..., Tensor] = F.scaled_dot_product_attention
    rows, heads, length, channels = q.shape
    # Over a few frames the fused kernel takes twice as long on a CPU as plain matrix products.
    if q.device.type == "cpu" and length <= SHORT_SEQUENCE and not causal:
        return torch.softmax((q * channels**-0.5) @ k.transpose(-1, -2), dim=-1) @ v
    if rows * heads <= GRID_LIMIT:
        return fused(q, k, v, is_causal=causal)
    # Spatial attention over long clips has more rows than one launch takes.
    chunk = max(1, GRID_LIMIT // heads)
    parts = zip(q.split(chunk), k.split(chunk), v.split(chunk), strict=True)
    return torch.cat([fused(*part, is_causal=causal) for part in parts])


def _is_plain_cpu(x: Tensor) -> bool:
    """Whether x is on a CPU outside autocast, which is what the CPU kernels are written for."""
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
