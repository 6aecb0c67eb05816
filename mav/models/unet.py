"""The pixel U-Net of D, F^, SR_l and SR_h: an image network that becomes a space-time network when `max_frames` is set.

Input and output are clips (B, T, C, H, W) in [-1, 1]; an image is a clip of one frame. Inside, everything is (B*T, C,
H, W) channels-last (see `pseudo3d`). The config decides what a network is conditioned on:

- always the noise step; for a video network also the fps, in the time embedding and as a gate of every layer over time
  (with zero weights at first, so that inflation changes nothing);
- a CLIP image embedding, added to the time embedding and read as extra tokens in attention (unCLIP section 2.1);
- a low-resolution input with its noise level (SR); given frames with their mask (F^, Make-A-Video section 3.3).
"""

import dataclasses
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mav.models import pseudo3d
from mav.models.kernels.dispatch import add
from mav.models.kernels.layout import weights_channels_last
from mav.models.pseudo3d import FrameNorm, PseudoAttention3d, PseudoConv3d, convolve, convolve_each, sinusoid, zero
from mav.recipes import Level, UNetConfig

MASK_CHANNELS = 4  # RGB of the given frames, zero elsewhere, and the mask of which are given


class ScalarEmbedding(nn.Module):
    """Embeds a number per clip (noise step, fps, noise level) as (B, dim): sinusoids, then a two-layer network."""

    def __init__(self, dim: int, *, starts_at_zero: bool = False) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, dim)
        self.outer = zero(nn.Linear(dim, dim)) if starts_at_zero else nn.Linear(dim, dim)

    def forward(self, value: Tensor) -> Tensor:
        features = sinusoid(value, self.inner.in_features).to(self.inner.weight.dtype)
        return self.outer(F.silu(self.inner(features)))


