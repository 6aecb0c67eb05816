"""The one place where a faster way for a device is chosen. The networks call these functions and name no device."""

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mav.models.kernels import cpu_norm
from mav.models.kernels.cpu_convolution import TemporalConvolution
from mav.models.kernels.layout import as_images, as_rows, at_center

SHORT_SEQUENCE = 32  # tokens; up to this length attention is faster without PyTorch's fused kernels
HEAD_NORM_EPS = 1e-5
GRID_LIMIT = 65_535  # rows x heads that one launch of the fused attention kernels can take


def adds_bias_later(x: Tensor) -> bool:
    """Whether `frame_norm` and `add` take the bias of the convolutions before them."""
    return _on_gpu(x)


def add(terms: list[Tensor], bias: Tensor | None) -> Tensor:
    """The sum of two or three tensors (N, C, H, W) channels-last and, on a GPU, of a bias (F, C): row n mod F."""
    return terms[0] + terms[1] if bias is None else _gpu("sums").rows_add(terms, bias)


def gated_sum(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate * y, for clips x and y of (B, C, T, P) channels-last, with P pixels of a frame, and a gate (B, C)."""
    if _on_gpu(y):
        total: Tensor = _gpu("sums").rows_gate(x, y, gate)
        return total
    return x + y * gate[:, :, None, None].to(y.dtype)


def frame_norm(
    parts: list[Tensor], size: int, eps: float, scale: Tensor, shift: Tensor, silu: bool, bias: Tensor | None = None
) -> list[Tensor]:
    """Group norm of each image of the concatenated parts, scaled and shifted per channel; with `silu` a SiLU of that.

    parts: (N, C_i, H, W) channels-last, each of whole groups of `size` channels; scale, shift: (C,) for all their
    channels, or (B, C), where each row belongs to N / B images; bias: (F, C), on a GPU, added to image n before the
    norm by row n mod F. Returns the output in the same parts, or, on a GPU, where it costs nothing, in one.
    """
    if _on_gpu(parts[0]):
        return [_gpu("norm").rows_norm(parts, size, eps, scale, shift, bias, silu)[0]]
    widths = [part.shape[1] for part in parts]
    own = zip(parts, scale.split(widths, -1), shift.split(widths, -1), strict=True)
    return [_norm_of_part(part, part.shape[1] // size, eps, a, b, silu) for part, a, b in own]


def _norm_of_part(x: Tensor, groups: int, eps: float, scale: Tensor, shift: Tensor, silu: bool) -> Tensor:
    if _is_plain_cpu(x):
        return cpu_norm.norm(x, groups, eps, scale, shift, silu)
    if scale.ndim == 1:
        y = F.group_norm(x, groups, scale, shift, eps)
    else:
        y = as_images(as_rows(F.group_norm(x, groups, eps=eps), len(scale)) * scale[:, None] + shift[:, None], x)
    return F.silu(y) if silu else y


def temporal_convolution(clip: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution over the T frames of each pixel, padded to keep T.

    clip: (B, C, T, H*W) channels-last; weight: (C, C, K, 1), K odd; bias: (C,), or None on a GPU.
    """
    if _is_plain_cpu(clip) and bias is not None:
        return TemporalConvolution.apply(clip, weight, bias)
    return F.conv2d(clip, weight, bias, padding=(weight.shape[2] // 2, 0))


def gated_temporal_convolution(clip: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor) -> Tensor:
    """The share `gate` (B, C) of `temporal_convolution` and the rest of the clip itself."""
    if _on_gpu(clip):
        # The kernel without the identity makes what is to be added, so that the sum's gradient needs the clip no more.
        identity = at_center(torch.eye(len(weight), device=weight.device), weight.shape[2])
        return gated_sum(clip, temporal_convolution(clip, weight - identity, bias), gate)
    y = temporal_convolution(clip, weight, bias)
    return torch.lerp(clip.to(y.dtype), y, gate[:, :, None, None].to(y.dtype))


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(channels)) v, for q, k, v of (rows, heads, length, channels of a head)."""
    fused: Callable[..., Tensor] = F.scaled_dot_product_attention
    rows, heads, length, channels = q.shape
    # Over a few frames the fused kernel takes twice as long on a CPU as plain matrix products.
    if q.device.type == "cpu" and length <= SHORT_SEQUENCE and not causal:
        return torch.softmax((q * channels**-0.5) @ k.transpose(-1, -2), dim=-1) @ v
    if rows * heads <= GRID_LIMIT:
        return fused(q, k, v, is_causal=causal)
    # Spatial attention over long clips has more rows than one launch takes.
    chunk = max(1, GRID_LIMIT // heads)
    parts = zip(q.split(chunk), k.split(chunk), v.split(chunk), strict=True)
    return torch.cat([fused(*part, is_causal=causal) for part in parts])


def attention_of_rows(
    qkv: Tensor, context: Tensor | None, query_scale: Tensor, key_scale: Tensor, heads: int, *, causal: bool = False
) -> Tensor:
    """Multi-head attention of rows of tokens, whose queries and keys are normalised in each head and then scaled.

    qkv: (rows, length, 3 C); context: (clips, tokens, 2 C), keys and values that come before those of the rows and are
    shared by the rows / clips rows of each clip, or None; scales: (C / heads,). Returns (rows, length, C).
    """
    if _on_gpu(qkv):
        results = _gpu("heads").heads_of_rows(qkv, context, query_scale, key_scale, heads, HEAD_NORM_EPS)
        q, k, v = (x.transpose(1, 2) for x in results)
    else:
        q, k, v = rearrange(qkv, "n l (three h c) -> three n h l c", three=3, h=heads)
        q, k = _head_norm(q, query_scale), _head_norm(k, key_scale)
        if context is not None:
            # A clip's tokens are normalised once and then repeated for its frames.
            more_k, more_v = rearrange(context, "b l (two h c) -> two b h l c", two=2, h=heads)
            more_k, more_v = (
                x[:, None].expand(-1, len(qkv) // len(context), -1, -1, -1).flatten(0, 1)
                for x in (_head_norm(more_k, key_scale), more_v)
            )
            k, v = torch.cat([more_k, k], dim=2), torch.cat([more_v, v], dim=2)
    return rearrange(attention(q, k, v, causal=causal), "n h l c -> n l (h c)")


def attention_over_frames(clips: Tensor, qkv: nn.Linear, query_scale: Tensor, key_scale: Tensor, heads: int) -> Tensor:
    """Multi-head attention over the frames of each pixel, with the projection `qkv` to queries, keys and values.

    clips: (B, T, P, C); scales: (C / heads,). Returns (B, T, P, C).
    """
    if _on_gpu(clips) and clips.shape[1] <= SHORT_SEQUENCE:
        return _gpu("frames").attend_over_frames(qkv(clips), query_scale, key_scale, heads, HEAD_NORM_EPS)
    # The frames are brought to the inside and back, because a CPU reads memory fastest in a line.
    rows = qkv(rearrange(clips, "b t p c -> (b p) t c"))
    y = attention_of_rows(rows, None, query_scale, key_scale, heads)
    return rearrange(y, "(b p) t c -> b t p c", b=len(clips))


def _head_norm(x: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], scale, eps=HEAD_NORM_EPS)


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _gpu(module: str) -> ModuleType:
    """The kernels for GPUs, whose compiler is imported where there is a GPU."""
    return importlib.import_module(f"mav.models.kernels.gpu.{module}")


def _is_plain_cpu(x: Tensor) -> bool:
    """Whether x is on a CPU outside autocast, which is what the CPU kernels are written for."""
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
