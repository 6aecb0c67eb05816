"""The part `kernels` of bench_gpu: each kernel of ours beside PyTorch's way and beside the bytes that it must move."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mav.models.kernels.dispatch import HEAD_NORM_EPS, frame_norm, gated_sum
from mav.models.kernels.layout import as_clips, as_rows

SHAPES = ((192, 64), (384, 32), (576, 16), (768, 8))  # channels and side of the levels of `single-gpu`
IMAGES, FRAMES, HEAD = 64, 16, 64


def seconds_of(work: Callable[[], Any], device: str, repeats: int = 20) -> float:
    """The median of a work's seconds, replayed as a CUDA graph, so that launches do not count."""
    if device != "cuda":
        work()
        times = []
        for _ in range(3):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return statistics.median(times)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    graph.replay()
    for event in events:
        event.record()
        graph.replay()
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
    return statistics.median(times) / 1e3


def _both_ways(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], Any]:
    """Forward and backward of a function of tensors, with a fixed gradient of its output."""
    with torch.no_grad():
        gradient = torch.randn_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*inputs), inputs, gradient)


def kernels(device: str, bandwidth: float, shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[dict[str, Any]]:
    """Forward and backward of each kernel in bfloat16: milliseconds, PyTorch's, and the share of the bandwidth.

    Bytes are those of the least passes that the function needs: for a norm x is read and y written, then x and the
    gradient are read and the gradient of x written.
    """
    rows = []
    images = IMAGES if device == "cuda" else 2
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for channels, side in shapes:
        x = torch.randn(images, channels, side, side, device=device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        scale, shift = (torch.randn(channels, device=device).requires_grad_() for _ in range(2))
        size, unit = channels // 32 or 1, x.numel() * x.element_size()

        def ours(x: Tensor, scale: Tensor, shift: Tensor, size: int = size) -> Tensor:
            return frame_norm([x], size, 1e-5, scale, shift, True)[0]

        def theirs(x: Tensor, scale: Tensor, shift: Tensor, size: int = size) -> Tensor:
            return F.silu(F.group_norm(x.float(), x.shape[1] // size, scale, shift)).to(x.dtype)

        names = f"norm + SiLU {channels} @ {side}x{side}"
        rows.append(_row(names, ours, theirs, [x, scale, shift], 5 * unit, device, bandwidth))
        rows.append(_gated(x.detach(), device, bandwidth))
        if channels % HEAD == 0 and images % FRAMES == 0:
            rows += _attention(x.detach(), device, bandwidth)
    return rows


def _gated(x: Tensor, device: str, bandwidth: float) -> dict[str, Any]:
    """What every layer over time ends with: a share of each channel is added."""
    name, unit = f"gated sum {x.shape[1]} @ {x.shape[2]}x{x.shape[3]}", x.numel() * x.element_size()
    clips = as_clips(x, min(FRAMES, len(x))).permute(0, 3, 1, 2)
    gate = torch.rand(clips.shape[:2], device=device).requires_grad_()

    def theirs(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        return x + y * gate[:, :, None, None].to(x.dtype)

    inputs = [clips.requires_grad_(), clips.detach().flip(0).requires_grad_(), gate]
    return _row(name, gated_sum, theirs, inputs, (3 + 3) * unit, device, bandwidth)


def _attention(x: Tensor, device: str, bandwidth: float) -> list[dict[str, Any]]:
    """Attention over frames with its norms; the norms of heads before attention over space."""
    from mav.models.kernels.gpu.frames import attend_over_frames
    from mav.models.kernels.gpu.heads import heads_of_rows

    channels, unit, side = x.shape[1], x.numel() * x.element_size(), x.shape[2]
    heads = channels // HEAD
    clips = as_rows(x, len(x) // FRAMES).unflatten(1, (FRAMES, -1))
    qkv = torch.cat([clips, clips.flip(0), clips.flip(1)], dim=-1).requires_grad_()
    scales = [torch.ones(HEAD, device=device).requires_grad_() for _ in range(2)]

    def split(qkv: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
        q, k, v = qkv.unflatten(-1, (3, heads, HEAD)).unbind(-3)
        q, k = (F.layer_norm(t.float(), (HEAD,), s, eps=HEAD_NORM_EPS).to(t.dtype) for t, s in ((q, a), (k, b)))
        return [q, k, v]

    def over_frames(qkv: Tensor, a: Tensor, b: Tensor) -> Tensor:
        q, k, v = (t.permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous() for t in split(qkv, a, b))
        y = torch.softmax((q @ k.transpose(-1, -2)).float() * HEAD**-0.5, -1).to(v.dtype) @ v
        return y.unflatten(0, (len(qkv), -1)).permute(0, 3, 1, 2, 4).flatten(-2)

    rows_of = qkv.detach().flatten(0, 1).requires_grad_()
    name = f"{channels} @ {side}x{side}"
    return [
        _row(
            f"attention over {FRAMES} frames {name}", lambda *i: attend_over_frames(*i, heads, HEAD_NORM_EPS),
            over_frames, [qkv, *scales], (4 + 7) * unit, device, bandwidth,
        ),
        _row(
            f"norm of heads {name}",
            lambda q, a, b: torch.cat(heads_of_rows(q, None, a, b, heads, HEAD_NORM_EPS), -1),
            lambda q, a, b: torch.cat([t.contiguous() for t in split(q, a, b)], -1),
            [rows_of, *scales], (6 + 9 + 12) * unit, device, bandwidth,  # with the concatenation that measures it
        ),
    ]  # fmt: skip


def _row(
    name: str, ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: list[Tensor], moved: float,
    device: str, bandwidth: float,
) -> dict[str, Any]:  # fmt: skip
    with torch.no_grad():
        one, two = ours(*inputs).double(), theirs(*inputs).double()
        away = float((one - two).norm() / two.norm())
    seconds, peer = (seconds_of(_both_ways(way, inputs), device) for way in (ours, theirs))
    share = moved / seconds / 1e9 / bandwidth
    row = {"kernel": name, "ms": seconds * 1e3, "pytorch_ms": peer * 1e3, "of_bandwidth": share, "difference": away}
    print(f"  {name:40} {seconds * 1e3:7.3f} ms  PyTorch {peer * 1e3:7.3f}  {share:5.0%}  diff {away:.1e}", flush=True)
    return row
