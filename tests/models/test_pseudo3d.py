"""The layers: no copies where none are promised, and the fused attention equals the textbook's."""

import math

import pytest
import torch
import torch.nn.functional as F

from mav.models.kernels import cpu_norm, dispatch
from mav.models.kernels.layout import as_images, as_rows
from mav.models.pseudo3d import FrameNorm, SelfAttention, TemporalConv, convolve


def channels_last(*shape):
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def test_rows_and_images_are_views():
    x = channels_last(6, 8, 4, 4)
    rows = as_rows(x, 2)
    assert rows.shape == (2, 48, 8)
    assert rows.data_ptr() == x.data_ptr()
    back = as_images(rows, x)
    assert back.data_ptr() == x.data_ptr()
    assert torch.equal(back, x)


@pytest.mark.parametrize(("clips", "frames", "kernel"), [(1, 6, 3), (3, 5, 3), (2, 1, 3), (1, 4, 5)])
def test_temporal_conv_and_its_gradients_are_those_of_the_plain_convolution(clips, frames, kernel):
    conv = TemporalConv(8, kernel).double()
    with torch.no_grad():
        conv.weight.normal_()
        conv.bias.normal_()
    x = channels_last(clips * frames, 8, 3, 4).double().requires_grad_()
    parameters = [x, conv.weight, conv.bias]
    # Not channels-last, as the gradient of a sum over a view is.
    gradient = torch.randn(clips * frames, 8, 3, 4, dtype=torch.float64)
    y = conv(x, frames)
    assert y.is_contiguous(memory_format=torch.channels_last)
    ours = torch.autograd.grad(y, parameters, gradient)
    clip = x.unflatten(0, (clips, frames)).flatten(3).transpose(1, 2)  # (B, C, T, H*W)
    plain = F.conv2d(clip, conv.weight, conv.bias, padding=(kernel // 2, 0)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(y, plain)
    for mine, theirs in zip(ours, torch.autograd.grad(plain, parameters, gradient), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_temporal_conv_starts_as_the_identity():
    x = channels_last(2 * 5, 8, 3, 4)
    assert torch.equal(TemporalConv(8)(x, frames=5), x)


def reference_attention(layer: SelfAttention, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
    """softmax(q k / sqrt(d)) v, head by head, written out."""
    rows, _, channels = x.shape
    d = channels // layer.heads
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    if context is not None:
        more_k, more_v = layer.context(context).chunk(2, dim=-1)
        per = rows // len(context)
        k, v = torch.cat([more_k.repeat_interleave(per, 0), k], 1), torch.cat([more_v.repeat_interleave(per, 0), v], 1)
    out = []
    for h in range(layer.heads):
        part = slice(h * d, (h + 1) * d)
        qh, kh = (F.layer_norm(x[..., part], (d,), n.scale) for x, n in ((q, layer.query_norm), (k, layer.key_norm)))
        out.append(torch.softmax(qh @ kh.transpose(1, 2) / math.sqrt(d), dim=-1) @ v[..., part])
    return layer.output(torch.cat(out, dim=-1))


@pytest.mark.parametrize("few", [dispatch.SHORT_SEQUENCE, 0])  # as on a CPU, and fused
def test_attention_equals_the_reference_with_and_without_context(monkeypatch, few):
    monkeypatch.setattr(dispatch, "SHORT_SEQUENCE", few)
    layer = SelfAttention(24, 8, context_channels=10, zero_output=False).double()
    x, context = torch.randn(6, 7, 24, dtype=torch.float64), torch.randn(2, 4, 10, dtype=torch.float64)
    torch.testing.assert_close(layer(x), reference_attention(layer, x, None), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer(x, context), reference_attention(layer, x, context), rtol=1e-10, atol=1e-10)


def test_attention_above_the_grid_limit_runs_in_chunks(monkeypatch):
    monkeypatch.setattr(dispatch, "SHORT_SEQUENCE", 0)
    q, k, v = (torch.randn(10, 2, 3, 4) for _ in range(3))
    whole = dispatch.attention(q, k, v)
    monkeypatch.setattr(dispatch, "GRID_LIMIT", 6)
    torch.testing.assert_close(dispatch.attention(q, k, v), whole)


def test_norm_statistics_are_per_frame():
    norm, x = FrameNorm(16), channels_last(4, 16, 3, 3)
    changed = x.clone()
    changed[3] *= 100
    assert torch.equal(norm(changed)[:3], norm(x)[:3])


@pytest.mark.parametrize("path", ["own", "own, four images at a time", "PyTorch's"])
@pytest.mark.parametrize("silu", [False, True])
def test_norms_of_parts_and_of_clips_are_group_norms(monkeypatch, path, silu):
    """As PyTorch computes them from one tensor, gradients of all inputs and parameters included, on every path."""
    if "four" in path:
        monkeypatch.setattr(cpu_norm, "CACHE_BYTES", 4 * 24 * 5 * 4 * 8)
    if path == "PyTorch's":
        monkeypatch.setattr(dispatch, "_is_plain_cpu", lambda x: False)
    last = F.silu if silu else torch.nn.Identity()
    norm = FrameNorm(24, parts=2).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(6, 24, 5, 4, dtype=torch.float64, requires_grad=True)
    scale, shift = (torch.randn(2, 24, dtype=torch.float64, requires_grad=True) for _ in range(2))
    inputs = (x, norm.weight, norm.bias, scale, shift)

    laid_out = x.contiguous(memory_format=torch.channels_last)
    parts = norm.of_parts(
        [part.contiguous(memory_format=torch.channels_last) for part in x.split([8, 16], dim=1)], silu
    )
    ours = torch.cat(parts, dim=1) + norm.modulated(laid_out, None, scale, shift, silu)
    per_frame = (value.repeat_interleave(3, dim=0)[:, :, None, None] for value in (scale, shift))
    modulated = F.group_norm(x, norm.num_groups) * next(per_frame) + next(per_frame)
    plain = last(F.group_norm(x, norm.num_groups, norm.weight, norm.bias)) + last(modulated)
    torch.testing.assert_close(ours, plain)
    seed = torch.randn_like(plain)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, seed), torch.autograd.grad(plain, inputs, seed), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_a_norms_gradient_is_laid_out_as_its_input_whatever_came_to_it():
    x, gradient = channels_last(4, 16, 3, 3), torch.randn(9, 4, 16).permute(1, 2, 0).unflatten(2, (3, 3))
    statistics, per_channel = torch.ones(4, 4), torch.ones(1, 16)
    given = (gradient, x, statistics, statistics, per_channel, per_channel, True)
    assert cpu_norm._backward(*given)[0].stride() == x.stride()


def test_a_convolution_of_parts_is_that_of_the_whole():
    layer = torch.nn.Conv2d(12, 7, 3, stride=2, padding=1).double()
    x = torch.randn(2, 12, 8, 6, dtype=torch.float64)
    torch.testing.assert_close(convolve(layer, list(x.split([3, 4, 5], dim=1)), layer.bias), layer(x))
