"""Group norm on a GPU over rows of channels: statistics, scale, shift and SiLU without leaving the precision of x.

Each direction is three launches: sums of parts of an image, what they give for each channel, and one pass that applies
it. Every sum has a fixed order, so that a result is the same each time. The forward pass keeps x and a few numbers of
each channel; the normalised values are computed again. A bias that a convolution before the norm left out costs
nothing here: it moves the numbers of a channel.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from mav.models.kernels.gpu.norm_kernels import (
    apply_kernel,
    gradient_kernel,
    gradient_statistics_kernel,
    gradient_sum_kernel,
    statistics_kernel,
    sum_kernel,
)  # fmt: skip
from mav.models.kernels.gpu.tiles import TILE, grid_of, in_rows, pitch_of


class _Kept:
    """What the backward pass needs of a part beside x: four numbers of each channel and one of each group."""

    def __init__(self, x: Tensor, size: int, numbers: Tensor | None = None) -> None:
        n, c = x.shape[:2]
        sizes = (n * c, n * c, n * c, n * c, n * c // size)
        self.numbers = x.new_empty(sum(sizes), dtype=torch.float32) if numbers is None else numbers
        self.slope, self.offset, self.center, self.away, self.rstd = self.numbers.split(sizes)


def _blocks(size: int, chunks: int) -> dict[str, int]:
    return {"SIZE": size, "BLOCK": triton.next_power_of_2(size), "PARTS": triton.next_power_of_2(chunks)}


def _rows(of_clips: Tensor) -> int:
    """The rows of a scale: one for all images, or one for the images of each clip."""
    return len(of_clips) if of_clips.ndim == 2 else 1


def _forward_into(
    y: Tensor, x: Tensor, size: int, eps: float, scale: Tensor, shift: Tensor, bias: Tensor | None, silu: bool
) -> Tensor:
    """Writes the norm of one part x (N, C, H, W) into y and returns what is kept of it."""
    (n, c, h, w), (grid, chunk) = x.shape, grid_of(x)
    kept, partial = _Kept(x, size), x.new_empty(n, grid[1], 2, c, dtype=torch.float32)
    pixels, pitch = h * w, pitch_of(x)
    sum_kernel[grid](x, partial, pixels, c, pitch, chunk, **TILE)
    statistics_kernel[(n, c // size)](
        x, partial, scale if bias is None else bias, scale, shift, kept.slope, kept.offset, kept.center, kept.away,
        kept.rstd, pixels, c, pitch, grid[1], n // _rows(scale), 1 if bias is None else len(bias), eps,
        BIAS=bias is not None, **_blocks(size, grid[1]), num_warps=1,
    )  # fmt: skip
    apply_kernel[grid](x, kept.slope, kept.offset, y, pixels, c, pitch, pitch_of(y), chunk, SILU=silu, **TILE)
    return kept.numbers


def _backward_of(g: Tensor, x: Tensor, size: int, numbers: Tensor, scale: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    """The gradient of one part x, and (N, 3, C): of each image the gradients of scale, shift and bias."""
    (n, c, h, w), (grid, chunk) = x.shape, grid_of(x)
    kept, partial = _Kept(x, size, numbers), x.new_empty(n, grid[1], 2, c, dtype=torch.float32)
    sums, share = x.new_empty(n, 3, c, dtype=torch.float32), x.new_empty(2, n, c, dtype=torch.float32)
    pixels, pitch, g_pitch = h * w, pitch_of(x), pitch_of(g)
    gradient_sum_kernel[grid](
        x, g, kept.slope, kept.offset, kept.center, kept.rstd, partial, pixels, c, pitch, g_pitch, chunk, size,
        SILU=silu, **TILE,
    )  # fmt: skip
    gradient_statistics_kernel[(n, c // size)](
        partial, scale, kept.center, kept.away, kept.rstd, sums, share[0], share[1], pixels, c, grid[1],
        n // _rows(scale), **_blocks(size, grid[1]), num_warps=1,
    )  # fmt: skip
    to_x = torch.empty((n, c, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    gradient_kernel[grid](
        x, g, kept.slope, kept.offset, share[0], share[1], to_x, pixels, c, pitch, g_pitch, chunk, SILU=silu, **TILE
    )
    return to_x, sums


def _widths(parts: list[Tensor]) -> list[int]:
    return [part.shape[1] for part in parts]


def _joined(parts: list[Tensor]) -> Tensor:
    """An empty tensor for all parts side by side."""
    n, _, h, w = parts[0].shape
    shape = (n, sum(_widths(parts)), h, w)
    return torch.empty(shape, dtype=parts[0].dtype, device=parts[0].device, memory_format=torch.channels_last)


@torch.library.custom_op("mav::rows_norm", mutates_args=())
def rows_norm(
    parts: list[Tensor], size: int, eps: float, scale: Tensor, shift: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, list[Tensor]]:
    """Group norm of concatenated parts, as `dispatch.frame_norm` describes it; `size` is a group's channels.

    bias: (F, sum of C_i), added to image n before the norm by row n mod F. Returns the output (N, sum of C_i, H, W) in
    channels-last memory, and what the backward pass needs of each part.
    """
    y, widths = _joined(parts), _widths(parts)
    biases = [None] * len(parts) if bias is None else [one.contiguous() for one in bias.split(widths, -1)]
    columns = zip(parts, y.split(widths, 1), scale.split(widths, -1), shift.split(widths, -1), biases, strict=True)
    return y, [
        _forward_into(to, in_rows(x), size, eps, a.contiguous(), b.contiguous(), added, silu)
        for x, to, a, b, added in columns
    ]


@torch.library.custom_op("mav::rows_norm_gradient", mutates_args=())
def rows_norm_gradient(
    gradient: Tensor, parts: list[Tensor], size: int, numbers: list[Tensor], scale: Tensor, silu: bool
) -> tuple[list[Tensor], Tensor]:
    """The gradients of the parts, and (N, 3, C): those of scale, shift and bias from each image."""
    widths, gradient = _widths(parts), in_rows(gradient)
    columns = zip(gradient.split(widths, 1), parts, numbers, scale.split(widths, -1), strict=True)
    results = [_backward_of(g, in_rows(x), size, kept, a.contiguous(), silu) for g, x, kept, a in columns]
    sums = torch.cat([one for _, one in results], dim=2) if len(results) > 1 else results[0][1]
    return [to_x for to_x, _ in results], sums


@rows_norm.register_fake
def _(
    parts: list[Tensor], size: int, eps: float, scale: Tensor, shift: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, list[Tensor]]:
    return _joined(parts), [_Kept(part, size).numbers for part in parts]


@rows_norm_gradient.register_fake
def _(
    gradient: Tensor, parts: list[Tensor], size: int, numbers: list[Tensor], scale: Tensor, silu: bool
) -> tuple[list[Tensor], Tensor]:
    to_parts = [torch.empty_like(part, memory_format=torch.channels_last) for part in parts]
    return to_parts, gradient.new_empty(len(gradient), 3, gradient.shape[1], dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    parts, ctx.size, _, scale, _, bias, ctx.silu = inputs
    ctx.count, ctx.bias = len(parts), None if bias is None else (len(bias), bias.dtype)
    ctx.save_for_backward(*parts, *output[1], scale)


def _backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Any, ...]:
    *saved, scale = ctx.saved_tensors
    parts, numbers = saved[: ctx.count], saved[ctx.count :]
    to_parts, sums = rows_norm_gradient(gradient, parts, ctx.size, numbers, scale, ctx.silu)
    # A scale and a shift of (B, C) get their sums over each clip's images, those of (C,) over all images.
    of_rows = sums.view(_rows(scale), -1, 3, sums.shape[2]).sum(dim=1).to(scale.dtype)
    to_scale, to_shift = of_rows[:, 0].reshape(scale.shape), of_rows[:, 1].reshape(scale.shape)
    to_bias = None
    if ctx.bias:
        to_bias = sums[:, 2].reshape(-1, ctx.bias[0], sums.shape[2]).sum(dim=0).to(ctx.bias[1])
    return to_parts, None, None, to_scale, to_shift, to_bias, None


rows_norm.register_autograd(_backward, setup_context=_setup_context)
