"""The kernels of `norm`: a program of sums and of passes is a tile of an image, one of statistics a group."""

import triton
import triton.language as tl

from mav.models.kernels.gpu.tiles import tile_of


@triton.jit
def _sigmoid(z):
    return 1 / (1 + tl.exp(-z))


@triton.jit
def _before_silu(gradient, z):
    """The gradient of z, for that of its SiLU."""
    open = _sigmoid(z)
    return gradient * open * (1 + z * (1 - open))


@triton.jit
def sum_kernel(x, partial, pixels, channels, pitch, chunk, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """partial[n, part]: of each channel, sums of x - k and of its square, where k is the image's first pixel."""
    n, part, start, stop, c, inside = tile_of(pixels, channels, chunk, BLOCK_C)
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
def statistics_kernel(
    x, partial, bias, scale, shift, slope, offset, center, away, rstd, pixels, channels, pitch, parts, images_of_row,
    rows_of_bias, eps, BIAS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Of each channel, slope and offset of the output before the SiLU: slope x + offset; and for the backward pass
    center, where (x - center) rstd is the normalised input, and away, the distance of the channel's mean from it.

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
    added = tl.zeros((BLOCK,), tl.float32)
    if BIAS:
        added = tl.load(bias + (n % rows_of_bias) * channels + c, mask=inside, other=0).to(tl.float32)
    mean = tl.sum(tl.where(inside, of_channel + added, 0), axis=0) / SIZE
    apart = of_channel + added - mean
    variance = tl.sum(tl.where(inside, tl.maximum(two - one * one, 0) + apart * apart, 0), axis=0) / SIZE
    r = 1 / tl.sqrt(variance + eps)
    row = (n // images_of_row) * channels + c
    s = tl.load(scale + row, mask=inside, other=0).to(tl.float32) * r
    b = tl.load(shift + row, mask=inside, other=0).to(tl.float32) - (mean - added) * s
    tl.store(slope + n * channels + c, s, mask=inside)
    tl.store(offset + n * channels + c, b, mask=inside)
    tl.store(center + n * channels + c, mean - added, mask=inside)
    tl.store(away + n * channels + c, apart, mask=inside)
    tl.store(rstd + n * tl.num_programs(1) + group, r)


@triton.jit
def apply_kernel(
    x, slope, offset, y, pixels, channels, pitch, y_pitch, chunk, SILU: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, _, start, stop, c, inside = tile_of(pixels, channels, chunk, BLOCK_C)
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
def gradient_sum_kernel(
    x, g, slope, offset, center, rstd, partial, pixels, channels, pitch, g_pitch, chunk, size, SILU: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial[n, part]: of each channel, sums of the gradient before the SiLU, and of it times the normalised x."""
    n, part, start, stop, c, inside = tile_of(pixels, channels, chunk, BLOCK_C)
    s = tl.load(slope + n * channels + c, mask=inside, other=0)[None, :]
    b = tl.load(offset + n * channels + c, mask=inside, other=0)[None, :]
    middle = tl.load(center + n * channels + c, mask=inside, other=0)[None, :]
    r = tl.load(rstd + n * (channels // size) + c // size, mask=inside, other=0)[None, :]
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
            to_z = _before_silu(to_z, value * s + b)
        total += to_z
        along += to_z * (value - middle) * r
    to = partial + (n * tl.num_programs(1) + part).to(tl.int64) * 2 * channels + c
    tl.store(to, tl.sum(along, axis=0), mask=inside)
    tl.store(to + channels, tl.sum(total, axis=0), mask=inside)


@triton.jit
def gradient_statistics_kernel(
    partial, scale, center, away, rstd, sums, linear, constant, pixels, channels, parts, images_of_row,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The statistics are functions of x too: their share of its gradient is linear x + constant in each channel.

    sums[n]: of each channel, the gradients of scale, shift and bias from this image.
    """
    n, group = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    c, inside = group * SIZE + lane, lane < SIZE
    part = tl.arange(0, PARTS)
    base = partial + n.to(tl.int64) * parts * 2 * channels + part[:, None] * 2 * channels + c[None, :]
    mask = (part < parts)[:, None] & inside[None, :]
    along = tl.sum(tl.load(base, mask=mask, other=0), axis=0)
    total = tl.sum(tl.load(base + channels, mask=mask, other=0), axis=0)
    s = tl.load(scale + (n // images_of_row) * channels + c, mask=inside, other=0).to(tl.float32)
    r = tl.load(rstd + n * tl.num_programs(1) + group)
    k = -r * r * tl.sum(s * along, axis=0) / (pixels * SIZE)
    d = -r * tl.sum(s * total, axis=0) / (pixels * SIZE)
    middle = tl.load(center + n * channels + c, mask=inside, other=0)
    apart = tl.load(away + n * channels + c, mask=inside, other=0)
    tl.store(sums + n * 3 * channels + c, along, mask=inside)
    tl.store(sums + (n * 3 + 1) * channels + c, total, mask=inside)
    tl.store(sums + (n * 3 + 2) * channels + c, s * r * total + pixels * (k * apart + d), mask=inside)
    tl.store(linear + n * channels + c, tl.zeros((BLOCK,), tl.float32) + k, mask=inside)
    tl.store(constant + n * channels + c, d - k * middle, mask=inside)


@triton.jit
def gradient_kernel(
    x, g, slope, offset, linear, constant, to_x, pixels, channels, pitch, g_pitch, chunk, SILU: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, _, start, stop, c, inside = tile_of(pixels, channels, chunk, BLOCK_C)
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
            to_z = _before_silu(to_z, value * s + b)
        result = to_z * s + value * k + d
        tl.store(to + row[:, None].to(tl.int64) * channels, result.to(to_x.dtype.element_ty), mask=mask)
