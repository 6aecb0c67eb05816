"""Views of the layout that all activations have: (N, C, H, W) in channels-last memory."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Bytes of each of the few tensors that a gradient on a CPU works on at a time, so that they stay in the processor's
# cache.
CACHE_BYTES = 2**21


def as_rows(x: Tensor, clips: int) -> Tensor:
    """Views (N, C, H, W) channels-last as rows of channels, (clips, N // clips * H * W, C)."""
    return x.permute(0, 2, 3, 1).reshape(clips, -1, x.shape[1])


def as_clips(x: Tensor, frames: int) -> Tensor:
    """Views (B*T, C, H, W) channels-last as clips, (B, T, H*W, C)."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c)


def as_images(rows: Tensor, like: Tensor) -> Tensor:
    """Views rows of C channels as (N, C, H, W) channels-last, with N, H and W of `like` (the inverse of both above)."""
    n, _, h, w = like.shape
    return rows.reshape(n, h, w, rows.shape[-1]).permute(0, 3, 1, 2)


def at_center(matrix: Tensor, kernel: int) -> Tensor:
    """Returns the weight (C, C, kernel, 1) of a convolution over time that multiplies each pixel's channels alone."""
    return F.pad(matrix[:, :, None, None], (0, 0, kernel // 2, kernel // 2))


def weights_channels_last(net: nn.Module) -> None:
    """Lays the weights of convolutions out in memory as their activations are.

    The weights are copied, because `contiguous` leaves the strides of 1x1 kernels as they are. Those are not the
    strides of their gradients, so DDP would copy each of these gradients.
    """
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = torch.empty_like(parameter, memory_format=torch.channels_last).copy_(parameter.data)
