"""The pixel U-Net of D, F^, SR_l and SR_h: an image network that becomes a space-time network when `max_frames` is set.

Input and output are clips (B, T, C, H, W) in [-1, 1]; an image is a clip of one frame. Inside, everything is (B*T, C, H, W) channels-last
(see `pseudo3d`). What a network is conditioned on follows its config:

- the noise step, always; fps, when it is a video network (zero at first, so that inflation changes nothing);
- a CLIP image embedding, added to the time embedding and as extra tokens in attention (unCLIP section 2.1);
- a low-resolution input with its noise level (SR); given frames with their mask (F^, Make-A-Video section 3.3).

Conditions are per clip: they are projected once and shared by the clip's frames.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mav.models.pseudo3d import (
    FrameNorm,
    PseudoAttention3d,
    PseudoConv3d,
    TemporalAttention,
    TemporalConv,
    convolve,
    sinusoid,
    zero,
)
from mav.recipes import Level, UNetConfig

MASK_CHANNELS = 4  # RGB of the given frames, zero elsewhere, and the mask of which are given


class ScalarEmbedding(nn.Module):
    """A number per clip (noise step, fps, noise level) to (B, dim): sinusoid, then a two-layer network."""

    def __init__(self, dim: int, *, starts_at_zero: bool = False) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, dim)
        outer = nn.Linear(dim, dim)
        self.outer = zero(outer) if starts_at_zero else outer

    def forward(self, value: Tensor) -> Tensor:
        dtype = self.inner.weight.dtype
        return self.outer(F.silu(self.inner(sinusoid(value, self.inner.in_features).to(dtype))))


class ClipCondition(nn.Module):
    """A unit-norm CLIP image embedding to a time-embedding addition and to context tokens; dropped rows become a learned null."""

    def __init__(self, embedding_dim: int, dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.null = nn.Parameter(torch.randn(embedding_dim))
        self.to_time = nn.Linear(embedding_dim, dim)
        self.to_tokens = nn.Linear(embedding_dim, tokens * dim)

    def forward(self, embedding: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """embedding: (B, d); keep: (B,) bool or None for all. Returns (B, dim) and (B, tokens, dim)."""
        embedding = (embedding * embedding.shape[-1] ** 0.5).to(self.null.dtype)  # entries of about unit size
        if keep is not None:
            embedding = torch.where(keep[:, None], embedding, self.null)
        return self.to_time(embedding), self.to_tokens(embedding).unflatten(-1, (self.tokens, -1))


def _projection(inputs: int, outputs: int) -> nn.Module:
    """From one width to another at each pixel; nothing where they are the same."""
    return nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()


class ResBlock(nn.Module):
    """Two pseudo-3D convolutions; the condition scales and shifts the second norm. Ends in zero weights.

    On the way up its input has two parts, what came from below and a skip connection. They are not put together: norms and convolutions
    take them one by one, which gives the same and saves copies of the network's widest activations.
    """

    def __init__(self, inputs: list[int], outputs: int, dim: int, dropout: float, *, video: bool) -> None:
        super().__init__()
        self.norm1 = FrameNorm(sum(inputs), parts=len(inputs))
        self.conv1 = PseudoConv3d(sum(inputs), outputs, video=video)
        self.modulation = nn.Linear(dim, 2 * outputs)
        self.norm2 = FrameNorm(outputs, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = PseudoConv3d(outputs, outputs, video=video)
        zero(self.conv2.spatial)
        self.skip = _projection(sum(inputs), outputs)

    def forward(self, parts: list[Tensor], condition: Tensor, frames: int) -> Tensor:
        """parts: (B*T, C_i, H, W) each; condition: (B, dim), already through a SiLU."""
        h = self.conv1(self.norm1.of_parts(parts, silu=True), frames)
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        h = self.conv2([self.dropout(self.norm2.modulated(h, 1 + scale, shift, silu=True))], frames)
        return (convolve(self.skip, parts) if isinstance(self.skip, nn.Conv2d) else parts[0]) + h


class LevelBlocks(nn.Module):
    """One block of a level: a ResBlock and, where the level has it, attention."""

    def __init__(self, inputs: list[int], level: Level, config: UNetConfig, dim: int) -> None:
        super().__init__()
        context = dim if config.embedding_dim else 0
        self.res = ResBlock(inputs, level.channels, dim, config.dropout, video=config.max_frames > 0)
        self.attention = (
            PseudoAttention3d(level.channels, config.head_channels, context, config.max_frames)
            if level.attention
            else None
        )

    def forward(self, parts: list[Tensor], condition: Tensor, context: Tensor | None, frames: int) -> Tensor:
        x = self.res(parts, condition, frames)
        return self.attention(x, context, frames) if self.attention is not None else x


class UNet(nn.Module):
    """A U-Net of per-level specs; see the module's docstring. `config` rebuilds it."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        levels, video = config.levels, config.max_frames > 0
        first = levels[0].channels
        dim = 4 * first

        self.time = ScalarEmbedding(dim)
        self.fps = ScalarEmbedding(dim, starts_at_zero=True) if video else None
        self.clip = ClipCondition(config.embedding_dim, dim, config.context_tokens) if config.embedding_dim else None
        self.low_noise = ScalarEmbedding(dim) if config.low_resolution else None

        self.input = PseudoConv3d(config.in_channels + 3 * config.low_resolution, first, video=video)
        # Beside the input convolution rather than wider input: the same function, and exactly D^t's while it is zero.
        self.known_input = (
            zero(nn.Conv2d(MASK_CHANNELS, first, 3, padding=1, bias=False)) if config.masked_frames else None
        )

        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        # Between two levels the activations are of the narrower one's width, on either way: the cheaper place for a change of width.
        channels, skips = first, list[int]()
        for depth, level in enumerate(levels):
            if depth:
                self.down.append(PseudoConv3d(channels, channels, stride=2, video=video))
            stages = nn.ModuleList()
            for _ in range(level.blocks):
                stages.append(LevelBlocks([channels], level, config, dim))
                channels = level.channels
                skips.append(channels)
            self.encoder.append(stages)
        self.middle = LevelBlocks([channels], levels[-1], config, dim)
        for level in reversed(levels):
            if self.decoder:
                self.up.append(_projection(channels, level.channels))
                channels = level.channels
            self.decoder.append(
                nn.ModuleList(LevelBlocks([channels, skips.pop()], level, config, dim) for _ in range(level.blocks))
            )
        self.output_norm = FrameNorm(first)
        self.output = PseudoConv3d(first, config.out_channels, video=video)
        zero(self.output.spatial)
        channels_last(self)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        time: bool = True,
        keep: Tensor | None = None,
        embedding: Tensor | None = None,
        fps: Tensor | None = None,
        low: Tensor | None = None,
        low_noise: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """The network's prediction for a noisy clip.

        x: (B, T, C, H, W). t: (B,) noise step in 0..1000. time: False switches every temporal layer off: T independent images.
        keep: (B,) bool, False where the embedding is dropped. embedding: (B, d) of unit norm. fps: (B,). low: (B, T, 3, H, W) the
        low-resolution input, upsampled; low_noise: (B,) its noise level in 0..1. known: (B, T, 4, H, W), see `known_frames`.
        Returns (B, T, out_channels, H, W). Raises ValueError for a clip it cannot take and for a condition it was not given.
        """
        b, n = x.shape[:2]
        self._check(x, embedding, low, known, fps, time)
        frames = n if time and self.config.max_frames else 0

        condition, context = self.time(t), None
        if self.fps is not None and frames:
            condition = condition + self.fps(fps)
        if self.clip is not None:
            addition, context = self.clip(embedding, keep)
            condition = condition + addition
        if self.low_noise is not None and low_noise is not None:
            condition = condition + self.low_noise(1000 * low_noise)
        condition = F.silu(condition)

        x = x if low is None else torch.cat([x, low.to(x)], dim=2)
        h = self.input([_flatten(x)], frames)
        if self.known_input is not None and known is not None:
            h = h + self.known_input(_flatten(known))

        skips = []
        for depth, stages in enumerate(self.encoder):
            if depth:
                h = self.down[depth - 1]([h], frames)
            for stage in cast(nn.ModuleList, stages):
                h = self._run(stage, depth, [h], condition, context, frames)
                skips.append(h)
        h = self.middle([h], condition, context, frames)
        for index, stages in enumerate(self.decoder):
            if index:
                h = F.interpolate(self.up[index - 1](h), scale_factor=2.0, mode="nearest")
            for stage in cast(nn.ModuleList, stages):
                h = self._run(stage, len(self.decoder) - 1 - index, [h, skips.pop()], condition, context, frames)
        h = self.output([self.output_norm(h, silu=True)], frames)
        return h.unflatten(0, (b, n))

    def _run(self, stage: nn.Module, depth: int, *inputs: Any) -> Tensor:
        """A stage, with its activations recomputed in the backward pass on the highest resolutions when the config says so."""
        if self.training and depth < self.config.checkpoint_levels:
            output: Tensor = checkpoint(stage, *inputs, use_reentrant=False)
        else:
            output = stage(*inputs)
        return output

    def _check(
        self,
        x: Tensor,
        embedding: Tensor | None,
        low: Tensor | None,
        known: Tensor | None,
        fps: Tensor | None,
        time: bool,
    ) -> None:
        config, factor = self.config, 2 ** (len(self.config.levels) - 1)
        if x.ndim != 5 or x.shape[2] != config.in_channels or x.shape[3] % factor or x.shape[4] % factor:
            raise ValueError(
                f"the U-Net takes (B, T, {config.in_channels}, H, W) with H and W multiples of {factor}, not {tuple(x.shape)}"
            )
        video = time and config.max_frames > 0
        if video and x.shape[1] > config.max_frames:
            raise ValueError(
                f"a clip of {x.shape[1]} frames is longer than this network's {config.max_frames}: sample it in windows"
            )
        for name, wanted, given in (
            ("embedding", config.embedding_dim > 0, embedding),
            ("low", config.low_resolution, low),
            ("known", config.masked_frames, known),
            ("fps", video, fps if video else None),
        ):
            if wanted != (given is not None):
                raise ValueError(f"this network {'needs' if wanted else 'does not take'} the condition `{name}`")

    def temporal_parameters(self) -> list[nn.Parameter]:
        """The parameters that inflation and masked frames added: all that an image network does not have."""
        new: list[nn.Module] = [m for m in self.modules() if isinstance(m, (TemporalConv, TemporalAttention))]
        new += [m for m in (self.fps, self.known_input) if m is not None]
        return [parameter for module in new for parameter in module.parameters()]

    def compile_blocks(self) -> None:
        """Compiles each stage on its own: many are alike and share a graph, so it is short, and each is one graph of static shapes."""
        torch.compiler.reset()  # of an earlier stage's network in this process, which would count below
        stages = [module for module in self.modules() if isinstance(module, LevelBlocks)]
        graphs = 8 * len(
            stages
        )  # eight is what dynamo allows a function by default; here one function is that of all stages
        for stage in stages:
            stage.compile(fullgraph=True, dynamic=False, recompile_limit=graphs)


