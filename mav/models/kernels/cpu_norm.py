"""Group norm on a CPU in float32 and float64, where the gradients of PyTorch and of inductor take twice as long."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mav.models.kernels.layout import CACHE_BYTES, as_rows


def norm(x: Tensor, groups: int, eps: float, scale: Tensor, shift: Tensor, silu: bool) -> Tensor:
    """Computes what `dispatch.frame_norm` describes."""
    return _Norm.apply(x, groups, eps, scale, shift, silu)


def _forward(
    x: Tensor, groups: int, eps: float, scale: Tensor, shift: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the output, and the mean and the reciprocal standard deviation of each group, (N, groups) each."""
    n, c, h, w = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = (scale, shift) if scale.ndim == 1 else (None, None)
    y, mean, rstd = torch.native_group_norm(x, weight, bias, n, c, h * w, groups, eps)
    if scale.ndim == 2:
        rows = as_rows(y, n)
        torch.addcmul(_per_image(shift, n), rows, _per_image(scale, n), out=rows)
    return F.silu(y, inplace=True) if silu else y, mean, rstd


def _backward(
    gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, scale and shift, in a few passes over as many images at a time as the cache holds.

    The input of the SiLU is computed again instead of being kept.
    """
    (n, c, h, w), groups = x.shape, mean.shape[1]
    to_x, sums = torch.empty_like(x, memory_format=torch.channels_last), x.new_empty(n, 2, c)
    # The output before the SiLU is offset + slope * x.
    mean, rstd = _per_channel(mean, c // groups), _per_channel(rstd, c // groups)
    slope = _per_image(scale, n) * rstd
    offset = torch.addcmul(_per_image(shift, n), mean, slope, value=-1)
    # Attention over time returns a gradient with frames innermost.
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    all_images = (as_rows(to_x, n), sums, as_rows(gradient, n), as_rows(x, n), mean, rstd, slope, offset)
    step = max(1, CACHE_BYTES // (c * h * w * x.element_size()))
    for images in zip(*(tensor.split(step) for tensor in all_images), strict=True):
        _backward_into(*images, groups=groups, silu=silu)
    # A scale and a shift of (B, C) get their sums over each clip's images, those of (C,) over all images.
    to_scale, to_shift = (
        total.reshape(scale.numel() // c, -1, c).sum(dim=1).view_as(scale) for total in sums.unbind(dim=1)
    )
    return to_x, to_scale, to_shift


def _backward_into(
    to_x: Tensor, sums: Tensor, g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, slope: Tensor, offset: Tensor, *,
    groups: int, silu: bool,
) -> None:  # fmt: skip
    """Fills to_x (N, H*W, C), and sums (N, 2, C): of gradient * normalised input and of gradient, over pixels."""
    n, pixels, c = x.shape
    size = c // groups
    if silu:
        g = torch.ops.aten.silu_backward(g, torch.addcmul(offset, x, slope, out=to_x))
    total = g.sum(dim=1, keepdim=True)
    along = (torch.mul(g, x, out=to_x).sum(dim=1, keepdim=True) - mean * total) * rstd
    torch.cat([along, total], dim=1, out=sums)
    # The statistics are functions of x too: their share of the gradient is linear in x, with one line for each group.
    by_group = (sums * slope).view(n, 2, groups, size).sum(dim=3)
    linear, constant = _per_channel(by_group.flatten(1) / -(pixels * size), size).view(n, 2, c).split(1, dim=1)
    linear = linear * rstd
    torch.addcmul(torch.addcmul(constant, mean, linear, value=-1), g, slope, out=to_x).addcmul_(x, linear)


def _per_image(of_clips: Tensor, images: int) -> Tensor:
    """Expands (C,) for all images, or (B, C) for the images of each clip, to (N, 1, C)."""
    c = of_clips.shape[-1]
    of_clips = of_clips.reshape(-1, 1, c)
    return of_clips.expand(-1, images // len(of_clips), c).reshape(images, 1, c)


def _per_channel(of_groups: Tensor, size: int) -> Tensor:
    """Expands (N, groups) to (N, 1, C), with C = groups * size."""
    n, groups = of_groups.shape
    return of_groups[:, :, None].expand(n, groups, size).reshape(n, 1, groups * size)


class _Norm(torch.autograd.Function):
    """The norm. A registered operator would cost small networks a tenth of their time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, eps: float, scale: Tensor, shift: Tensor, silu: bool) -> Tensor:
        y, mean, rstd = _forward(x, groups, eps, scale, shift, silu)
        ctx.save_for_backward(x, mean, rstd, scale, shift)
        ctx.silu = silu
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, scale, shift = ctx.saved_tensors
        to_x, to_scale, to_shift = _backward(gradient, x, mean, rstd, scale, shift, ctx.silu)
        return to_x, None, None, to_scale, to_shift, None
