"""Pseudo-3D layers (Make-A-Video sections 3.2.1 and 3.2.2): a layer over space, then one over time that starts as the identity.

One layout serves the whole network: activations are (B*T, C, H, W) in channels-last memory, which is (B, T, H*W, C) to anyone who looks
at it through a view. A convolution over time is then a 2-D convolution with kernel (3, 1) on a view (B, C, T, H*W), and linear layers,
norms and modulation act on the last dimension: nothing is copied to reach either axis. `frames` is T; 0 means that time is switched off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mav.models.kernels import cpu as on_cpu
from mav.models.kernels.layout import as_images, as_rows

Layer = TypeVar("Layer", bound=nn.Module)

FEW = 32  # tokens: up to here attention on a CPU is quicker as matrix products
GRID_LIMIT = 65_535  # rows x heads one launch of the fused attention kernels can take


class FrameNorm(nn.GroupNorm):
    """GroupNorm with statistics per frame, never over frames: at most 32 groups, at least 4 channels each, `parts` parts of whole groups.

    Without `affine` the scale and shift of a channel come from a condition, per clip.
    """

    def __init__(self, channels: int, parts: int = 1, affine: bool = True) -> None:
        groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0 and g % parts == 0)
        super().__init__(groups, channels, affine=affine)

    def forward(self, x: Tensor, silu: bool = False) -> Tensor:
        """x: (B*T, C, H, W) channels-last. With `silu`, a SiLU of the norm."""
        return self.of_parts([x], silu)[0]

    def of_parts(self, parts: list[Tensor], silu: bool = False) -> list[Tensor]:
        """The norm of what would be one input, were its channels laid side by side."""
        widths = [part.shape[1] for part in parts]
        own = zip(parts, self.weight.split(widths), self.bias.split(widths), strict=True)
        size = self.num_channels // self.num_groups
        return [_frame_norm(part, part.shape[1] // size, self.eps, weight, bias, silu) for part, weight, bias in own]

    def modulated(self, x: Tensor, scale: Tensor, shift: Tensor, silu: bool = False) -> Tensor:
        """x: (B*T, C, H, W) channels-last; scale, shift: (B, C)."""
        return _frame_norm(x, self.num_groups, self.eps, scale, shift, silu)


def _frame_norm(x: Tensor, groups: int, eps: float, scale: Tensor, shift: Tensor, silu: bool) -> Tensor:
    """x: (N, C, H, W); scale, shift: (C,), or (B, C), each for N / B images."""
    if _plain_cpu(x):
        return on_cpu.norm(x, groups, eps, scale, shift, silu)
    if scale.ndim == 1:
        y = F.group_norm(x, groups, scale, shift, eps)
    else:
        y = as_images(as_rows(F.group_norm(x, groups, eps=eps), len(scale)) * scale[:, None] + shift[:, None], x)
    return F.silu(y) if silu else y


def _plain_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def zero(layer: Layer) -> Layer:
    """The layer with all its parameters at zero, so that the branch it ends starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def sinusoid(position: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """(B,) positions to (B, dim) cosines and sines of geometrically spaced frequencies, in float32."""
    half = dim // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, device=position.device, dtype=torch.float32) / half
    )
    angles = position.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, dim % 2))


