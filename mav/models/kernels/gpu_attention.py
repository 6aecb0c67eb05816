"""Attention on a GPU without copies between layouts: the norms of queries and keys are done where rows are read.

`heads_of_rows` makes the queries, keys and values of attention over space, with a clip's context tokens in front.
`attend_over_frames` is the whole of attention over up to 32 frames of each pixel, one program a pixel and head. Both
keep the projected rows and nothing else for the backward pass, and all sums have a fixed order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 256  # of tokens that one program reads, BLOCK_ROWS at a time
BLOCK_ROWS = 32
PROGRAMS = 132 * 32  # at most, for attention over frames; each adds up the gradients of its pixels


@triton.jit
def _normalised(x, inside, width, eps):
    """LayerNorm over the last axis without its scale, and the reciprocal deviation."""
    mean = tl.sum(x, axis=1) / width
    away = tl.where(inside[None, :], x - mean[:, None], 0)
    r = 1 / tl.sqrt(tl.sum(away * away, axis=1) / width + eps)
    return away * r[:, None], r


@triton.jit
def _normalised_gradient(g, normalised, r, width):
    """The gradient of the input of `_normalised`, for the gradient g of its output."""
    along = tl.sum(g * normalised, axis=1) / width
    return (g - tl.sum(g, axis=1)[:, None] / width - normalised * along[:, None]) * r[:, None]


# ----------------------------------------------------------------------------------------------------- over space


@triton.jit
def _heads_kernel(
    rows, query_scale, key_scale, q, k, v, total, length, images, keys, before, heads, width, eps,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Rows (clips, length, parts, heads, width) to heads of `images` images a clip, from token `before` of the keys on.

    A program is CHUNK rows, one head, and one of queries, keys and values.
    """
    head, part = tl.program_id(1), tl.program_id(2)
    kind = part + FIRST
    d = tl.arange(0, WIDTH)
    inside = d < width
    scale = tl.load(tl.where(kind == 0, query_scale, key_scale) + d, mask=inside, other=0).to(tl.float32)
    to = tl.where(kind == 0, q, tl.where(kind == 1, k, v))
    size, skip = tl.where(kind == 0, length, keys), tl.where(kind == 0, 0, before)
    for start in range(0, CHUNK, BLOCK):
        row = tl.program_id(0) * CHUNK + start + tl.arange(0, BLOCK)
        clip, token = row // length, row % length
        mask = (row < total)[:, None] & inside[None, :]
        source = ((row.to(tl.int64) * tl.num_programs(2) + part) * heads + head) * width
        value = tl.load(rows + source[:, None] + d[None, :], mask=mask, other=0).to(tl.float32)
        if kind < 2:
            normalised, _ = _normalised(value, inside, width, eps)
            value = normalised * scale[None, :]
        for image in range(images):
            place = (((clip * images + image).to(tl.int64) * size + skip + token) * heads + head) * width
            tl.store(to + place[:, None] + d[None, :], value.to(q.dtype.element_ty), mask=mask)


@triton.jit
def _heads_gradient_kernel(
    rows, query_scale, key_scale, dq, dk, dv, to_rows, to_scales, total, length, images, keys, before, heads, width,
    eps, FIRST: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The gradient of the rows, and each program's part of the gradient of its scale (blocks, heads, parts, WIDTH)."""
    head, part = tl.program_id(1), tl.program_id(2)
    kind = part + FIRST
    d = tl.arange(0, WIDTH)
    inside = d < width
    scale = tl.load(tl.where(kind == 0, query_scale, key_scale) + d, mask=inside, other=0).to(tl.float32)
    gradient = tl.where(kind == 0, dq, tl.where(kind == 1, dk, dv))
    size, skip = tl.where(kind == 0, length, keys), tl.where(kind == 0, 0, before)
    to_scale = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, CHUNK, BLOCK):
        row = tl.program_id(0) * CHUNK + start + tl.arange(0, BLOCK)
        clip, token = row // length, row % length
        mask = (row < total)[:, None] & inside[None, :]
        g = tl.zeros((BLOCK, WIDTH), tl.float32)
        for image in range(images):
            place = (((clip * images + image).to(tl.int64) * size + skip + token) * heads + head) * width
            g += tl.load(gradient + place[:, None] + d[None, :], mask=mask, other=0).to(tl.float32)
        source = ((row.to(tl.int64) * tl.num_programs(2) + part) * heads + head) * width
        if kind < 2:
            value = tl.load(rows + source[:, None] + d[None, :], mask=mask, other=0).to(tl.float32)
            normalised, r = _normalised(value, inside, width, eps)
            to_scale += tl.sum(g * normalised, axis=0)
            g = _normalised_gradient(g * scale[None, :], normalised, r, width)
        tl.store(to_rows + source[:, None] + d[None, :], g.to(to_rows.dtype.element_ty), mask=mask)
    program = (tl.program_id(0) * heads + head) * tl.num_programs(2) + part
    tl.store(to_scales + program.to(tl.int64) * WIDTH + d, to_scale)