def channels_last(net: nn.Module) -> None:
    """Lays the weights of convolutions out as their activations are. A copy, as `contiguous` leaves 1x1 kernels the strides they have,
    which are not those of their gradients, so that DDP would copy each of these."""
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = torch.empty_like(parameter, memory_format=torch.channels_last).copy_(parameter.data)


def _flatten(clip: Tensor) -> Tensor:
    """(B, T, C, H, W) to (B*T, C, H, W) in channels-last memory."""
    return clip.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def known_frames(clip: Tensor, mask: Tensor) -> Tensor:
    """F^'s condition: the clip (B, T, 3, H, W) with unknown frames at zero, and its mask (B, T), True = known: (B, T, 4, H, W)."""
    plane = mask[:, :, None, None, None].to(clip).expand(-1, -1, 1, *clip.shape[-2:])
    return torch.cat([clip * plane, plane], dim=2)


def inflate(image_net: UNet, max_frames: int) -> UNet:
    """The space-time network that, for now, does exactly what `image_net` does to each frame (Make-A-Video section 3.2)."""
    return _grow(image_net, dataclasses.replace(image_net.config, max_frames=max_frames))


def add_masked_frames(video_net: UNet) -> UNet:
    """F^ at its start: D^t with four more input channels of zero weight (Make-A-Video section 3.3)."""
    return _grow(video_net, dataclasses.replace(video_net.config, masked_frames=True))


def _grow(net: UNet, config: UNetConfig) -> UNet:
    """A network of `config` that holds every parameter of `net`; what is new keeps its neutral start."""
    parameter = next(net.parameters())
    grown = UNet(config).to(device=parameter.device, dtype=parameter.dtype)
    missing, unexpected = grown.load_state_dict(net.state_dict(), strict=False)
    new = {id(p) for p in grown.temporal_parameters()}
    stray = [name for name, p in grown.named_parameters() if name in missing and id(p) not in new]
    if unexpected or stray:
        raise ValueError(
            f"the network cannot become {config}: {', '.join([*unexpected, *stray])} would be lost or made up"
        )
    return grown