class _TemporalConvOnCpu(torch.autograd.Function):
    """conv2d with kernel (K, 1) whose weight gradient is K matrix products, one a tap: the CPU's own kernel for it is 3 to 4 times slower.

    A tap meets the input shifted by whole frames, and a frame is one contiguous matrix (H*W, C): nothing is copied.
    """

    @staticmethod
    def forward(ctx: Any, clip: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """clip: (B, C, T, H*W) channels-last; weight: (C, C, K, 1), K odd; bias: (C,)."""
        ctx.save_for_backward(clip, weight)
        return F.conv2d(clip, weight, bias, padding=(weight.shape[2] // 2, 0))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        clip, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        half = weight.shape[2] // 2
        to_clip = None
        if ctx.needs_input_grad[0]:
            to_clip = torch.ops.aten.convolution_backward(
                gradient, clip, weight, None, [1, 1], [half, 0], [1, 1], False, [0, 0], 1, [True, False, False]
            )[0]
        x, g = clip.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)  # (B, T, H*W, C), contiguous
        taps = x.new_zeros(2 * half + 1, g.shape[-1], x.shape[-1])
        some = max(1, on_cpu.CACHE // g[:, 0].nbytes)  # frames that the cache holds while the taps take turns on them
        for start in range(0, g.shape[1], some):
            for shift, tap in zip(range(-half, half + 1), taps, strict=True):
                tap += _tap_gradient(x, g, shift, start, start + some)
        return to_clip, taps.permute(1, 2, 0).unsqueeze(-1), g.sum(dim=(0, 1, 2))


def _tap_gradient(x: Tensor, g: Tensor, shift: int, start: int, stop: int) -> Tensor:
    """The gradient (C_out, C_in) of the tap that reads the input `shift` frames later, of frames start to stop; x, g: (B, T, P, C)."""
    frames = x.shape[1]
    start, stop = max(start, -shift), min(stop, frames, frames - shift)
    if start >= stop:
        return x.new_zeros(g.shape[-1], x.shape[-1])
    return torch.bmm(
        g[:, start:stop].flatten(1, 2).transpose(1, 2), x[:, start + shift : stop + shift].flatten(1, 2)
    ).sum(dim=0)


class TemporalConv(nn.Module):
    """A convolution over T frames at each pixel, the identity at first: Dirac kernel at the centre tap, zero bias."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, kernel, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.dirac_(self.weight)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x: (B*T, C, H, W) channels-last."""
        n, c, h, w = x.shape
        clip = (
            x.permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c).permute(0, 3, 1, 2)
        )  # (B, C, T, H*W), channels-last
        if _plain_cpu(x):
            y = _TemporalConvOnCpu.apply(clip, self.weight, self.bias)
        else:
            y = F.conv2d(clip, self.weight, self.bias, padding=(self.weight.shape[2] // 2, 0))
        return y.permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)


class PseudoConv3d(nn.Module):
    """A convolution over space, then one over time (paper 3.2.1); with `video` false only the first exists."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, video: bool) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
        self.temporal = TemporalConv(outputs) if video else None

    def forward(self, parts: list[Tensor], frames: int) -> Tensor:
        """parts: (B*T, C_i, H, W) each, together the input channels."""
        x = convolve(self.spatial, parts)
        return self.temporal(x, frames) if self.temporal is not None and frames else x


def convolve(layer: nn.Conv2d, parts: list[Tensor]) -> Tensor:
    """The convolution of what would be one input, were its channels laid side by side: a sum over the parts, and no copy of them."""
    weights = layer.weight.split([part.shape[1] for part in parts], dim=1)
    y = F.conv2d(parts[0], weights[0], layer.bias, layer.stride, layer.padding)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        y = y + F.conv2d(part, weight, None, layer.stride, layer.padding)
    return y


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Fused attention over (rows, heads, length, head channels), in chunks of rows that respect the kernels' grid limit.

    On a CPU, over a few frames, it is two small matrix products: the fused kernel takes twice as long there.
    """
    attention: Callable[..., Tensor] = F.scaled_dot_product_attention
    rows, heads = q.shape[:2]
    if q.device.type == "cpu" and q.shape[2] <= FEW and not causal:
        return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1) @ v
    if rows * heads <= GRID_LIMIT:
        return attention(q, k, v, is_causal=causal)
    chunk = max(1, GRID_LIMIT // heads)
    parts = zip(q.split(chunk), k.split(chunk), v.split(chunk), strict=True)
    return torch.cat([attention(*part, is_causal=causal) for part in parts])


class HeadNorm(nn.Module):
    """LayerNorm of each head's channels, with a scale: keeps attention logits bounded in reduced precision."""

    def __init__(self, head_channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(head_channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.scale)


class SelfAttention(nn.Module):
    """Multi-head attention over (rows, length, channels), optionally reading context tokens beside its own (as unCLIP's decoder does)."""

    def __init__(
        self, channels: int, head_channels: int, context_channels: int = 0, *, zero_output: bool = True
    ) -> None:
        super().__init__()
        self.heads = max(1, channels // head_channels)
        if channels % self.heads:
            raise ValueError(f"{channels} channels do not divide into heads of {head_channels}")
        self.qkv = nn.Linear(channels, 3 * channels)
        self.context = nn.Linear(context_channels, 2 * channels) if context_channels else None
        self.query_norm = HeadNorm(channels // self.heads)
        self.key_norm = HeadNorm(channels // self.heads)
        output = nn.Linear(channels, channels)
        self.output = zero(output) if zero_output else output

    def forward(self, x: Tensor, context: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """x: (rows, length, C). context: (clips, tokens, D) with rows = clips * T; it is projected once a clip and shared by its frames."""
        rows, length, channels = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.context is not None and context is not None:
            clips, tokens = context.shape[:2]
            both = self.context(context).view(clips, 1, tokens, 2, self.heads, -1)
            both = both.expand(-1, rows // clips, -1, -1, -1, -1).reshape(rows, tokens, 2, self.heads, -1)
            more_k, more_v = both.permute(2, 0, 3, 1, 4)
            k, v = torch.cat([more_k, k], dim=2), torch.cat([more_v, v], dim=2)
        y = attend(self.query_norm(q), self.key_norm(k), v, causal=causal)
        return self.output(y.transpose(1, 2).reshape(rows, length, channels))


class PseudoAttention3d(nn.Module):
    """Attention over space, then over time (paper 3.2.2). The temporal output projection starts at zero: the pair starts as the first."""

    def __init__(self, channels: int, head_channels: int, context_channels: int, max_frames: int) -> None:
        super().__init__()
        self.norm = FrameNorm(channels)
        self.spatial = SelfAttention(channels, head_channels, context_channels)
        self.temporal = TemporalAttention(channels, head_channels, max_frames) if max_frames else None

    def forward(self, x: Tensor, context: Tensor | None, frames: int) -> Tensor:
        rows = as_rows(self.norm(x), x.shape[0])
        x = x + as_images(self.spatial(rows, context), x)
        return self.temporal(x, frames) if self.temporal is not None and frames else x


class TemporalAttention(nn.Module):
    """Attention over the frames of each pixel, told each frame's place by a learned embedding; adds nothing at first."""

    def __init__(self, channels: int, head_channels: int, max_frames: int) -> None:
        super().__init__()
        self.norm = FrameNorm(channels)
        self.position = nn.Parameter(sinusoid(torch.arange(max_frames), channels, max_period=10.0 * max_frames))
        self.attention = SelfAttention(channels, head_channels)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x: (B*T, C, H, W) channels-last. Two copies in all: frames to the inside, and back."""
        n, c, h, w = x.shape
        rows = self.norm(x).permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c) + self.position[:frames, None]
        y = self.attention(rows.transpose(1, 2).reshape(-1, frames, c))
        y = y.view(n // frames, h * w, frames, c).transpose(1, 2)
        return x + as_images(y, x)
