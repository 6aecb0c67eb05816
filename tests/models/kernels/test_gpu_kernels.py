"""The Triton kernels in Triton's interpreter, on a CPU, against float64."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mav.models.kernels import dispatch
from mav.models.kernels.dispatch import HEAD_NORM_EPS
from mav.models.kernels.gpu.frames import attend_over_frames
from mav.models.kernels.gpu.heads import heads_of_rows
from mav.models.kernels.gpu.norm import rows_norm
from mav.models.kernels.gpu.sums import rows_add, rows_gate
from mav.models.unet import UNet
from mav.recipes import Level, UNetConfig

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU `tests/gpu` runs them as they are")
PRECISIONS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # dtype and the largest relative distance


def _leaf(*shape: int, dtype: torch.dtype = torch.float32, mean: float = 0.0) -> Tensor:
    x = (torch.randn(shape) + mean).to(dtype)
    return (x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x).requires_grad_()


def _equal(ours: list[Tensor], inputs: list[Tensor], reference: list[Tensor], exact: list[Tensor]) -> None:
    """Compares outputs, and the gradients of inputs for random gradients of the outputs."""
    gradients = [torch.randn_like(y) for y in ours]
    pairs = list(zip(ours, reference, strict=True))
    mine = torch.autograd.grad(ours, inputs, gradients)
    theirs = torch.autograd.grad(reference, exact, [g.double() for g in gradients])
    for a, b in [*pairs, *zip(mine, theirs, strict=True)]:
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= PRECISIONS[inputs[0].dtype] * b.norm() + 1e-9


def _double(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in tensors]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    ("widths", "size", "hw", "rows", "silu"),
    [
        ((24,), 6, (5, 7), None, True),  # an odd image, a group that is no power of two
        ((36, 36), 18, (8, 8), 2, True),  # two parts, a scale of each clip
        ((72,), 72, (17, 19), 4, False),  # one group, more pixels than a chunk
        ((192,), 6, (1, 1), None, True),  # one pixel, more channels than a block
    ],
)
def test_group_norm(
    dtype: torch.dtype, widths: tuple[int, ...], size: int, hw: tuple[int, int], rows: int | None, silu: bool
) -> None:
    n, channels = 4, sum(widths)
    parts = [_leaf(n, width, *hw, dtype=dtype, mean=3.0) for width in widths]
    shape = (channels,) if rows is None else (rows, channels)
    inputs = [*parts, _leaf(*shape, mean=1.0), _leaf(*shape), _leaf(2, channels)]
    *_, scale, shift, bias = inputs
    y, _ = rows_norm(parts, size, 1e-5, scale, shift, bias, silu)
    *p, s, b, added = exact = _double(inputs)
    z = F.group_norm(torch.cat(p, 1) + added.repeat(n // 2, 1)[:, :, None, None], channels // size, eps=1e-5)
    s, b = (x.expand(n, channels) if rows is None else x.repeat_interleave(n // rows, 0) for x in (s, b))
    z = z * s[:, :, None, None] + b[:, :, None, None]
    _equal([y], inputs, [F.silu(z) if silu else z], exact)


def test_group_norm_keeps_precision_beside_a_large_mean() -> None:
    x, one, zero = _leaf(2, 8, 16, 16, mean=1000.0), torch.ones(8), torch.zeros(8)
    y, _ = rows_norm([x], 4, 1e-5, one, zero, None, False)
    torch.testing.assert_close(y.double(), F.group_norm(x.double(), 2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("terms", [2, 3])
def test_sums_with_a_bias(terms: int) -> None:
    inputs = [*(_leaf(4, 70, 5, 7) for _ in range(terms)), _leaf(2, 70)]
    exact = _double(inputs)
    reference = sum(exact[:-1]) + exact[-1].repeat(2, 1)[:, :, None, None]
    _equal([rows_add(inputs[:-1], inputs[-1])], inputs, [reference], exact)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("shape", [(2, 70, 3, 35), (1, 4, 19, 31), (3, 8, 1, 1)])  # blocks, chunks, one pixel
def test_gated_sums(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    inputs = [_leaf(*shape, dtype=dtype), _leaf(*shape, dtype=dtype), _leaf(*shape[:2], mean=1.0)]
    x, y, gate = exact = _double(inputs)
    reference = x + gate[:, :, None, None] * y
    _equal([rows_gate(*inputs)], inputs, [reference], exact)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    ("rows", "length", "heads", "width", "clips", "tokens"), [(4, 5, 2, 8, 2, 3), (3, 300, 1, 24, 0, 0)]
)
def test_heads(dtype: torch.dtype, rows: int, length: int, heads: int, width: int, clips: int, tokens: int) -> None:
    qkv, scales = _leaf(rows, length, 3 * heads * width, dtype=dtype), [_leaf(width, mean=1.0) for _ in range(2)]
    context = _leaf(clips, tokens, 2 * heads * width, dtype=dtype) if clips else None
    inputs = [qkv, *scales, *([context] if context is not None else [])]
    x, a, b, *more = exact = _double(inputs)
    q, k, v = x.view(rows, length, 3, heads, width).unbind(2)
    q, k = F.layer_norm(q, (width,)) * a, F.layer_norm(k, (width,)) * b
    if more:
        before = more[0].view(clips, tokens, 2, heads, width).repeat_interleave(rows // clips, 0)
        k = torch.cat([F.layer_norm(before[:, :, 0], (width,)) * b, k], 1)
        v = torch.cat([before[:, :, 1], v], 1)
    _equal(heads_of_rows(qkv, context, *scales, heads, HEAD_NORM_EPS), inputs, [q, k, v], exact)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("clips", "frames", "pixels", "heads", "width"), [(2, 5, 3, 2, 8), (1, 32, 2, 1, 24)])
def test_attention_over_frames(
    dtype: torch.dtype, clips: int, frames: int, pixels: int, heads: int, width: int
) -> None:
    inputs = [_leaf(clips, frames, pixels, 3 * heads * width, dtype=dtype), *(_leaf(width, mean=1.0) for _ in range(2))]
    x, a, b = exact = _double(inputs)
    q, k, v = x.view(clips, frames, pixels, 3, heads, width).permute(3, 0, 2, 4, 1, 5)
    q, k = F.layer_norm(q, (width,)) * a, F.layer_norm(k, (width,)) * b
    y = F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2, 4).flatten(-2)
    _equal([attend_over_frames(*inputs, heads, HEAD_NORM_EPS)], inputs, [y], exact)


@pytest.mark.slow
def test_a_network_is_the_same_with_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through every place where a GPU takes another way: skips of two parts, biases, context, both attentions."""
    torch.manual_seed(0)
    levels = (Level(channels=8, blocks=1), Level(channels=12, blocks=1, attention=True))
    config = UNetConfig(levels=levels, embedding_dim=6, head_channels=4, max_frames=3)
    network = UNet(dataclasses.replace(config, context_tokens=2))
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x, t, e = torch.randn(2, 3, 3, 4, 4), torch.tensor([10.0, 500.0]), F.normalize(torch.randn(2, 6), dim=-1)
    more = {"embedding": e, "fps": torch.tensor([8.0, 16.0])}
    results = []
    for on_gpu in (False, True):
        monkeypatch.setattr(dispatch, "_on_gpu", lambda x, on_gpu=on_gpu: on_gpu)
        network.zero_grad(set_to_none=True)
        y = network(x, t, **more)
        y.square().mean().backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        results.append((y.detach(), gradients))
    (y, gradients), (ours, our_gradients) = results
    torch.testing.assert_close(ours, y, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == our_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