# ---------------------------------------------------------------------------------------------------- over frames


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
        q, _ = _normalised(q, inside, width, eps)
        k, _ = _normalised(k, inside, width, eps)
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
        q, q_r = _normalised(q, inside, width, eps)
        k, k_r = _normalised(k, inside, width, eps)
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
        dq = _normalised_gradient(dq * a[None, :], q, q_r, width)
        dk = _normalised_gradient(dk * b[None, :], k, k_r, width)
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


def _space_launches(qkv: Tensor, context: Tensor | None, heads: int) -> list[tuple[Tensor, int, tuple[int, ...]]]:
    """For the rows and for the context: the tensor, its first kind, and total, length, images, keys, before."""
    n, length, _ = qkv.shape
    before = 0 if context is None else context.shape[1]
    keys = before + length
    launches = [(qkv, 0, (n * length, length, 1, keys, before))]
    if context is not None:
        launches.append((context, 1, (len(context) * before, before, n // len(context), keys, 0)))
    return launches


def _space_grid(rows: Tensor, first: int, total: int, heads: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    width = rows.shape[-1] // (heads * (3 - first))
    blocks = {"WIDTH": triton.next_power_of_2(width), "BLOCK": BLOCK_ROWS, "CHUNK": ROWS, "FIRST": first}
    return (triton.cdiv(total, ROWS), heads, 3 - first), blocks


def _heads_shapes(qkv: Tensor, context: Tensor | None, heads: int) -> list[tuple[int, ...]]:
    n, length, channels = qkv.shape
    keys = length + (0 if context is None else context.shape[1])
    width = channels // (3 * heads)
    return [(n, length, heads, width), (n, keys, heads, width), (n, keys, heads, width)]


@torch.library.custom_op("mav::heads_of_rows", mutates_args=())
def heads_of_rows(
    qkv: Tensor, context: Tensor | None, query_scale: Tensor, key_scale: Tensor, heads: int, eps: float
) -> list[Tensor]:
    """Queries, keys and values of attention, with normalised queries and keys and the context in front of the keys.

    qkv: (rows, length, 3 C); context: (clips, tokens, 2 C), shared by the rows / clips rows of each clip, or None;
    scales: (C / heads,). Returns (rows, length, heads, C / heads) and twice (rows, tokens + length, heads, C / heads).
    """
    outputs = [qkv.new_empty(shape) for shape in _heads_shapes(qkv, context, heads)]
    for rows, first, numbers in _space_launches(qkv, context, heads):
        grid, blocks = _space_grid(rows, first, numbers[0], heads)
        width = outputs[0].shape[-1]
        _heads_kernel[grid](rows.contiguous(), query_scale, key_scale, *outputs, *numbers, heads, width, eps, **blocks)
    return outputs


@torch.library.custom_op("mav::heads_of_rows_gradient", mutates_args=())
def heads_of_rows_gradient(
    gradients: list[Tensor], qkv: Tensor, context: Tensor | None, query_scale: Tensor, key_scale: Tensor, heads: int,
    eps: float,
) -> list[Tensor]:  # fmt: skip
    """The gradients of qkv, both scales, and the context if there is one."""
    gradients = [g.contiguous() for g in gradients]
    width, results, scales = gradients[0].shape[-1], [], []
    for rows, first, numbers in _space_launches(qkv, context, heads):
        grid, blocks = _space_grid(rows, first, numbers[0], heads)
        to_rows = torch.empty_like(rows, memory_format=torch.contiguous_format)
        to_scales = rows.new_empty((*grid, blocks["WIDTH"]), dtype=torch.float32)
        _heads_gradient_kernel[grid](
            rows.contiguous(), query_scale, key_scale, *gradients, to_rows, to_scales, *numbers, heads, width, eps,
            **blocks,
        )  # fmt: skip
        results.append(to_rows)
        scales.append(to_scales.sum(dim=(0, 1))[:, :width])
    to_key = scales[0][1] + scales[1][0] if context is not None else scales[0][1].clone()
    return [results[0], scales[0][0].to(query_scale.dtype, copy=True), to_key.to(key_scale.dtype), *results[1:]]


@heads_of_rows.register_fake
def _(
    qkv: Tensor, context: Tensor | None, query_scale: Tensor, key_scale: Tensor, heads: int, eps: float
) -> list[Tensor]:
    return [qkv.new_empty(shape) for shape in _heads_shapes(qkv, context, heads)]


@heads_of_rows_gradient.register_fake
def _(
    gradients: list[Tensor], qkv: Tensor, context: Tensor | None, query_scale: Tensor, key_scale: Tensor, heads: int,
    eps: float,
) -> list[Tensor]:  # fmt: skip
    like = [qkv, query_scale, key_scale] + ([] if context is None else [context])
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in like]


def _save_heads(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    qkv, context, query_scale, key_scale, ctx.heads, ctx.eps = inputs
    ctx.save_for_backward(qkv, context, query_scale, key_scale)


def _heads_backward(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    qkv, context, query_scale, key_scale = ctx.saved_tensors
    to_qkv, to_query, to_key, *to_context = heads_of_rows_gradient(
        gradients, qkv, context, query_scale, key_scale, ctx.heads, ctx.eps
    )
    return to_qkv, to_context[0] if to_context else None, to_query, to_key, None, None


heads_of_rows.register_autograd(_heads_backward, setup_context=_save_heads)


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
