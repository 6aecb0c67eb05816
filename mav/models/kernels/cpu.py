"""Group norm on a CPU in float32 and float64, where PyTorch's own gradient of it, and inductor's loops for it, take twice as long."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mav.models.kernels.layout import as_rows

CACHE = (
    2**21
)  # bytes of one tensor, of the few that a gradient works on at a time: those of norms, and of taps over time


def norm(x: Tensor, groups: int, eps: float, scale: Tensor, shift: Tensor, silu: bool) -> Tensor:
    """Group norm with its scale and shift, then a SiLU where asked.

    x: (N, C, H, W); scale, shift: (C,), or (B, C), each row for N / B images.
    """
    if torch.compiler.is_compiling():
        return _norm_operator(x, groups, eps, scale, shift, silu)[0]
    y: Tensor = _Norm.apply(x, groups, eps, scale, shift, silu)
    return y


def _forward(
    x: Tensor, groups: int, eps: float, scale: Tensor, shift: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Also the statistics, (N, groups) each."""
    n, c, h, w = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = (scale, shift) if scale.ndim == 1 else (None, None)
    y, mean, rstd = torch.native_group_norm(x, weight, bias, n, c, h * w, groups, eps)
    if scale.ndim == 2:
        rows = as_rows(y, n)
        torch.addcmul(_each(shift, n), rows, _each(scale, n), out=rows)
    return F.silu(y, inplace=True) if silu else y, mean, rstd


def _backward(
    gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, scale and shift, from sums over pixels and a few passes over as many images as the cache holds.

    What entered the SiLU is computed again, not kept.
    """
    (n, c, h, w), groups = x.shape, mean.shape[1]
    to_x, sums = torch.empty_like(x, memory_format=torch.channels_last), x.new_empty(n, 2, c)
    mean, rstd = _every(mean, c // groups), _every(rstd, c // groups)
    slope = _each(scale, n) * rstd
    level = torch.addcmul(_each(shift, n), mean, slope, value=-1)  # the norm is level + slope x
    gradient = gradient.contiguous(memory_format=torch.channels_last)  # attention over time gives it frames innermost
    all_images = (as_rows(to_x, n), sums, as_rows(gradient, n), as_rows(x, n), mean, rstd, slope, level)
    some = max(1, CACHE // (c * h * w * x.element_size()))
    for images in zip(*(tensor.split(some) for tensor in all_images), strict=True):
        _backward_into(*images, groups=groups, silu=silu)
    to_scale, to_shift = (
        total.reshape(scale.numel() // c, -1, c).sum(dim=1).view_as(scale) for total in sums.unbind(dim=1)
    )
    return to_x, to_scale, to_shift


def _backward_into(
    to_x: Tensor,
    sums: Tensor,
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    slope: Tensor,
    level: Tensor,
    *,
    groups: int,
    silu: bool,
) -> None:
    """Fills to_x (N, H*W, C) and sums (N, 2, C): over an image's pixels, of gradient x normalised input and of the gradient."""
    n, pixels, c = x.shape
    size = c // groups
    if silu:
        g = torch.ops.aten.silu_backward(g, torch.addcmul(level, x, slope, out=to_x))
    total = g.sum(dim=1, keepdim=True)
    along = (torch.mul(g, x, out=to_x).sum(dim=1, keepdim=True) - mean * total) * rstd
    torch.cat([along, total], dim=1, out=sums)
    by_group = (sums * slope).view(n, 2, groups, size).sum(dim=3)
    curve, bend = _every(by_group.flatten(1) / -(pixels * size), size).view(n, 2, c).split(1, dim=1)
    curve = curve * rstd
    torch.addcmul(torch.addcmul(bend, mean, curve, value=-1), g, slope, out=to_x).addcmul_(x, curve)


def _each(of_clips: Tensor, images: int) -> Tensor:
    """(C,) of all or (B, C) of clips to (N, 1, C) of their images."""
    c = of_clips.shape[-1]
    of_clips = of_clips.reshape(-1, 1, c)
    return of_clips.expand(-1, images // len(of_clips), c).reshape(images, 1, c)


def _every(of_groups: Tensor, size: int) -> Tensor:
    """(N, groups) to (N, 1, C), C = groups * size."""
    n, groups = of_groups.shape
    return of_groups[:, :, None].expand(n, groups, size).reshape(n, 1, groups * size)


class _Norm(torch.autograd.Function):
    """For eager networks: a registered operator costs small ones a tenth of their time."""

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


# The same for compiled networks, as operators that inductor does not look into.
_norm_operator = torch.library.custom_op("mav::norm", _forward, mutates_args=())
_norm_gradient = torch.library.custom_op("mav::norm_gradient", _backward, mutates_args=())


@_norm_operator.register_fake
def _(x: Tensor, groups: int, eps: float, scale: Tensor, shift: Tensor, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty(len(x), groups)
    return torch.empty_like(x, memory_format=torch.channels_last), statistics, torch.empty_like(statistics)


@_norm_gradient.register_fake
def _(
    gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(scale), torch.empty_like(shift)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _, _, scale, shift, ctx.silu = inputs
    ctx.save_for_backward(x, output[1], output[2], scale, shift)


def _give_back(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    to_x, to_scale, to_shift = _norm_gradient(gradient, *ctx.saved_tensors, ctx.silu)
    return to_x, None, None, to_scale, to_shift, None


_norm_operator.register_autograd(_give_back, setup_context=_keep)
