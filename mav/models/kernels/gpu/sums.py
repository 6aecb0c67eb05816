"""Sums on a GPU over rows of channels: residual additions that add a left-out bias too, and gated ones, each with the
gradient of what it adds by channel."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mav.models.kernels.gpu.tiles import TILE, grid_of, tile_of


@triton.jit
def _add_kernel(
    x,
    y,
    z,
    bias,
    out,
    pixels,
    channels,
    rows_of_bias,
    chunk,
    THREE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    n, _, start, stop, c, inside = tile_of(pixels, channels, chunk, BLOCK_C)
    added = tl.load(bias + (n % rows_of_bias) * channels + c, mask=inside, other=0).to(tl.float32)[None, :]
    image = n.to(tl.int64) * pixels * channels + c[None, :]
    for p in range(start, stop, BLOCK_P):
        row = p + tl.arange(0, BLOCK_P)
        mask = (row < stop)[:, None] & inside[None, :]
        place = image + row[:, None].to(tl.int64) * channels
        total = tl.load(x + place, mask=mask, other=0).to(tl.float32) + added
        total += tl.load(y + place, mask=mask, other=0).to(tl.float32)
        if THREE:
            total += tl.load(z + place, mask=mask, other=0).to(tl.float32)
        tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _column_sum_kernel(x, partial, pixels, channels, chunk, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """partial[n, part]: sums over pixels of each channel."""
    n, part, start, stop, c, inside = tile_of(pixels, channels, chunk, BLOCK_C)
    image = x + n.to(tl.int64) * pixels * channels + c[None, :]
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for p in range(start, stop, BLOCK_P):
        row = p + tl.arange(0, BLOCK_P)
        mask = (row < stop)[:, None] & inside[None, :]
        total += tl.load(image + row[:, None].to(tl.int64) * channels, mask=mask, other=0).to(tl.float32)
    to = partial + (n * tl.num_programs(1) + part).to(tl.int64) * channels + c
    tl.store(to, tl.sum(total, axis=0), mask=inside)


@triton.jit
def _gate_kernel(
    x, y, gate, out, pixels, channels, chunk, REPLACE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    n, _, start, stop, c, inside = tile_of(pixels, channels, chunk, BLOCK_C)
    share = tl.load(gate + n * channels + c, mask=inside, other=0).to(tl.float32)[None, :]
    image = n.to(tl.int64) * pixels * channels + c[None, :]
    for p in range(start, stop, BLOCK_P):
        row = p + tl.arange(0, BLOCK_P)
        mask = (row < stop)[:, None] & inside[None, :]
        place = image + row[:, None].to(tl.int64) * channels
        before = tl.load(x + place, mask=mask, other=0).to(tl.float32)
        after = tl.load(y + place, mask=mask, other=0).to(tl.float32)
        total = before + share * (after - before) if REPLACE else before + share * after
        tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gate_gradient_kernel(
    gradient,
    x,
    y,
    gate,
    to_x,
    to_y,
    partial,
    pixels,
    channels,
    chunk,
    REPLACE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """partial[n, part]: of each channel, sums over pixels of the gate's gradient. Without REPLACE x is not read."""
    n, part, start, stop, c, inside = tile_of(pixels, channels, chunk, BLOCK_C)
    share = tl.load(gate + n * channels + c, mask=inside, other=0).to(tl.float32)[None, :]
    image = n.to(tl.int64) * pixels * channels + c[None, :]
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for p in range(start, stop, BLOCK_P):
        row = p + tl.arange(0, BLOCK_P)
        mask = (row < stop)[:, None] & inside[None, :]
        place = image + row[:, None].to(tl.int64) * channels
        g = tl.load(gradient + place, mask=mask, other=0).to(tl.float32)
        added = tl.load(y + place, mask=mask, other=0).to(tl.float32)
        if REPLACE:
            added -= tl.load(x + place, mask=mask, other=0).to(tl.float32)
            tl.store(to_x + place, (g * (1 - share)).to(to_x.dtype.element_ty), mask=mask)
        tl.store(to_y + place, (g * share).to(to_y.dtype.element_ty), mask=mask)
        total += g * added
    to = partial + (n * tl.num_programs(1) + part).to(tl.int64) * channels + c
    tl.store(to, tl.sum(total, axis=0), mask=inside)


