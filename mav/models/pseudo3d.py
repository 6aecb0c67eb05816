"""Pseudo-3D layers (Make-A-Video sections 3.2.1 and 3.2.2): a layer over space, then a layer over time.

The layer over time starts as the identity. The whole network has one layout. Activations are (B*T, C, H, W) in
channels-last memory, which a view shows as (B, T, H*W, C). A convolution over time is then a 2-D convolution with
kernel (3, 1) over a view (B, C, T, H*W), and linear layers, norms and modulation act on the last dimension, so no copy
is needed to reach either axis. `frames` is T; with 0 time is switched off.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mav.models.kernels.dispatch import (
    adds_bias_later,
    attention_of_rows,
    attention_over_frames,
    frame_norm,
    gated_sum,
    gated_temporal_convolution,
    temporal_convolution,
)  # fmt: skip
from mav.models.kernels.layout import as_clips, as_images, as_rows, at_center

Layer = TypeVar("Layer", bound=nn.Module)


def zero(layer: Layer) -> Layer:
    """Sets all parameters of a layer to zero and returns it, so that the branch which it ends adds nothing at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def sinusoid(position: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Cosines and sines of (B,) positions at geometrically spaced frequencies: (B, dim), in float32."""
    half = dim // 2
    steps = torch.arange(half, device=position.device, dtype=torch.float32)
    angles = position.float()[:, None] * torch.exp(-math.log(max_period) * steps / half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, dim % 2))


def rate_features(fps: Tensor) -> Tensor:
    """Frame rates (B,) as smooth numbers of about unit size, (B, 3), in float32: what a `RateGate` reads."""
    octaves = torch.log2(fps.float() / 8)
    return torch.stack([octaves, octaves.square(), torch.exp2(-octaves)], dim=1)


class RateGate(nn.Module):
    """A factor for each channel of what a layer over time adds. It follows the clip's frame rate and starts at one.

    How alike successive frames are depends on the time between them. As an addition to the time embedding alone, the
    rate is ignored even after a long training, and all clips get the mean speed. Its weights start at zero, and a short
    training leaves them few steps to grow in, so they have a gain, which acts like a higher learning rate.
    """

    GAIN = 30.0

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = zero(nn.Linear(3, channels))

    def forward(self, rate: Tensor) -> Tensor:
        """rate: (B, 3) of `rate_features`. Returns (B, channels)."""
        return 1 + self.GAIN * self.layer(rate.to(self.layer.weight.dtype))


class FrameNorm(nn.GroupNorm):
    """GroupNorm whose statistics are per frame, never over frames: at most 32 groups of at least 4 channels.

    The groups divide evenly among `parts`, the parts of the input. Without `affine` the scale and the shift of a
    channel come from a condition of the clip.
    """

    def __init__(self, channels: int, parts: int = 1, affine: bool = True) -> None:
        groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0 and g % parts == 0)
        super().__init__(groups, channels, affine=affine)

    def forward(self, x: Tensor, silu: bool = False) -> Tensor:
        """x: (B*T, C, H, W) channels-last. With `silu`, returns a SiLU of the norm."""
        return self.of_parts([x], silu)[0]

    def of_parts(self, parts: list[Tensor], silu: bool = False) -> list[Tensor]:
        """Returns the norm of the concatenated parts, in parts that together are its channels."""
        size = self.num_channels // self.num_groups
        return frame_norm(parts, size, self.eps, self.weight, self.bias, silu)

    def modulated(self, x: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, silu: bool = False) -> Tensor:
        """x: (B*T, C, H, W) channels-last; bias: of `PseudoConv3d.without_bias`; scale, shift: (B, C)."""
        return frame_norm([x], self.num_channels // self.num_groups, self.eps, scale, shift, silu, bias)[0]


# ----------------------------------------------------------------------------------------- convolutions (section 3.2.1)


class PseudoConv3d(nn.Module):
    """A convolution over space, then a convolution over time; with `video` false only the first exists."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, video: bool) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.temporal = TemporalConv(outputs) if video else None

    def forward(self, parts: list[Tensor], frames: int, rate: Tensor | None = None) -> Tensor:
        """parts: (B*T, C_i, H, W) each, which together are the input channels. rate: see `TemporalConv`."""
        x = convolve(self.spatial, parts, self.spatial.bias)
        return self.temporal(x, frames, rate) if self.temporal is not None and frames else x

    def without_bias(
        self, parts: list[Tensor], frames: int, rate: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The same without its bias, which is returned too: (F, C), to be added to image n by row n mod F.

        A GPU adds it for nothing in the next norm or sum. Elsewhere the bias is added here, and None is returned.
        """
        if not adds_bias_later(parts[0]):
            return self(parts, frames, rate), None
        assert self.spatial.bias is not None
        x, bias = convolve(self.spatial, parts, None), self.spatial.bias[None]
        if self.temporal is None or not frames:
            return x, bias
        # What the second layer makes of the first one's bias: a clip that is the bias everywhere, seen at one pixel.
        rows = frames if rate is None or len(rate) == 1 else len(x)  # gates differ from clip to clip
        bias = self.temporal(bias[:, :, None, None].expand(rows, -1, -1, -1), frames, rate).flatten(1)
        return self.temporal(x, frames, rate, with_bias=False), bias


class TemporalConv(nn.Module):
    """A convolution over T frames at each pixel. It starts as the identity: a Dirac kernel and zero bias."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, kernel, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.dirac_(self.weight)
        self.gate = RateGate(channels)

    def forward(self, x: Tensor, frames: int, rate: Tensor | None = None, *, with_bias: bool = True) -> Tensor:
        """x: (B*T, C, H, W) channels-last. rate: (B, 3) of `rate_features`; None leaves the gate open."""
        clip = as_clips(x, frames).permute(0, 3, 1, 2)  # (B, C, T, H*W), channels-last
        gate = None if rate is None else self.gate(rate)
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if gate is not None and len(gate) == 1:  # one rate's can be in the weights, which saves a pass over the clips
            weight, bias = self._gated(gate[0])
            gate = None
        added = bias if with_bias else None
        if gate is None:
            y = temporal_convolution(clip, weight, added)
        else:
            y = gated_temporal_convolution(clip, weight, added, gate)
        return as_images(y.permute(0, 2, 3, 1), x)

    def _gated(self, gate: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer that adds the share `gate` (C,) of what this one does."""
        gate = gate.to(self.weight.dtype)
        kept = at_center((1 - gate).diag(), self.weight.shape[2])
        return self.weight * gate[:, None, None, None] + kept, self.bias * gate


def convolve(layer: nn.Conv2d, parts: list[Tensor], bias: Tensor | None) -> Tensor:
    """The convolution of the concatenated parts, as a sum over the parts, which saves the concatenation."""
    first, *rest = convolve_each(layer, parts, bias)
    for term in rest:
        first = first + term
    return first


def convolve_each(layer: nn.Conv2d, parts: list[Tensor], bias: Tensor | None) -> list[Tensor]:
    """The terms of that sum, of which the first has the bias."""
    weights = layer.weight.split([part.shape[1] for part in parts], dim=1)
    biases = [bias, *[None] * (len(parts) - 1)]
    return [
        F.conv2d(part, weight, one, layer.stride, layer.padding)
        for part, weight, one in zip(parts, weights, biases, strict=True)
    ]


# -------------------------------------------------------------------------------------------- attention (section 3.2.2)


class PseudoAttention3d(nn.Module):
    """Attention over space, then over time. The output of the second starts at zero, so at first it adds nothing."""

    def __init__(self, channels: int, head_channels: int, context_channels: int, max_frames: int) -> None:
        super().__init__()
        self.norm = FrameNorm(channels)
        self.spatial = SelfAttention(channels, head_channels, context_channels)
        self.temporal = TemporalAttention(channels, head_channels, max_frames) if max_frames else None

    def forward(self, x: Tensor, context: Tensor | None, frames: int, rate: Tensor | None = None) -> Tensor:
        """x: (B*T, C, H, W) channels-last; context: (B, tokens, D) or None; rate: see `TemporalConv`."""
        rows = as_rows(self.norm(x), x.shape[0])
        x = x + as_images(self.spatial(rows, context), x)
        return self.temporal(x, frames, rate) if self.temporal is not None and frames else x


class TemporalAttention(nn.Module):
    """Attention over the frames of each pixel, with a learned embedding of each frame's position."""

    def __init__(self, channels: int, head_channels: int, max_frames: int) -> None:
        super().__init__()
        self.norm = FrameNorm(channels)
        self.position = nn.Parameter(sinusoid(torch.arange(max_frames), channels, max_period=10.0 * max_frames))
        self.attention = SelfAttention(channels, head_channels)
        self.gate = RateGate(channels)

    def forward(self, x: Tensor, frames: int, rate: Tensor | None = None) -> Tensor:
        """x: (B*T, C, H, W) channels-last. rate: see `TemporalConv`."""
        clips = as_clips(self.norm(x), frames)
        clips = clips + self.position[:frames, None].to(clips.dtype)
        y = self.attention.over_frames(clips)
        if rate is None:
            return x + as_images(y, x)
        total = gated_sum(as_clips(x, frames).permute(0, 3, 1, 2), y.permute(0, 3, 1, 2), self.gate(rate))
        return as_images(total.permute(0, 2, 3, 1), x)


class SelfAttention(nn.Module):
    """Multi-head attention over (rows, length, channels) that can also read context tokens, as in unCLIP's decoder."""

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
        """x: (rows, length, C); context: (clips, tokens, D), shared by the rows / clips rows of each clip."""
        tokens = None if self.context is None or context is None else self.context(context)
        scales = self.query_norm.scale, self.key_norm.scale
        return self.output(attention_of_rows(self.qkv(x), tokens, *scales, self.heads, causal=causal))

    def over_frames(self, clips: Tensor) -> Tensor:
        """The same over the frames of each pixel. clips: (B, T, P, C)."""
        scales = self.query_norm.scale, self.key_norm.scale
        return self.output(attention_over_frames(clips, self.qkv, *scales, self.heads))


class HeadNorm(nn.Module):
    """The scale of a LayerNorm of each head's channels, which keeps attention logits bounded in reduced precision."""

    def __init__(self, head_channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(head_channels))
