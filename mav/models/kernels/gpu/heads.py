"""Queries, keys and values of attention over space, normalised where they are read, with a clip's context in front.

The projected rows are all that is kept for the backward pass, and all sums have a fixed order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 256  # of tokens that one program reads, BLOCK_ROWS at a time
BLOCK_ROWS = 32


@triton.jit
def normalised(x, inside, width, eps):
    """LayerNorm over the last axis without its scale, and the reciprocal deviation."""
    mean = tl.sum(x, axis=1) / width
    away = tl.where(inside[None, :], x - mean[:, None], 0)
    r = 1 / tl.sqrt(tl.sum(away * away, axis=1) / width + eps)
    return away * r[:, None], r


@triton.jit
def normalised_gradient(g, x, r, width):
    """The gradient of the input of `normalised`, which is x, for the gradient g of its output."""
    along = tl.sum(g * x, axis=1) / width
    return (g - tl.sum(g, axis=1)[:, None] / width - x * along[:, None]) * r[:, None]


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
            unit, _ = normalised(value, inside, width, eps)
            value = unit * scale[None, :]
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
            unit, r = normalised(value, inside, width, eps)
            to_scale += tl.sum(g * unit, axis=0)
            g = normalised_gradient(g * scale[None, :], unit, r, width)
        tl.store(to_rows + source[:, None] + d[None, :], g.to(to_rows.dtype.element_ty), mask=mask)
    program = (tl.program_id(0) * heads + head) * tl.num_programs(2) + part
    tl.store(to_scales + program.to(tl.int64) * WIDTH + d, to_scale)


def _launches(qkv: Tensor, context: Tensor | None) -> list[tuple[Tensor, int, tuple[int, ...]]]:
    """For the rows and for the context: the tensor, its first kind, and total, length, images, keys, before."""
    n, length, _ = qkv.shape
    before = 0 if context is None else context.shape[1]
    keys = before + length
    launches: list[tuple[Tensor, int, tuple[int, ...]]] = [(qkv, 0, (n * length, length, 1, keys, before))]
    if context is not None:
        launches.append((context, 1, (len(context) * before, before, n // len(context), keys, 0)))
    return launches


def _grid(rows: Tensor, first: int, total: int, heads: int) -> tuple[tuple[int, int, int], dict[str, int]]:
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
    for rows, first, numbers in _launches(qkv, context):
        grid, blocks = _grid(rows, first, numbers[0], heads)
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
    for rows, first, numbers in _launches(qkv, context):
        grid, blocks = _grid(rows, first, numbers[0], heads)
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
