"""The layout of all activations, (N, C, H, W) in channels-last memory, seen as rows of channels and back."""

from __future__ import annotations

from torch import Tensor


def as_rows(x: Tensor, clips: int) -> Tensor:
    """(N, C, H, W) channels-last as (clips, N // clips * H * W, C): a view."""
    return x.permute(0, 2, 3, 1).reshape(clips, -1, x.shape[1])


def as_images(rows: Tensor, like: Tensor) -> Tensor:
    """The way back: rows of C channels as (N, C, H, W) channels-last, with N, H, W of `like`: a view."""
    n, _, h, w = like.shape
    return rows.reshape(n, h, w, rows.shape[-1]).permute(0, 3, 1, 2)