class ClipCondition(nn.Module):
    """Turns a unit-norm CLIP image embedding into an addition to the time embedding and into context tokens.

    A learned null embedding takes the place of a dropped one.
    """

    def __init__(self, embedding_dim: int, dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.null = nn.Parameter(torch.randn(embedding_dim))
        self.to_time = nn.Linear(embedding_dim, dim)
        self.to_tokens = nn.Linear(embedding_dim, tokens * dim)

    def forward(self, embedding: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """embedding: (B, d); keep: (B,) bool, or None to keep all. Returns (B, dim) and (B, tokens, dim)."""
        embedding = (embedding * embedding.shape[-1] ** 0.5).to(self.null.dtype)  # entries of about unit size
        if keep is not None:
            embedding = torch.where(keep[:, None], embedding, self.null)
        return self.to_time(embedding), rearrange(self.to_tokens(embedding), "b (n c) -> b n c", n=self.tokens)


def _projection(inputs: int, outputs: int) -> nn.Module:
    """Changes the width at each pixel; the identity where both widths are the same."""
    return nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()


class ResBlock(nn.Module):
    """Two pseudo-3D convolutions, the last of zero weights at first. The condition scales and shifts the second norm.

    In the decoder the input has two parts, from the block below and from a skip connection. They are not concatenated:
    norms and convolutions take them one by one, which gives the same and saves copies of the network's widest
    activations.
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

    def forward(self, parts: list[Tensor], condition: Tensor, frames: int, rate: Tensor | None = None) -> Tensor:
        """parts: (B*T, C_i, H, W) each; condition: (B, dim), already through a SiLU; rate: see `TemporalConv`."""
        h, bias = self.conv1.without_bias(self.norm1.of_parts(parts, silu=True), frames, rate)
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        h = self.norm2.modulated(h, bias, 1 + scale, shift, silu=True)
        h, bias = self.conv2.without_bias([self.dropout(h)], frames, rate)
        if not isinstance(self.skip, nn.Conv2d):
            return add([parts[0], h], bias)
        if bias is None or self.skip.bias is None:
            return convolve(self.skip, parts, self.skip.bias) + h
        return add([*convolve_each(self.skip, parts, None), h], bias + self.skip.bias)


class LevelBlock(nn.Module):
    """The layers of one block of a level (a resolution): a ResBlock, then attention where the level has it."""

    def __init__(self, inputs: list[int], level: Level, config: UNetConfig, dim: int) -> None:
        super().__init__()
        context, channels = dim if config.embedding_dim else 0, level.channels
        self.res = ResBlock(inputs, channels, dim, config.dropout, video=config.max_frames > 0)
        attention = (channels, config.head_channels, context, config.max_frames)
        self.attention = PseudoAttention3d(*attention) if level.attention else None

    def forward(self, parts: list[Tensor], condition: Tensor, context: Tensor | None, *time: Any) -> Tensor:
        x = self.res(parts, condition, *time)  # time: frames and rate
        return self.attention(x, context, *time) if self.attention is not None else x


class UNet(nn.Module):
    """A U-Net of the levels in its config (see the module's docstring). `config` is enough to build it again."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        levels, video = config.levels, config.max_frames > 0
        first = levels[0].channels
        dim = 4 * first

        # Conditions.
        self.time = ScalarEmbedding(dim)
        self.fps = ScalarEmbedding(dim, starts_at_zero=True) if video else None
        self.clip = ClipCondition(config.embedding_dim, dim, config.context_tokens) if config.embedding_dim else None
        self.low_noise = ScalarEmbedding(dim) if config.low_resolution else None

        # Input. Given frames enter by a convolution of their own instead of a wider one: it computes the same function,
        # and while its weights are zero the network is exactly D^t.
        self.input = PseudoConv3d(config.in_channels + 3 * config.low_resolution, first, video=video)
        known = nn.Conv2d(MASK_CHANNELS, first, 3, padding=1, bias=False) if config.masked_frames else None
        self.known_input = known and zero(known)

        # Encoder, from the highest resolution to the lowest. Between two levels the activations have the width of the
        # narrower one, here and in the decoder, which is the cheaper place to change the width.
        self.encoder, self.decoder, self.down, self.up = (nn.ModuleList() for _ in range(4))
        channels, skips = first, list[int]()
        for depth, level in enumerate(levels):
            if depth:
                self.down.append(PseudoConv3d(channels, channels, stride=2, video=video))
            blocks = nn.ModuleList()
            for _ in range(level.blocks):
                blocks.append(LevelBlock([channels], level, config, dim))
                channels = level.channels
                skips.append(channels)
            self.encoder.append(blocks)

        # Middle, and decoder from the lowest resolution to the highest, where each block also takes a skip connection.
        self.middle = LevelBlock([channels], levels[-1], config, dim)
        for level in reversed(levels):
            if self.decoder:
                self.up.append(_projection(channels, level.channels))
                channels = level.channels
            inputs = [[channels, skips.pop()] for _ in range(level.blocks)]
            self.decoder.append(nn.ModuleList(LevelBlock(widths, level, config, dim) for widths in inputs))

        # Output.
        self.output_norm = FrameNorm(first)
        self.output = PseudoConv3d(first, config.out_channels, video=video)
        zero(self.output.spatial)
        weights_channels_last(self)

    def forward(
        self, x: Tensor, t: Tensor, *, time: bool = True, keep: Tensor | None = None, embedding: Tensor | None = None,
        fps: Tensor | None = None, low: Tensor | None = None, low_noise: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Predicts from a noisy clip what the network's objective asks for: (B, T, out_channels, H, W).

        x: (B, T, C, H, W). t: noise step in 0..1000, (B,) of clips or (B, T) of their frames. time: False switches
        every temporal layer off, so that the frames are T independent images. keep: (B,) bool, False where the
        embedding is dropped. embedding: (B, d) of unit norm. fps: (B,). low: (B, T, 3, H, W), the low-resolution input,
        upsampled. low_noise: (B,), its noise level in 0..1. known: (B, T, 4, H, W), see `known_frames`. Raises
        ValueError for what the network does not take.
        """
        self._check(x, time, {"embedding": embedding, "low": low, "known": known, "fps": fps})
        b, n = x.shape[:2]
        frames = n if time and self.config.max_frames else 0

        # Known frames are clean in the input too, at the step of clean frames, which the network knows how to read.
        if known is not None:
            given = known[:, :, 3:] > 0
            x, t = torch.where(given, known[:, :, :3].to(x), x), torch.where(given[:, :, 0, 0, 0], 0, t.view(b, -1))

        # The conditions: one vector for each clip, or for each frame, and CLIP's tokens for attention.
        condition, context, rate, each = self.time(t.flatten()), None, None, t.numel() // b
        if self.fps is not None and fps is not None and frames:
            rate = pseudo3d.rate_features(fps)
            condition = condition + self.fps(fps).repeat_interleave(each, 0)
        if self.clip is not None:
            addition, context = self.clip(embedding, keep)
            condition = condition + addition.repeat_interleave(each, 0)
        if self.low_noise is not None and low_noise is not None:
            condition = condition + self.low_noise(1000 * low_noise).repeat_interleave(each, 0)
        common = (F.silu(condition), context, frames, rate)  # every block takes them

        # The inputs.
        x = x if low is None else torch.cat([x, low.to(x)], dim=2)
        h = self.input([_to_images(x)], frames, rate)
        if self.known_input is not None and known is not None:
            h = h + self.known_input(_to_images(known))

        # The encoder; every block's output is a skip connection.
        skips = []
        for depth, blocks in enumerate(self.encoder):
            if depth:
                h = self.down[depth - 1]([h], frames, rate)
            for block in cast(nn.ModuleList, blocks):
                h = self._run(block, depth, [h], *common)
                skips.append(h)
        h = self.middle([h], *common)

        # The decoder; every block takes a skip connection from the end.
        for index, blocks in enumerate(self.decoder):
            if index:
                h = _twice_as_large(self.up[index - 1](h))
            for block in cast(nn.ModuleList, blocks):
                h = self._run(block, len(self.decoder) - 1 - index, [h, skips.pop()], *common)
        h = self.output([self.output_norm(h, silu=True)], frames, rate)
        return rearrange(h, "(b t) c h w -> b t c h w", b=b)

    def _run(self, block: nn.Module, depth: int, *inputs: Any) -> Tensor:
        """Runs a block; the backward pass recomputes its activations on the first `checkpoint_levels` levels."""
        recomputed = self.training and depth < self.config.checkpoint_levels
        if not recomputed:
            return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=self.config.dropout > 0)

    def _check(self, x: Tensor, time: bool, given: dict[str, Tensor | None]) -> None:
        """Raises ValueError when the clip or the conditions are not what the network takes."""
        config, factor = self.config, 2 ** (len(self.config.levels) - 1)
        if x.ndim != 5 or x.shape[2] != config.in_channels or x.shape[3] % factor or x.shape[4] % factor:
            shape = f"(B, T, {config.in_channels}, H, W) with H and W multiples of {factor}"
            raise ValueError(f"the U-Net takes {shape}, not {tuple(x.shape)}")
        video = time and config.max_frames > 0
        if video and x.shape[1] > config.max_frames:
            longest = f"this network's {config.max_frames}: sample it in windows"
            raise ValueError(f"a clip of {x.shape[1]} frames is longer than {longest}")
        takes = {"embedding": config.embedding_dim > 0, "low": config.low_resolution, "known": config.masked_frames}
        takes |= {"fps": True} if video else {}  # one that is given although time is off is ignored
        for name, taken in takes.items():
            if taken != (given[name] is not None):
                raise ValueError(f"this network {'needs' if taken else 'does not take'} the condition `{name}`")

    def temporal_parameters(self) -> list[nn.Parameter]:
        """The parameters that inflation and masked frames added: all that an image network does not have."""
        temporal = (pseudo3d.TemporalConv, pseudo3d.TemporalAttention)
        new: list[nn.Module] = [m for m in self.modules() if isinstance(m, temporal)]
        new += [m for m in (self.fps, self.known_input) if m is not None]
        return [parameter for module in new for parameter in module.parameters()]


def _twice_as_large(x: Tensor) -> Tensor:
    """Nearest-neighbour upsampling in the precision of x: autocast would have it, and all after it, in float32."""
    with torch.autocast(x.device.type, enabled=False):
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _to_images(clip: Tensor) -> Tensor:
    """(B, T, C, H, W) to (B*T, C, H, W) in channels-last memory."""
    return rearrange(clip, "b t c h w -> (b t) c h w").contiguous(memory_format=torch.channels_last)


def known_frames(clip: Tensor, mask: Tensor) -> Tensor:
    """The condition of F^, (B, T, 4, H, W): a clip (B, T, 3, H, W) with unknown frames at zero, then its mask.

    mask: (B, T), True where the frame is known.
    """
    h, w = clip.shape[-2:]
    plane = repeat(mask.to(clip), "b t -> b t 1 h w", h=h, w=w)
    return torch.cat([clip * plane, plane], dim=2)


def inflate(image_net: UNet, max_frames: int) -> UNet:
    """The space-time network that at first does to each frame exactly what `image_net` does (paper section 3.2)."""
    return _grow(image_net, dataclasses.replace(image_net.config, max_frames=max_frames))


def add_masked_frames(video_net: UNet) -> UNet:
    """F^ at its start: D^t with four more input channels of zero weight (Make-A-Video section 3.3)."""
    return _grow(video_net, dataclasses.replace(video_net.config, masked_frames=True))


def _grow(net: UNet, config: UNetConfig) -> UNet:
    """A network of `config` that holds every parameter of `net`. The new parameters keep their neutral start."""
    parameter = next(net.parameters())
    grown = UNet(config).to(device=parameter.device, dtype=parameter.dtype)
    missing, unexpected = grown.load_state_dict(net.state_dict(), strict=False)
    new = {id(p) for p in grown.temporal_parameters()}
    stray = [name for name, p in grown.named_parameters() if name in missing and id(p) not in new]
    if unexpected or stray:
        names = ", ".join([*unexpected, *stray])
        raise ValueError(f"the network cannot become {config}: {names} would be lost or made up")
    return grown
