"""Attention over up to 32 frames of each pixel in one kernel, norms of queries and keys included.

A program is a pixel and a head; it reads the frames where they are. The projected rows are all that is kept for the
backward pass, and all sums have a fixed order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mav.models.kernels.gpu.heads import normalised, normalised_gradient

PROGRAMS = 132 * 8  # at most, for attention over frames; each adds up the gradients of its pixels


@triton.jit
def _frames_of_pixel(rows, item, pixels, heads, frames, width, FRAMES: tl.constexpr, WIDTH: tl.constexpr):
    """The places of a pixel's queries (FRAMES, WIDTH) in rows (B, T, P, 3, heads, width), and of its output."""
    head, pixel, clip = item % heads, (item // heads) % pixels, item // (heads * pixels)
    t, d = tl.arange(0, FRAMES), tl.arange(0, WIDTH)
    row = ((clip * frames + t).to(tl.int64) * pixels + pixel) * heads
    mask = (t < frames)[:, None] & (d < width)[None, :]
    return (row * 3 + head)[:, None] * width + d[None, :], (row + head)[:, None] * width + d[None, :], mask


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    # The interpreter has no products of bfloat16: there the rounded numbers are multiplied as float32.
    if PRECISION == "interpreted":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _weights(q, k, frames, factor, FRAMES: tl.constexpr, PRECISION: tl.constexpr):
    """softmax(q k^T factor) over the frames."""
    logits = _dot(q, tl.trans(k), PRECISION) * factor
    logits = tl.where((tl.arange(0, FRAMES) < frames)[None, :], logits, -float("inf"))
    weight = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return weight / tl.sum(weight, axis=1)[:, None]


@triton.jit
def _attend_kernel(
    rows, query_scale, key_scale, y, items, pixels, heads, frames, width, eps, factor,
    FRAMES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, WIDTH)
    inside = d < width
    a = tl.load(query_scale + d, mask=inside, other=0).to(tl.float32)
    b = tl.load(key_scale + d, mask=inside, other=0).to(tl.float32)
    dtype = y.dtype.element_ty
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        source, to, mask = _frames_of_pixel(rows, item, pixels, heads, frames, width, FRAMES, WIDTH)
        q = tl.load(rows + source, mask=mask, other=0).to(tl.float32)
        k = tl.load(rows + source + heads * width, mask=mask, other=0).to(tl.float32)
        v = tl.load(rows + source + 2 * heads * width, mask=mask, other=0)
        q, _ = normalised(q, inside, width, eps)
        k, _ = normalised(k, inside, width, eps)
        q, k = (q * a[None, :]).to(dtype), (k * b[None, :]).to(dtype)
        weight = _weights(q, k, frames, factor, FRAMES, PRECISION)
        tl.store(y + to, _dot(weight.to(dtype), v, PRECISION).to(dtype), mask=mask)


@triton.jit
def _attend_gradient_kernel(
    rows, query_scale, key_scale, g, to_rows, to_scales, items, pixels, heads, frames, width, eps, factor,
    FRAMES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, WIDTH)
    inside = d < width
    a = tl.load(query_scale + d, mask=inside, other=0).to(tl.float32)
    b = tl.load(key_scale + d, mask=inside, other=0).to(tl.float32)
    to_a, to_b = tl.zeros((WIDTH,), tl.float32), tl.zeros((WIDTH,), tl.float32)
    dtype = g.dtype.element_ty
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        source, to, mask = _frames_of_pixel(rows, item, pixels, heads, frames, width, FRAMES, WIDTH)
        q = tl.load(rows + source, mask=mask, other=0).to(tl.float32)
        k = tl.load(rows + source + heads * width, mask=mask, other=0).to(tl.float32)
        v = tl.load(rows + source + 2 * heads * width, mask=mask, other=0)
        dy = tl.load(g + to, mask=mask, other=0)
        q, q_r = normalised(q, inside, width, eps)
        k, k_r = normalised(k, inside, width, eps)
        scaled_q, scaled_k = (q * a[None, :]).to(dtype), (k * b[None, :]).to(dtype)
        weight = _weights(scaled_q, scaled_k, frames, factor, FRAMES, PRECISION)
        # Frames beyond the last have no gradient, so their weights add nothing below.
        dv = _dot(tl.trans(weight.to(dtype)), dy, PRECISION)
        dw = _dot(dy, tl.trans(v), PRECISION)
        ds = (weight * (dw - tl.sum(weight * dw, axis=1)[:, None]) * factor).to(dtype)
        dq = _dot(ds, scaled_k, PRECISION)
        dk = _dot(tl.trans(ds), scaled_q, PRECISION)
        to_a += tl.sum(dq * q, axis=0)
        to_b += tl.sum(dk * k, axis=0)
        dq = normalised_gradient(dq * a[None, :], q, q_r, width)
        dk = normalised_gradient(dk * b[None, :], k, k_r, width)
        tl.store(to_rows + source, dq.to(dtype), mask=mask)
        tl.store(to_rows + source + heads * width, dk.to(dtype), mask=mask)
        tl.store(to_rows + source + 2 * heads * width, dv.to(dtype), mask=mask)
    to = to_scales + tl.program_id(0) * 2 * WIDTH + d
    tl.store(to, to_a)
    tl.store(to + WIDTH, to_b)


# ------------------------------------------------------------------------------------------------------- launches


def _precision(x: Tensor) -> str:
    """Products of float32 are exact: the kernels wait for memory in any case."""
    return "interpreted" if not x.is_cuda else "ieee" if x.dtype == torch.float32 else "tf32"


def _frame_launch(qkv: Tensor, heads: int) -> tuple[tuple[int], tuple[Any, ...], dict[str, Any]]:
    b, frames, pixels, channels = qkv.shape
    width, items = channels // (3 * heads), b * pixels * heads
    blocks = {
        "FRAMES": max(16, triton.next_power_of_2(frames)), "WIDTH": max(16, triton.next_power_of_2(width)),
        "PRECISION": _precision(qkv), "num_warps": 1,
    }  # fmt: skip
    return (min(items, PROGRAMS),), (items, pixels, heads, frames, width), blocks


@torch.library.custom_op("mav::attend_over_frames", mutates_args=())
def attend_over_frames(qkv: Tensor, query_scale: Tensor, key_scale: Tensor, heads: int, eps: float) -> Tensor:
    """Attention over the frames of each pixel, with the norms of queries and keys.

    qkv: (B, T, P, 3 C); scales: (C / heads,). Returns (B, T, P, C).
    """
    grid, numbers, blocks = _frame_launch(qkv, heads)
    y = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    _attend_kernel[grid](qkv.contiguous(), query_scale, key_scale, y, *numbers, eps, numbers[-1] ** -0.5, **blocks)
    return y


@torch.library.custom_op("mav::attend_over_frames_gradient", mutates_args=())
def attend_over_frames_gradient(
    gradient: Tensor, qkv: Tensor, query_scale: Tensor, key_scale: Tensor, heads: int, eps: float
) -> list[Tensor]:
    """The gradients of qkv and of both scales."""
    grid, numbers, blocks = _frame_launch(qkv, heads)
    to_qkv, width = torch.empty_like(qkv, memory_format=torch.contiguous_format), numbers[-1]
    to_scales = qkv.new_empty(grid[0], 2, blocks["WIDTH"], dtype=torch.float32)
    _attend_gradient_kernel[grid](
        qkv.contiguous(), query_scale, key_scale, gradient.contiguous(), to_qkv, to_scales, *numbers, eps,
        width**-0.5, **blocks,
    )  # fmt: skip
    to_query, to_key = to_scales.sum(dim=0)[:, :width].unbind()
    return [to_qkv, to_query.to(query_scale.dtype, copy=True), to_key.to(key_scale.dtype, copy=True)]


@attend_over_frames.register_fake
def _(qkv: Tensor, query_scale: Tensor, key_scale: Tensor, heads: int, eps: float) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


@attend_over_frames_gradient.register_fake
def _(gradient: Tensor, qkv: Tensor, query_scale: Tensor, key_scale: Tensor, heads: int, eps: float) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (qkv, query_scale, key_scale)]


def _save_frames(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    qkv, query_scale, key_scale, ctx.heads, ctx.eps = inputs
    ctx.save_for_backward(qkv, query_scale, key_scale)


def _frames_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    results = attend_over_frames_gradient(gradient, *ctx.saved_tensors, ctx.heads, ctx.eps)
    return (*results, None, None)


attend_over_frames.register_autograd(_frames_backward, setup_context=_save_frames)
