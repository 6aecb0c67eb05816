"""One network of bench_unet in a process of its own, in its own environment: prints its facts, then a step's cost for
every line it reads.

    python unet_worker.py NETWORK PRESET DEVICE

NETWORK: ours, make-a-video-pytorch, diffusers, each also with " compiled" after it; or convolution, the plain one that
sets the limit. A step is forward and backward of the mean square of the output: CPU seconds of the process on one
thread, or seconds of the GPU.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

HEAD_CHANNELS, EMBEDDING, TOKENS = 32, 512, 77


@dataclass(frozen=True)
class Preset:
    """A clip's shape, and the network's widths, residual blocks a level, and which levels attend."""

    batch: int
    frames: int
    size: int
    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    blocks: int


PRESETS = {
    "cpu32": Preset(1, 8, 32, (64, 128, 256), (False, False, True), 2),
    "cpu64": Preset(1, 16, 64, (64, 128, 256), (False, False, True), 2),
    "gpu64": Preset(4, 16, 64, (192, 384, 576, 768), (False, True, True, True), 3),
}
Forward = Callable[[], Tensor]


def ours(p: Preset, device: str, compiled: bool) -> tuple[nn.Module, Forward]:
    from mav.models.unet import UNet
    from mav.recipes import Level, UNetConfig

    levels = tuple(
        Level(channels=c, blocks=p.blocks, attention=a) for c, a in zip(p.channels, p.attention, strict=True)
    )
    net = UNet(UNetConfig(levels=levels, embedding_dim=EMBEDDING, head_channels=HEAD_CHANNELS, max_frames=p.frames)).to(
        device
    )
    x = torch.randn(p.batch, p.frames, 3, p.size, p.size, device=device)
    t, fps = torch.rand(p.batch, device=device) * 1000, torch.full((p.batch,), 8.0, device=device)
    embedding = nn.functional.normalize(torch.randn(p.batch, EMBEDDING, device=device), dim=-1)
    return net, lambda: net(x, t, embedding=embedding, fps=fps)


def make_a_video_pytorch(p: Preset, device: str, compiled: bool) -> tuple[nn.Module, Forward]:
    from make_a_video_pytorch import SpaceTimeUnet

    levels = len(p.channels)
    net = SpaceTimeUnet(
        dim=p.channels[0],
        channels=3,
        dim_mult=tuple(c // p.channels[0] for c in p.channels),
        self_attns=p.attention,
        temporal_compression=(False,) * levels,  # the paper keeps all frames at every level
        resnet_block_depths=(p.blocks,) * levels,
        attn_dim_head=HEAD_CHANNELS,
        attn_heads=8,
        flash_attn=False,  # its position bias, on by default, forbids the fused kernel
    ).to(device)
    run = torch.compile(net) if compiled else net
    x, t = torch.randn(p.batch, 3, p.frames, p.size, p.size, device=device), torch.rand(p.batch, device=device) * 1000
    return net, lambda: run(x, timestep=t)


def diffusers(p: Preset, device: str, compiled: bool) -> tuple[nn.Module, Forward]:
    from diffusers import UNet3DConditionModel

    net = UNet3DConditionModel(
        sample_size=p.size,
        in_channels=3,
        out_channels=3,
        block_out_channels=p.channels,
        down_block_types=tuple("CrossAttnDownBlock3D" if a else "DownBlock3D" for a in p.attention),
        up_block_types=tuple("CrossAttnUpBlock3D" if a else "UpBlock3D" for a in reversed(p.attention)),
        layers_per_block=p.blocks,
        cross_attention_dim=EMBEDDING,
        attention_head_dim=HEAD_CHANNELS,
    ).to(device)
    run = torch.compile(net) if compiled else net
    x, t = (
        torch.randn(p.batch, 3, p.frames, p.size, p.size, device=device),
        torch.randint(1000, (p.batch,), device=device),
    )
    text = torch.randn(p.batch, TOKENS, EMBEDDING, device=device)
    return net, lambda: run(x, t, text, return_dict=False)[0]


def convolution(p: Preset, device: str, compiled: bool) -> tuple[nn.Module, Forward]:
    """Plain channels-last 3x3 convolutions, one at each level's width and resolution: what the processor can do."""
    layers = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for c in p.channels).to(
        device, memory_format=torch.channels_last
    )
    inputs = [
        torch.randn(p.batch * p.frames, c, p.size >> level, p.size >> level, device=device)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for level, c in enumerate(p.channels)
    ]
    return layers, lambda: torch.cat([layer(x).flatten() for layer, x in zip(layers, inputs, strict=True)])


NETWORKS = {
    "ours": ours,
    "make-a-video-pytorch": make_a_video_pytorch,
    "diffusers": diffusers,
    "convolution": convolution,
}


def main(name: str, preset: str, device: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    elif name.split()[0] in ("ours", "convolution"):  # what training does (flows/training.py)
        from mav.training.process.memory import keep_freed_memory

        keep_freed_memory()
    build, compiled = NETWORKS[name.removesuffix(" compiled")], name.endswith(" compiled")
    with FlopCounterMode(
        display=False
    ) as flops:  # on the network as it is written: the counter does not see into compiled graphs
        plain, forward = build(PRESETS[preset], device, False)
        forward().float().square().mean().backward()
    net, forward = (plain, forward) if not compiled else build(PRESETS[preset], device, True)

    def step() -> float:
        net.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        before = time.perf_counter() if device == "cuda" else time.process_time()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = forward().float().square().mean()
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() if device == "cuda" else time.process_time()) - before

    for _ in range(2):  # compiles, chooses kernels, takes the memory that a step needs
        step()
    facts = {"parameters": sum(p.numel() for p in net.parameters()), "flops": flops.get_total_flops()}
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        print(step(), flush=True)
    if device == "cuda":
        print(torch.cuda.max_memory_allocated(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
