"""Group norm on a GPU over rows of channels: statistics, scale, shift and SiLU without leaving the precision of x.

Each direction is three launches: sums of parts of an image, what they give for each channel, and one pass that applies
it. Every sum has a fixed order, so that a result is the same each time. The forward pass keeps x and a few numbers of
each channel; the normalised values are computed again.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK_PIXELS = 512  # of an image that one program adds up
MOST_CHUNKS = 128
BLOCK_PIXELS, BLOCK_CHANNELS = 64, 64


@triton.jit
def _tile(pixels, channels, chunk, BLOCK_C: tl.constexpr):
    """What a program of the grid (image, chunk of pixels, block of channels) works on."""
    n, part = tl.program_id(0), tl.program_id(1)
    start = part * chunk
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    return n, part, start, tl.minimum(start + chunk, pixels), c, c < channels


@triton.jit
def _sigmoid(z):
    return 1 / (1 + tl.exp(-z))


@triton.jit
def _sum_kernel(x, partial, pixels, channels, pitch, chunk, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """partial[n, part]: of each channel, sums of x - k and of its square, where k is the image's first pixel."""
    n, part, start, stop, c, inside = _tile(pixels, channels, chunk, BLOCK_C)
    image = x + n.to(tl.int64) * pixels * pitch + c[None, :]
    first = tl.load(x + n.to(tl.int64) * pixels * pitch + c, mask=inside, other=0).to(tl.float32)
    one = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    two = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for p in range(start, stop, BLOCK_P):
        row = p + tl.arange(0, BLOCK_P)
        mask = (row < stop)[:, None] & inside[None, :]
        value = tl.load(image + row[:, None].to(tl.int64) * pitch, mask=mask, other=0).to(tl.float32) - first[None, :]
        value = tl.where(mask, value, 0)
        one += value
        two += value * value
    to = partial + (n * tl.num_programs(1) + part).to(tl.int64) * 2 * channels + c
    tl.store(to, tl.sum(one, axis=0), mask=inside)
    tl.store(to + channels, tl.sum(two, axis=0), mask=inside)