@torch.library.custom_op("mav::rows_add", mutates_args=())
def rows_add(terms: list[Tensor], bias: Tensor) -> Tensor:
    """The sum of two or three tensors (N, C, H, W) channels-last and a bias (F, C), of row n mod F for image n."""
    terms = [_plain_rows(term) for term in terms]
    grid, chunk = grid_of(terms[0])
    _, c, h, w = terms[0].shape
    out = torch.empty_like(terms[0], memory_format=torch.channels_last)
    _add_kernel[grid](
        terms[0], terms[1], terms[-1], bias.contiguous(), out, h * w, c, len(bias), chunk, THREE=len(terms) == 3, **TILE
    )
    return out


@torch.library.custom_op("mav::column_sums", mutates_args=())
def column_sums(x: Tensor) -> Tensor:
    """Sums over the pixels of each image, (N, C) in float32."""
    x = _plain_rows(x)
    (n, c, h, w), (grid, chunk) = x.shape, grid_of(x)
    partial = x.new_empty(n, grid[1], c, dtype=torch.float32)
    _column_sum_kernel[grid](x, partial, h * w, c, chunk, **TILE)
    return partial.sum(dim=1)


@torch.library.custom_op("mav::rows_gate", mutates_args=())
def rows_gate(x: Tensor, y: Tensor, gate: Tensor, replace: bool) -> Tensor:
    """x + gate * y, or with `replace` x + gate * (y - x); x, y: (N, C, H, W) channels-last, gate: (N, C)."""
    x, y = _plain_rows(x), _plain_rows(y)
    (_, c, h, w), (grid, chunk) = y.shape, grid_of(y)
    out = torch.empty_like(y, dtype=_gated_dtype(x, y, replace), memory_format=torch.channels_last)
    _gate_kernel[grid](x, y, gate.contiguous(), out, h * w, c, chunk, REPLACE=replace, **TILE)
    return out


@torch.library.custom_op("mav::rows_gate_gradient", mutates_args=())
def rows_gate_gradient(gradient: Tensor, x: Tensor | None, y: Tensor, gate: Tensor) -> tuple[list[Tensor], Tensor]:
    """The gradients of y and, where it is given because y replaces it, of x; and the gate's, (N, C) in float32."""
    gradient, y, x = _plain_rows(gradient), _plain_rows(y), None if x is None else _plain_rows(x)
    (n, c, h, w), (grid, chunk) = y.shape, grid_of(y)
    found = [torch.empty_like(one) for one in (y, x) if one is not None]
    partial = y.new_empty(n, grid[1], c, dtype=torch.float32)
    _gate_gradient_kernel[grid](
        gradient, y if x is None else x, y, gate.contiguous(), found[-1], found[0], partial, h * w, c, chunk,
        REPLACE=x is not None, **TILE,
    )  # fmt: skip
    return found, partial.sum(dim=1)


def _gated_dtype(x: Tensor, y: Tensor, replace: bool) -> torch.dtype:
    return y.dtype if replace else torch.promote_types(x.dtype, y.dtype)


def _plain_rows(x: Tensor) -> Tensor:
    """x with nothing between its rows."""
    return x.contiguous(memory_format=torch.channels_last)


@rows_add.register_fake
def _(terms: list[Tensor], bias: Tensor) -> Tensor:
    return torch.empty_like(terms[0], memory_format=torch.channels_last)


@column_sums.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float32)


def _save_bias(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.count, ctx.rows, ctx.dtype = len(inputs[0]), len(inputs[1]), inputs[1].dtype


def _add_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    sums = column_sums(gradient)
    return [gradient] * ctx.count, sums.view(-1, ctx.rows, sums.shape[1]).sum(dim=0).to(ctx.dtype)


rows_add.register_autograd(_add_backward, setup_context=_save_bias)


@rows_gate.register_fake
def _(x: Tensor, y: Tensor, gate: Tensor, replace: bool) -> Tensor:
    return torch.empty_like(y, dtype=_gated_dtype(x, y, replace), memory_format=torch.channels_last)


@rows_gate_gradient.register_fake
def _(gradient: Tensor, x: Tensor | None, y: Tensor, gate: Tensor) -> tuple[list[Tensor], Tensor]:
    found = [torch.empty_like(one, memory_format=torch.channels_last) for one in (y, x) if one is not None]
    return found, y.new_empty(y.shape[:2], dtype=torch.float32)


def _save_gate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, gate, ctx.replace = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(x if ctx.replace else None, y, gate)


def _gate_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, y, gate = ctx.saved_tensors
    (to_y, *to_x), to_gate = rows_gate_gradient(gradient, x, y, gate)
    return to_x[0] if to_x else gradient.to(ctx.dtype), to_y, to_gate.to(gate.dtype), None


rows_gate.register_autograd(_gate_backward, setup_context=_save_gate)
