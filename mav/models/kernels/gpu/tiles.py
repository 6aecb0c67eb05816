"""How kernels for GPUs divide images of channels-last memory: chunks of pixels, and blocks of channels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK_PIXELS = 256  # of an image that one program adds up
MOST_CHUNKS = 128
BLOCK_PIXELS, BLOCK_CHANNELS = 16, 64
TILE = {"BLOCK_P": BLOCK_PIXELS, "BLOCK_C": BLOCK_CHANNELS}


@triton.jit
def tile_of(pixels, channels, chunk, BLOCK_C: tl.constexpr):
    """What a program of the grid (image, chunk of pixels, block of channels) works on."""
    n, part = tl.program_id(0), tl.program_id(1)
    start = part * chunk
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    return n, part, start, tl.minimum(start + chunk, pixels), c, c < channels


def pitch_of(x: Tensor) -> int:
    """The distance of two pixels of x, whose channels lie side by side; 0 where they do not."""
    n, c, h, w = x.shape
    pitch = x.stride(3) if w > 1 else x.stride(2) if h > 1 else x.stride(0) if n > 1 else c
    expected = (h * w * pitch, 1, w * pitch, pitch)
    sizes = (n, c, h, w)
    fits = all(size == 1 or stride == want for size, stride, want in zip(sizes, x.stride(), expected, strict=True))
    return pitch if fits else 0


def in_rows(x: Tensor) -> Tensor:
    return x if pitch_of(x) else x.contiguous(memory_format=torch.channels_last)


def grid_of(x: Tensor) -> tuple[tuple[int, int, int], int]:
    """The grid (images, chunks, blocks of channels), and the pixels of a chunk."""
    n, c, h, w = x.shape
    chunk = max(CHUNK_PIXELS, triton.cdiv(h * w, MOST_CHUNKS))
    return (n, triton.cdiv(h * w, chunk), triton.cdiv(c, BLOCK_CHANNELS)), chunk
