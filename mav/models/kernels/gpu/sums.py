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
def _gate_kernel(x, y, gate, out, pixels, channels, chunk, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    n, _, start, stop, c, inside = tile_of(pixels, channels, chunk, BLOCK_C)
    share = tl.load(gate + n * channels + c, mask=inside, other=0).to(tl.float32)[None, :]
    image = n.to(tl.int64) * pixels * channels + c[None, :]
    for p in range(start, stop, BLOCK_P):
        row = p + tl.arange(0, BLOCK_P)
        mask = (row < stop)[:, None] & inside[None, :]
        place = image + row[:, None].to(tl.int64) * channels
        total = tl.load(x + place, mask=mask, other=0).to(tl.float32)
        total += share * tl.load(y + place, mask=mask, other=0).to(tl.float32)
        tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gate_gradient_kernel(
    gradient, y, gate, to_y, partial, pixels, channels, chunk, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """partial[n, part]: of each channel, sums over pixels of the gate's gradient."""
    n, part, start, stop, c, inside = tile_of(pixels, channels, chunk, BLOCK_C)
    share = tl.load(gate + n * channels + c, mask=inside, other=0).to(tl.float32)[None, :]
    image = n.to(tl.int64) * pixels * channels + c[None, :]
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for p in range(start, stop, BLOCK_P):
        row = p + tl.arange(0, BLOCK_P)
        mask = (row < stop)[:, None] & inside[None, :]
        place = image + row[:, None].to(tl.int64) * channels
        g = tl.load(gradient + place, mask=mask, other=0).to(tl.float32)
        tl.store(to_y + place, (g * share).to(to_y.dtype.element_ty), mask=mask)
        total += g * tl.load(y + place, mask=mask, other=0).to(tl.float32)
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
def rows_gate(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate * y, for x and y of (N, C, H, W) channels-last and a gate (N, C)."""
    x, y = _plain_rows(x), _plain_rows(y)
    (_, c, h, w), (grid, chunk) = y.shape, grid_of(y)
    out = _gated(x, y)
    _gate_kernel[grid](x, y, gate.contiguous(), out, h * w, c, chunk, **TILE)
    return out


@torch.library.custom_op("mav::rows_gate_gradient", mutates_args=())
def rows_gate_gradient(gradient: Tensor, y: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of y, and of the gate (N, C) in float32."""
    gradient, y = _plain_rows(gradient), _plain_rows(y)
    (n, c, h, w), (grid, chunk) = y.shape, grid_of(y)
    to_y, partial = torch.empty_like(y), y.new_empty(n, grid[1], c, dtype=torch.float32)
    _gate_gradient_kernel[grid](gradient, y, gate.contiguous(), to_y, partial, h * w, c, chunk, **TILE)
    return to_y, partial.sum(dim=1)


def _gated(x: Tensor, y: Tensor) -> Tensor:
    """An empty tensor for a gated sum."""
    return torch.empty_like(y, dtype=torch.promote_types(x.dtype, y.dtype), memory_format=torch.channels_last)


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
def _(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return _gated(x, y)


@rows_gate_gradient.register_fake
def _(gradient: Tensor, y: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    to_y = torch.empty_like(y, memory_format=torch.channels_last)
    return to_y, y.new_empty(y.shape[:2], dtype=torch.float32)


def _save_gate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, gate = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(y, gate)


def _gate_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    y, gate = ctx.saved_tensors
    to_y, to_gate = rows_gate_gradient(gradient, y, gate)
    return gradient.to(ctx.dtype), to_y, to_gate.to(gate.dtype)


rows_gate.register_autograd(_gate_backward, setup_context=_save_gate)