@triton.jit
def _statistics_kernel(
    x, partial, scale, shift, mean, rstd, slope, offset, pixels, channels, pitch, parts, images_of_row, eps,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Of each group its mean and reciprocal standard deviation; of each channel slope and offset: z = slope x + offset.

    One program is one group of one image.
    """
    n, group = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    c, inside = group * SIZE + lane, lane < SIZE
    part = tl.arange(0, PARTS)
    base = partial + n.to(tl.int64) * parts * 2 * channels + part[:, None] * 2 * channels + c[None, :]
    mask = (part < parts)[:, None] & inside[None, :]
    one = tl.sum(tl.load(base, mask=mask, other=0), axis=0) / pixels
    two = tl.sum(tl.load(base + channels, mask=mask, other=0), axis=0) / pixels
    # Means and variances of channels, then those of the group: the order that loses no precision to a large mean.
    of_channel = tl.load(x + n.to(tl.int64) * pixels * pitch + c, mask=inside, other=0).to(tl.float32) + one
    mu = tl.sum(tl.where(inside, of_channel, 0), axis=0) / SIZE
    away = of_channel - mu
    variance = tl.sum(tl.where(inside, tl.maximum(two - one * one, 0) + away * away, 0), axis=0) / SIZE
    r = 1 / tl.sqrt(variance + eps)
    row = (n // images_of_row) * channels + c
    s = tl.load(scale + row, mask=inside, other=0).to(tl.float32) * r
    b = tl.load(shift + row, mask=inside, other=0).to(tl.float32) - mu * s
    tl.store(slope + n * channels + c, s, mask=inside)
    tl.store(offset + n * channels + c, b, mask=inside)
    tl.store(mean + n * tl.num_programs(1) + group, mu)
    tl.store(rstd + n * tl.num_programs(1) + group, r)


@triton.jit
def _apply_kernel(
    x, slope, offset, y, pixels, channels, pitch, y_pitch, chunk, SILU: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, _, start, stop, c, inside = _tile(pixels, channels, chunk, BLOCK_C)
    s = tl.load(slope + n * channels + c, mask=inside, other=0)[None, :]
    b = tl.load(offset + n * channels + c, mask=inside, other=0)[None, :]
    image = x + n.to(tl.int64) * pixels * pitch + c[None, :]
    to = y + n.to(tl.int64) * pixels * y_pitch + c[None, :]
    for p in range(start, stop, BLOCK_P):
        row = p + tl.arange(0, BLOCK_P)
        mask = (row < stop)[:, None] & inside[None, :]
        z = tl.load(image + row[:, None].to(tl.int64) * pitch, mask=mask, other=0).to(tl.float32) * s + b
        if SILU:
            z = z * _sigmoid(z)
        tl.store(to + row[:, None].to(tl.int64) * y_pitch, z.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_sum_kernel(
    x, g, slope, offset, mean, rstd, partial, pixels, channels, pitch, g_pitch, chunk, size, SILU: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial[n, part]: of each channel, sums of the gradient before the SiLU, and of it times the normalised x."""
    n, part, start, stop, c, inside = _tile(pixels, channels, chunk, BLOCK_C)
    s = tl.load(slope + n * channels + c, mask=inside, other=0)[None, :]
    b = tl.load(offset + n * channels + c, mask=inside, other=0)[None, :]
    of_group = n * (channels // size) + c // size
    mu = tl.load(mean + of_group, mask=inside, other=0)[None, :]
    r = tl.load(rstd + of_group, mask=inside, other=0)[None, :]
    image = x + n.to(tl.int64) * pixels * pitch + c[None, :]
    gradient = g + n.to(tl.int64) * pixels * g_pitch + c[None, :]
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    along = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for p in range(start, stop, BLOCK_P):
        row = p + tl.arange(0, BLOCK_P)
        mask = (row < stop)[:, None] & inside[None, :]
        value = tl.load(image + row[:, None].to(tl.int64) * pitch, mask=mask, other=0).to(tl.float32)
        to_z = tl.load(gradient + row[:, None].to(tl.int64) * g_pitch, mask=mask, other=0).to(tl.float32)
        if SILU:
            z = value * s + b
            open = _sigmoid(z)
            to_z = to_z * open * (1 + z * (1 - open))
        total += to_z
        along += to_z * (value - mu) * r
    to = partial + (n * tl.num_programs(1) + part).to(tl.int64) * 2 * channels + c
    tl.store(to, tl.sum(along, axis=0), mask=inside)
    tl.store(to + channels, tl.sum(total, axis=0), mask=inside)


@triton.jit
def _gradient_statistics_kernel(
    partial, scale, mean, rstd, sums, linear, constant, pixels, channels, parts, images_of_row,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The statistics are functions of x too: their share of its gradient is linear x + constant in each channel."""
    n, group = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    c, inside = group * SIZE + lane, lane < SIZE
    part = tl.arange(0, PARTS)
    base = partial + n.to(tl.int64) * parts * 2 * channels + part[:, None] * 2 * channels + c[None, :]
    mask = (part < parts)[:, None] & inside[None, :]
    along = tl.sum(tl.load(base, mask=mask, other=0), axis=0)
    total = tl.sum(tl.load(base + channels, mask=mask, other=0), axis=0)
    tl.store(sums + n * 2 * channels + c, along, mask=inside)
    tl.store(sums + (n * 2 + 1) * channels + c, total, mask=inside)
    s = tl.load(scale + (n // images_of_row) * channels + c, mask=inside, other=0).to(tl.float32)
    r = tl.load(rstd + n * tl.num_programs(1) + group)
    mu = tl.load(mean + n * tl.num_programs(1) + group)
    k = -r * r * tl.sum(s * along, axis=0) / (pixels * SIZE)
    d = -r * tl.sum(s * total, axis=0) / (pixels * SIZE) - k * mu
    tl.store(linear + n * channels + c, tl.zeros((BLOCK,), tl.float32) + k, mask=inside)
    tl.store(constant + n * channels + c, tl.zeros((BLOCK,), tl.float32) + d, mask=inside)


@triton.jit
def _gradient_kernel(
    x, g, slope, offset, linear, constant, to_x, pixels, channels, pitch, g_pitch, chunk, SILU: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, _, start, stop, c, inside = _tile(pixels, channels, chunk, BLOCK_C)
    s = tl.load(slope + n * channels + c, mask=inside, other=0)[None, :]
    b = tl.load(offset + n * channels + c, mask=inside, other=0)[None, :]
    k = tl.load(linear + n * channels + c, mask=inside, other=0)[None, :]
    d = tl.load(constant + n * channels + c, mask=inside, other=0)[None, :]
    image = x + n.to(tl.int64) * pixels * pitch + c[None, :]
    gradient = g + n.to(tl.int64) * pixels * g_pitch + c[None, :]
    to = to_x + n.to(tl.int64) * pixels * channels + c[None, :]
    for p in range(start, stop, BLOCK_P):
        row = p + tl.arange(0, BLOCK_P)
        mask = (row < stop)[:, None] & inside[None, :]
        value = tl.load(image + row[:, None].to(tl.int64) * pitch, mask=mask, other=0).to(tl.float32)
        to_z = tl.load(gradient + row[:, None].to(tl.int64) * g_pitch, mask=mask, other=0).to(tl.float32)
        if SILU:
            z = value * s + b
            open = _sigmoid(z)
            to_z = to_z * open * (1 + z * (1 - open))
        result = to_z * s + value * k + d
        tl.store(to + row[:, None].to(tl.int64) * channels, result.to(to_x.dtype.element_ty), mask=mask)


# ------------------------------------------------------------------------------------------------------------ launches


def _pitch(x: Tensor) -> int:
    """The distance of two pixels of x, whose channels lie side by side; 0 where they do not."""
    n, c, h, w = x.shape
    pitch = x.stride(3) if w > 1 else x.stride(2) if h > 1 else x.stride(0) if n > 1 else c
    expected = (h * w * pitch, 1, w * pitch, pitch)
    sizes = (n, c, h, w)
    fits = all(size == 1 or stride == want for size, stride, want in zip(sizes, x.stride(), expected, strict=True))
    return pitch if fits else 0


def _as_rows(x: Tensor) -> Tensor:
    return x if _pitch(x) else x.contiguous(memory_format=torch.channels_last)


def _grid(x: Tensor) -> tuple[tuple[int, int, int], int]:
    """The grid (images, chunks, blocks of channels), and the pixels of a chunk."""
    n, c, h, w = x.shape
    chunk = max(CHUNK_PIXELS, triton.cdiv(h * w, MOST_CHUNKS))
    return (n, triton.cdiv(h * w, chunk), triton.cdiv(c, BLOCK_CHANNELS)), chunk


class _Kept:
    """What the backward pass needs of a part beside x: slope and offset (N, C), mean and deviation (N, G)."""

    def __init__(self, x: Tensor, size: int, numbers: Tensor | None = None) -> None:
        n, c = x.shape[:2]
        sizes = (n * c, n * c, n * c // size, n * c // size)
        self.numbers = x.new_empty(sum(sizes), dtype=torch.float32) if numbers is None else numbers
        self.slope, self.offset, self.mean, self.rstd = self.numbers.split(sizes)


def _blocks(size: int, chunks: int) -> dict[str, int]:
    return {"SIZE": size, "BLOCK": triton.next_power_of_2(size), "PARTS": triton.next_power_of_2(chunks)}


TILE = {"BLOCK_P": BLOCK_PIXELS, "BLOCK_C": BLOCK_CHANNELS}


def _forward_into(
    y: Tensor, x: Tensor, size: int, eps: float, scale: Tensor, shift: Tensor, silu: bool
) -> Tensor:  # fmt: skip
    """Writes the norm of one part x (N, C, H, W) into y and returns what is kept of it."""
    (n, c, h, w), (grid, chunk) = x.shape, _grid(x)
    kept, partial = _Kept(x, size), x.new_empty(n, grid[1], 2, c, dtype=torch.float32)
    rows = n // (len(scale) if scale.ndim == 2 else 1)
    pixels, pitch = h * w, _pitch(x)
    _sum_kernel[grid](x, partial, pixels, c, pitch, chunk, **TILE)
    _statistics_kernel[(n, c // size)](
        x, partial, scale, shift, kept.mean, kept.rstd, kept.slope, kept.offset, pixels, c, pitch, grid[1], rows, eps,
        **_blocks(size, grid[1]), num_warps=1,
    )  # fmt: skip
    _apply_kernel[grid](x, kept.slope, kept.offset, y, pixels, c, pitch, _pitch(y), chunk, SILU=silu, **TILE)
    return kept.numbers


def _backward_of(
    g: Tensor, x: Tensor, size: int, numbers: Tensor, scale: Tensor, silu: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradient of one part x, and (N, 2, C): of each image the gradients of scale and shift."""
    (n, c, h, w), (grid, chunk) = x.shape, _grid(x)
    kept, partial = _Kept(x, size, numbers), x.new_empty(n, grid[1], 2, c, dtype=torch.float32)
    sums, share = torch.empty_like(partial[:, 0]), x.new_empty(2, n, c, dtype=torch.float32)
    rows = n // (len(scale) if scale.ndim == 2 else 1)
    pixels, pitch, g_pitch = h * w, _pitch(x), _pitch(g)
    _gradient_sum_kernel[grid](
        x, g, kept.slope, kept.offset, kept.mean, kept.rstd, partial, pixels, c, pitch, g_pitch, chunk, size, SILU=silu,
        **TILE,
    )  # fmt: skip
    _gradient_statistics_kernel[(n, c // size)](
        partial, scale, kept.mean, kept.rstd, sums, share[0], share[1], pixels, c, grid[1], rows,
        **_blocks(size, grid[1]), num_warps=1,
    )  # fmt: skip
    to_x = torch.empty((n, c, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _gradient_kernel[grid](
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
    parts: list[Tensor], size: int, eps: float, scale: Tensor, shift: Tensor, silu: bool
) -> tuple[Tensor, list[Tensor]]:
    """Group norm of concatenated parts, as `dispatch.frame_norm` describes it; `size` is a group's channels.

    Returns the output (N, sum of C_i, H, W) in channels-last memory, and what the backward pass needs of each part.
    """
    y, widths = _joined(parts), _widths(parts)
    columns = zip(parts, y.split(widths, 1), scale.split(widths, -1), shift.split(widths, -1), strict=True)
    own = [(to, _as_rows(x), size, eps, a.contiguous(), b.contiguous(), silu) for x, to, a, b in columns]
    return y, [_forward_into(*one) for one in own]


@torch.library.custom_op("mav::rows_norm_gradient", mutates_args=())
def rows_norm_gradient(
    gradient: Tensor, parts: list[Tensor], size: int, numbers: list[Tensor], scale: Tensor, silu: bool
) -> tuple[list[Tensor], Tensor]:
    """The gradients of the parts, and those of scale and shift: (rows, 2, C), with one row for (C,)."""
    widths, gradient = _widths(parts), _as_rows(gradient)
    columns = zip(gradient.split(widths, 1), parts, numbers, scale.split(widths, -1), strict=True)
    results = [_backward_of(g, _as_rows(x), size, kept, a.contiguous(), silu) for g, x, kept, a in columns]
    # A scale and a shift of (B, C) get their sums over each clip's images, those of (C,) over all images.
    sums = torch.cat([one for _, one in results], dim=2) if len(results) > 1 else results[0][1]
    sums = sums.view(len(scale) if scale.ndim == 2 else 1, -1, 2, sums.shape[2]).sum(dim=1)
    return [to_x for to_x, _ in results], sums


@rows_norm.register_fake
def _(
    parts: list[Tensor], size: int, eps: float, scale: Tensor, shift: Tensor, silu: bool
) -> tuple[Tensor, list[Tensor]]:
    return _joined(parts), [_Kept(part, size).numbers for part in parts]


@rows_norm_gradient.register_fake
def _(
    gradient: Tensor, parts: list[Tensor], size: int, numbers: list[Tensor], scale: Tensor, silu: bool
) -> tuple[list[Tensor], Tensor]:
    to_parts = [torch.empty_like(part, memory_format=torch.channels_last) for part in parts]
    rows = len(scale) if scale.ndim == 2 else 1
    return to_parts, gradient.new_empty(rows, 2, scale.shape[-1], dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    parts, ctx.size, _, scale, _, ctx.silu = inputs
    ctx.count = len(parts)
    ctx.save_for_backward(*parts, *output[1], scale)


def _backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Any, ...]:
    *saved, scale = ctx.saved_tensors
    parts, numbers = saved[: ctx.count], saved[ctx.count :]
    to_parts, sums = rows_norm_gradient(gradient, parts, ctx.size, numbers, scale, ctx.silu)
    to_scale, to_shift = (one.reshape(scale.shape).to(scale.dtype) for one in sums.unbind(dim=1))
    return to_parts, None, None, to_scale, to_shift, None


rows_norm.register_autograd(_backward, setup_context=_setup_context)
