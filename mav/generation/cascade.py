"""The trained cascade y = SR_h . SR_l^t . F^ . D^t . P (Make-A-Video section 3), and its uses.

Every use ends in the same three networks: F^ fills in frames, SR_l^t and SR_h add pixels. The uses differ in where the
first frames come from: a text (`sample`), one image (`animate`), two images (`interpolate`) or a video (`vary`). F^ and
SR_l^t see `frames` frames at a time, so memory does not depend on a video's length. All noise belongs to a sample's own
seed, so a video does not depend on the batch it is made in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from mav.diffusion.guidance import Denoiser
from mav.diffusion.noise import SampleNoise
from mav.diffusion.pixels import augment, downsample, to_pixels, to_unit, upsample
from mav.diffusion.sampler import sample
from mav.generation.between import blend, warp
from mav.generation.replay import Pool, Replayed
from mav.models.clip import ClipModel
from mav.models.prior import from_scale
from mav.models.unet import known_frames
from mav.recipes import CascadeSizes, Generate, GuidedSampling, Recipe, Sampling
from mav.storage import Folder
from mav.training.export import Export, load_network

NETWORKS = {
    "prior": "train-prior",
    "decoder": "train-decoder-video",
    "interpolation": "train-interpolation",
    "sr_low": "train-sr-low-video",
    "sr_high": "train-sr-high",
}
ProgressCallback = Callable[[str, int, int], None] | None  # called with the network, steps done and steps
PIXELS_AT_ONCE = 11 * 768**2  # that a super-resolution network is given: as many fill a large card


@dataclass(frozen=True)
class Cascade:
    """The networks of one run, ready to sample."""

    sizes: CascadeSizes
    clip: ClipModel
    prior: Export
    decoder: Export
    interpolation: Export
    sr_low: Export
    sr_high: Export
    device: str = "cpu"
    replayed: dict[str, Replayed] = field(init=False, default_factory=dict)
    pool: Pool = field(init=False, default_factory=Pool)

    @classmethod
    def load(cls, recipe: Recipe, inputs: dict[str, Folder], device: str = "cpu") -> Self:
        """Reads the networks from their stages' artifacts. Raises UserError when one is missing or does not load."""
        if device.startswith("cuda"):
            torch.set_float32_matmul_precision("high")  # TF32 where sampling computes in float32
            torch.backends.cudnn.benchmark = True  # shapes repeat
        networks = {name: load_network(inputs[stage], device) for name, stage in NETWORKS.items()}
        return cls(recipe.cascade, ClipModel.load(inputs["clip"], device), **networks, device=device)

    def sample(
        self, prompts: list[str], seeds: Sequence[int], generate: Generate, *, time: bool = True,
        progress: ProgressCallback = None,
    ) -> np.ndarray:  # fmt: skip
        """Text to video: B prompts and seeds to uint8 (B, `sizes.long_frames`, H, W, 3), H = W = `sizes.high_size`.

        time: False switches every temporal layer off and keeps all else, so that each frame is an image by itself.
        """
        run = CascadeBatch(self, seeds, generate, time, progress)
        embedding = run.embed_prompts(prompts)
        return run.finish(run.decode(embedding), embedding)

    def sample_decoded(
        self, prompts: list[str], seeds: Sequence[int], generate: Generate, progress: ProgressCallback = None
    ) -> np.ndarray:
        """Text to the frames of D^t alone, enlarged without a network: uint8 (B, `sizes.frames`, H, W, 3)."""
        run = CascadeBatch(self, seeds, generate, True, progress)
        clip = run.decode(run.embed_prompts(prompts))
        return _to_frames(upsample(clip, self.sizes.high_size // self.sizes.base_size))

    def animate(
        self, images: np.ndarray, seeds: Sequence[int], generate: Generate, progress: ProgressCallback = None
    ) -> np.ndarray:
        """Image to video: F^ continues from one known frame. images: uint8 (B, S, S, 3)."""
        return self._from_frames(CascadeBatch(self, seeds, generate, True, progress), images[:, None], [0])

    def interpolate(
        self, first: np.ndarray, last: np.ndarray, seeds: Sequence[int], generate: Generate,
        progress: ProgressCallback = None,
    ) -> np.ndarray:  # fmt: skip
        """Two images to the video between them: F^ knows both ends. first, last: uint8 (B, S, S, 3)."""
        ends = np.stack([first, last], axis=1)
        return self._from_frames(CascadeBatch(self, seeds, generate, True, progress), ends, [0, self.sizes.frames - 1])

    def vary(
        self, videos: np.ndarray, seeds: Sequence[int], generate: Generate, progress: ProgressCallback = None
    ) -> np.ndarray:
        """Video to a similar one: the mean CLIP embedding of its frames replaces P. videos: uint8 (B, F, S, S, 3)."""
        run = CascadeBatch(self, seeds, generate, True, progress)
        embedding = torch.stack([from_scale(self.embed_images(video).mean(0)) for video in videos])
        return run.finish(run.decode(embedding), embedding)

    def _from_frames(self, run: CascadeBatch, given: np.ndarray, places: list[int]) -> np.ndarray:
        """A video through F^ from frames known at some places: uint8 (B, len(places), S, S, 3)."""
        embedding = self.embed_images(given[:, 0])
        return run.finish(run.fill_between(given, embedding, places), embedding)

    def embed_images(self, images: np.ndarray) -> Tensor:
        """uint8 (B, S, S, 3) to CLIP embeddings (B, d)."""
        with torch.no_grad():
            return self.clip.encode_image(rearrange(torch.from_numpy(images), "b h w c -> b c h w").to(self.device))

    def to_base(self, clip: np.ndarray) -> Tensor:
        """uint8 (B, T, S, S, 3) to the decoder's resolution, (B, T, 3, s, s) in [-1, 1]."""
        pixels = rearrange(torch.from_numpy(clip).to(self.device), "b t h w c -> b t c h w")
        return downsample(to_unit(pixels), self.sizes.base_size)


@dataclass(frozen=True)
class CascadeBatch:
    """One batch in the cascade: B seeds, their settings, and a method for each network."""

    cascade: Cascade
    seeds: Sequence[int]
    generate: Generate
    time: bool = True
    progress: ProgressCallback = None

    def embed_prompts(self, prompts: list[str]) -> Tensor:
        """P: a CLIP image embedding (B, d) for each prompt, the candidate that is closest to the text (unCLIP 2.2)."""
        if len(prompts) != len(self.seeds):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(self.seeds)}")
        clip, device, sampling = self.cascade.clip, self.cascade.device, self.generate.prior
        tokens = clip.tokenize(prompts).to(device)
        with torch.no_grad():
            text = clip.encode_text(tokens)
        conditions = {"tokens": tokens, "text_embedding": text}
        drawn = []
        for candidate in range(self.generate.prior_candidates):
            noise = SampleNoise(self.seeds, f"prior {candidate}", (clip.dim,), device=device)
            drawn.append(from_scale(self._denoise("prior", sampling, conditions, noise, clip=False)))
        candidates = torch.stack(drawn, dim=1)
        best = (candidates * text[:, None]).sum(-1).argmax(1)
        return candidates[torch.arange(len(best)), best]

    def decode(self, embedding: Tensor) -> Tensor:
        """D^t: clips (B, F, 3, s, s) of the recipe's frame rate."""
        conditions, sizes = {"embedding": embedding, "fps": self._each(self.generate.fps)}, self.cascade.sizes
        return self._frames("decoder", self.generate.decoder, range(sizes.frames), sizes.base_size, conditions)

    def finish(self, clip: Tensor, embedding: Tensor) -> np.ndarray:
        """F^, SR_l^t and SR_h: from a decoded clip to the finished video, uint8 (B, F, H, W, 3)."""
        return self.upsample_high(self.upsample_low(self.fill(clip, embedding)))

    def fill(self, clip: Tensor, embedding: Tensor) -> Tensor:
        """F^ in windows: (B, F, ...) to (B, (F - 1) * skip + 1, ...). Windows overlap by one frame."""
        skip, frames = self.cascade.sizes.frame_skip, clip.shape[1]
        long = clip.new_zeros(len(clip), (frames - 1) * skip + 1, *clip.shape[2:])
        known = torch.zeros(long.shape[1], dtype=torch.bool, device=clip.device)
        long[:, ::skip], known[::skip] = clip, True
        guess = _moved(clip, skip) if self.generate.interpolation_start < 1 else None
        fill = partial(self.fill_window, embedding=embedding, fps=self.generate.fps * skip, purpose="interpolation")
        for start in range(0, long.shape[1] - 1, frames - 1):
            window = slice(start, start + frames)
            if not known[window].all():
                long[:, window] = fill(
                    long[:, window], known[window], start=start, guess=guess if guess is None else guess[:, window]
                )
                known[window] = True
        return long

    def fill_between(self, given: np.ndarray, embedding: Tensor, places: list[int]) -> Tensor:
        """F^ from pictures alone, uint8 (B, len(places), S, S, 3), at these places of a clip as long as D^t's."""
        known, length = self.cascade.to_base(given), self.cascade.sizes.frames
        clip = known.new_zeros(len(known), length, *known.shape[2:])
        mask = torch.zeros(length, dtype=torch.bool, device=clip.device)
        clip[:, places], mask[places] = known, True
        return self.fill_window(clip, mask, embedding, self.generate.fps, start=0, purpose="animation")

    def fill_window(
        self, clip: Tensor, known: Tensor, embedding: Tensor, fps: float, start: int, purpose: str,
        guess: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """F^ on one window: clip (B, F, 3, s, s), known (F,) bool. Known frames are returned as they are.

        guess: the window as it may look, which sampling starts from where the recipe says so (`interpolation_start`).
        """
        mask = known_frames(clip, known.expand(len(clip), -1))
        conditions = {"embedding": embedding, "fps": self._each(fps), "known": mask}
        frames = range(start, start + clip.shape[1])
        sampling = self.generate.interpolation
        made = self._frames("interpolation", sampling, frames, clip.shape[-1], conditions, purpose, guess)
        return torch.where(known[:, None, None, None], clip, made)

    def upsample_low(self, clip: Tensor) -> Tensor:
        """SR_l^t over windows of frames. A frame's noise is its own, so windows agree where they overlap."""
        sizes = self.cascade.sizes
        fps, parts = {"fps": self._each(self.generate.fps * sizes.frame_skip)}, []
        for frames, new in _windows(clip.shape[1], sizes.frames):
            part = clip[:, frames.start : frames.stop]
            made = self._super_resolve("sr_low", self.generate.sr_low, part, frames, sizes.low_size, fps)
            parts.append(made[:, new:])
        return torch.cat(parts, dim=1)

    def upsample_high(self, clip: Tensor) -> np.ndarray:
        """SR_h, an image network, to uint8 (B, F, H, W, 3).

        All frames start from the same noise, so that details do not flicker (paper 3.2).
        """
        sizes, parts = self.cascade.sizes, []
        for frames, new in _windows(clip.shape[1], max(1, PIXELS_AT_ONCE // sizes.high_size**2)):
            part = clip[:, frames.start : frames.stop]
            made = self._super_resolve("sr_high", self.generate.sr_high, part, [0] * len(frames), sizes.high_size, {})
            parts.append(_to_frames(made[:, new:]))
        return np.concatenate(parts, axis=1)

    def _super_resolve(
        self, name: str, sampling: Sampling, clip: Tensor, frames: Sequence[int], size: int, extra: dict[str, Tensor]
    ) -> Tensor:
        """Upsamples a clip with an SR network to `size` pixels a side, some samples at a time where they are large."""
        rows = max(1, PIXELS_AT_ONCE // (len(frames) * size**2))
        if len(clip) > rows:
            parts = (
                replace(self, seeds=self.seeds[i : i + rows])._super_resolve(
                    name, sampling, clip[i : i + rows], frames, size, {k: v[i : i + rows] for k, v in extra.items()}
                )
                for i in range(0, len(clip), rows)
            )
            return torch.cat(list(parts))
        level = self._each(self.generate.noise_augmentation)
        low = upsample(clip, size // clip.shape[-1])
        if self.generate.noise_augmentation:
            noise = SampleNoise(self.seeds, f"{name} input", low.shape[2:], frames, self.cascade.device)
            low = augment(low, level, noise())
        return self._frames(name, sampling, frames, size, {"low": low, "low_noise": level, **extra})

    def _frames(
        self, name: str, sampling: Sampling, frames: Sequence[int], size: int, conditions: dict[str, Tensor],
        purpose: str = "", guess: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """A clip from one of the U-Nets, (B, len(frames), 3, size, size). Each frame's noise is keyed by its number."""
        share = getattr(self.cascade, name).objective.shared_noise
        noise = SampleNoise(self.seeds, purpose or name, (3, size, size), frames, self.cascade.device, share)
        return self._denoise(name, sampling, conditions, noise, guess, clip=True, time=self.time)

    def _denoise(
        self, name: str, sampling: Sampling, conditions: dict[str, Tensor], noise: SampleNoise,
        guess: Tensor | None = None, **options: Any,
    ) -> Tensor:  # fmt: skip
        """A sample of one network under its conditions. The options are those of `Denoiser`."""
        export: Export = getattr(self.cascade, name)
        network = self.cascade.replayed.setdefault(name, Replayed(export.network, self.cascade.pool))
        if isinstance(sampling, GuidedSampling):
            options |= {"guidance": sampling.guidance, "interval": sampling.guidance_interval}
            options |= {"rescale": sampling.guidance_rescale}
        denoiser = Denoiser(network, export.objective, conditions, **options)
        progress = partial(self.progress, name) if self.progress else None
        return sample(denoiser, noise, sampling, progress, guess, self.generate.interpolation_start)

    def _each(self, value: float) -> Tensor:
        """The value for each sample of the batch."""
        return torch.full((len(self.seeds),), float(value), device=self.cascade.device)


def _to_frames(clip: Tensor) -> np.ndarray:
    """Clips (B, T, 3, H, W) in [-1, 1] on any device to uint8 (B, T, H, W, 3)."""
    return rearrange(to_pixels(clip), "b t c h w -> b t h w c").cpu().numpy()


def _windows(count: int, size: int) -> Iterator[tuple[range, int]]:
    """Windows of at most `size` over `count` frames, all equally long: each with how many of its frames came before.

    The last one ends with the video and overlaps the one before, because a shorter one would be a shape of its own.
    """
    size = math.ceil(count / math.ceil(count / size))
    for start in range(0, count, size):
        first = min(start, count - size)
        yield range(first, first + size), start - first


def _moved(clip: Tensor, skip: int) -> Tensor:
    """What optical flow puts between the frames of clips: (B, F, 3, s, s) to (B, (F - 1) * skip + 1, 3, s, s)."""
    videos = _to_frames(clip)
    moved = np.stack([blend(video, skip) if (flow := warp(video, skip)) is None else flow for video in videos])
    return rearrange(to_unit(torch.from_numpy(moved)), "b f h w c -> b f c h w").to(clip)
