"""A convolution over time on a CPU, where PyTorch's own weight gradient takes three to four times as long."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mav.models.kernels.layout import CACHE_BYTES


class TemporalConvolution(torch.autograd.Function):
    """`conv2d` with kernel (K, 1). Its weight gradient is one matrix product for each of the K taps.

    A tap reads the input shifted by whole frames, and a frame is one contiguous matrix (H*W, C), so nothing is copied.
    """

    @staticmethod
    def forward(ctx: Any, clip: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """clip: (B, C, T, H*W) channels-last; weight: (C, C, K, 1), K odd; bias: (C,)."""
        ctx.save_for_backward(clip, weight)
        return F.conv2d(clip, weight, bias, padding=(weight.shape[2] // 2, 0))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        clip, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        half = weight.shape[2] // 2
        # The gradient of the input: PyTorch's own kernel is fast.
        to_clip = None
        if ctx.needs_input_grad[0]:
            to_clip = torch.ops.aten.convolution_backward(
                gradient, clip, weight, None, [1, 1], [half, 0], [1, 1], False, [0, 0], 1, [True, False, False]
            )[0]
        # The gradient of the weight: all taps read the same few frames while the cache holds them.
        x, g = clip.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)  # (B, T, H*W, C), contiguous
        taps = x.new_zeros(2 * half + 1, g.shape[-1], x.shape[-1])
        step = max(1, CACHE_BYTES // g[:, 0].nbytes)
        for start in range(0, g.shape[1], step):
            for shift, tap in zip(range(-half, half + 1), taps, strict=True):
                tap += _tap_gradient(x, g, shift, start, start + step)
        return to_clip, taps.permute(1, 2, 0).unsqueeze(-1), g.sum(dim=(0, 1, 2))


def _tap_gradient(x: Tensor, g: Tensor, shift: int, start: int, stop: int) -> Tensor:
    """The gradient (C_out, C_in) of the tap that reads `shift` frames later, from frames start to stop of x and g."""
    frames = x.shape[1]
    start, stop = max(start, -shift), min(stop, frames, frames - shift)
    if start >= stop:
        return x.new_zeros(g.shape[-1], x.shape[-1])
    gradient, shifted = g[:, start:stop].flatten(1, 2), x[:, start + shift : stop + shift].flatten(1, 2)
    return torch.bmm(gradient.transpose(1, 2), shifted).sum(dim=0)
