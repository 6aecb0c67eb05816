"""Group norm on a CPU in float32 and float64, where PyTorch's own gradient of it, and inductor's loops for it, take twice as long."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def norm(x: Tensor, groups: int, eps: float, scale: Tensor, shift: Tensor, silu: bool) -> Tensor:
    """Group norm with its scale and shift, then a SiLU where asked. x: (N, C, H, W); scale, shift: (B, C), each for N / B images."""
    if torch.compiler.is_compiling():
        return _norm_operator(x, groups, eps, scale, shift, silu)[0]
    y: Tensor = _Norm.apply(x, groups, eps, scale, shift, silu)
    return y


def _forward(x: Tensor, groups: int, eps: float, scale: Tensor, shift: Tensor, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Also the statistics, (N, groups) each."""
    n, c, h, w = x.shape
    y, mean, rstd = torch.native_group_norm(x.contiguous(memory_format=torch.channels_last), None, None, n, c, h * w, groups, eps)
    _rows(y).mul_(_each(scale, n)).add_(_each(shift, n))
    return F.silu(y, inplace=True) if silu else y, mean, rstd


def _backward(
    gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, scale and shift, from sums over pixels and a few passes. What entered the SiLU is computed again, not kept."""
    (n, c, h, w), (b, groups) = x.shape, (len(scale), mean.shape[1])
    size = c // groups
    g = _rows(gradient.contiguous(memory_format=torch.channels_last))  # attention over time gives it frames innermost
    pixels, mean, rstd = _rows(x), _every(mean, size), _every(rstd, size)
    scale, shift = _each(scale, n), _each(shift, n)
    slope = scale * rstd
    if silu:
        g = torch.ops.aten.silu_backward(g, torch.addcmul(torch.addcmul(shift, mean, slope, value=-1), pixels, slope))
    total = g.sum(dim=1, keepdim=True)  # (N, 1, C): over an image's pixels
    along = ((g * pixels).sum(dim=1, keepdim=True) - mean * total) * rstd  # sums of gradient x normalised input
    by_group = (torch.cat([along, total], dim=1) * slope).view(n, 2, groups, size).sum(dim=3)
    curve, level = _every(by_group.flatten(1) / -(h * w * size), size).view(n, 2, c).split(1, dim=1)
    curve = curve * rstd
    to_x = torch.addcmul(torch.addcmul(level, mean, curve, value=-1), g, slope).addcmul_(pixels, curve)
    to_x = to_x.view(n, h, w, c).permute(0, 3, 1, 2)
    return to_x, along.view(b, n // b, c).sum(dim=1), total.view(b, n // b, c).sum(dim=1)


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H*W, C): a view of a channels-last one."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _each(of_clips: Tensor, images: int) -> Tensor:
    """(B, C) of clips to (N, 1, C) of their images."""
    b, c = of_clips.shape
    return of_clips[:, None].expand(b, images // b, c).reshape(images, 1, c)


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
def _(gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(scale), torch.empty_like(shift)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _, _, scale, shift, ctx.silu = inputs
    ctx.save_for_backward(x, output[1], output[2], scale, shift)


def _give_back(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    to_x, to_scale, to_shift = _norm_gradient(gradient, *ctx.saved_tensors, ctx.silu)
    return to_x, None, None, to_scale, to_shift, None


_norm_operator.register_autograd(_give_back, setup_context=_keep)
