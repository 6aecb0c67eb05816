"""The trained cascade y = SR_h . SR_l^t . F^ . D^t . P (Make-A-Video section 3), and its uses.

Every use ends in the same three networks: F^ fills in frames, SR_l^t and SR_h add pixels. They differ in where the first frames come
from: a text (`sample`), one image (`animate`), two images (`interpolate`) or a video (`vary`). F^ and SR_l^t see `frames` frames at a
time, so a video's length does not change the memory it takes. All noise belongs to a sample's own seed: a video does not depend on the
batch it was made in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mav.diffusion.guidance import Denoiser
from mav.diffusion.noise import SampleNoise
from mav.diffusion.pixels import augment, downsample, to_pixels, to_unit, upsample
from mav.diffusion.sampler import sample
from mav.models.clip import ClipModel
from mav.models.prior import from_scale
from mav.models.unet import known_frames
from mav.recipes import CascadeSizes, Generate, Recipe, Sampling
from mav.storage import Folder
from mav.training.export import Export, load_network

NETWORKS = {
    "prior": "train-prior",
    "decoder": "train-decoder-video",
    "interpolation": "train-interpolation",
    "sr_low": "train-sr-low-video",
    "sr_high": "train-sr-high",
}
Progress = Callable[[str, int, int], None]  # network, steps done, steps


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

    @classmethod
    def load(cls, recipe: Recipe, inputs: dict[str, Folder], device: str = "cpu") -> Cascade:
        """Reads the networks from their stages' artifacts. Raises UserError when one is missing or does not load."""
        networks = {name: load_network(inputs[stage], device) for name, stage in NETWORKS.items()}
        return cls(recipe.cascade, ClipModel.load(inputs["clip"], device), **networks, device=device)

    # ---------------------------------------------------------------------------------------------------------- the uses

    def sample(
        self,
        prompts: list[str],
        seeds: Sequence[int],
        generate: Generate,
        *,
        time: bool = True,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Text to video: uint8 (B, F, H, W, 3) for B prompts and as many seeds, F = `sizes.long_frames`, H = W = `sizes.high_size`.

        time: False switches every temporal layer off and keeps all else: each frame is then an image of its own.
        """
        run = CascadeBatch(self, seeds, generate, time, progress)
        embedding = run.imagine(prompts)
        return run.finish(run.decode(embedding), embedding)

    def animate(
        self, images: np.ndarray, seeds: Sequence[int], generate: Generate, progress: Progress | None = None
    ) -> np.ndarray:
        """Image to video: F^ goes on from one known frame. images: uint8 (B, S, S, 3)."""
        return self._from_frames(CascadeBatch(self, seeds, generate, True, progress), images[:, None], [0])

    def interpolate(
        self,
        first: np.ndarray,
        last: np.ndarray,
        seeds: Sequence[int],
        generate: Generate,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Two images to the video between them: F^ knows both ends. first, last: uint8 (B, S, S, 3)."""
        ends = np.stack([first, last], axis=1)
        return self._from_frames(CascadeBatch(self, seeds, generate, True, progress), ends, [0, self.sizes.frames - 1])

    def vary(
        self, videos: np.ndarray, seeds: Sequence[int], generate: Generate, progress: Progress | None = None
    ) -> np.ndarray:
        """Video to another of its kind: the mean CLIP embedding of its frames stands in for P. videos: uint8 (B, F, S, S, 3)."""
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
            return self.clip.encode_image(torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device))

    def to_base(self, clip: np.ndarray) -> Tensor:
        """uint8 (B, T, S, S, 3) to the decoder's resolution, (B, T, 3, s, s) in [-1, 1]."""
        return downsample(to_unit(torch.from_numpy(clip).to(self.device).permute(0, 1, 4, 2, 3)), self.sizes.base_size)


@dataclass(frozen=True)
class CascadeBatch:
    """One batch on its way through the cascade: B seeds, their settings, and each network's part."""

    cascade: Cascade
    seeds: Sequence[int]
    generate: Generate
    time: bool = True
    progress: Progress | None = None

    def imagine(self, prompts: list[str]) -> Tensor:
        """P: the CLIP image embedding (B, d) each prompt calls for; of several candidates the one closest to the text (unCLIP 2.2)."""
        if len(prompts) != len(self.seeds):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(self.seeds)}")
        clip, device = self.cascade.clip, self.cascade.device
        tokens = clip.tokenize(prompts).to(device)
        with torch.no_grad():
            text = clip.encode_text(tokens)
        conditions = {"tokens": tokens, "text_embedding": text}
        drawn = []
        for candidate in range(self.generate.prior_candidates):
            noise = SampleNoise(self.seeds, f"prior {candidate}", (clip.dim,), device=device)
            denoiser = self._denoiser(self.cascade.prior, self.generate.prior, conditions, clip=False)
            drawn.append(from_scale(self._walk("prior", denoiser, noise, self.generate.prior)))
        candidates = torch.stack(drawn, dim=1)
        best = (candidates * text[:, None]).sum(-1).argmax(1)
        return candidates[torch.arange(len(best)), best]

    def decode(self, embedding: Tensor) -> Tensor:
        """D^t: clips (B, F, 3, s, s) of the recipe's frame rate."""
        conditions = {"embedding": embedding, "fps": self._each(self.generate.fps)}
        return self._frames(
            "decoder", self.generate.decoder, range(self.cascade.sizes.frames), self.cascade.sizes.base_size, conditions
        )

    def finish(self, clip: Tensor, embedding: Tensor) -> np.ndarray:
        """F^, SR_l^t and SR_h: a decoded clip to the finished video, uint8 (B, F, H, W, 3)."""
        video = self.upsample_high(self.upsample_low(self.fill(clip, embedding)))
        pixels: np.ndarray = to_pixels(video).permute(0, 1, 3, 4, 2).cpu().numpy()
        return pixels

    def fill(self, clip: Tensor, embedding: Tensor) -> Tensor:
        """F^: (B, F, ...) to (B, (F - 1) * skip + 1, ...), in windows; the frame that two share, once made, is known to the next."""
        skip, frames = self.cascade.sizes.frame_skip, clip.shape[1]
        long = clip.new_zeros(len(clip), (frames - 1) * skip + 1, *clip.shape[2:])
        known = torch.zeros(long.shape[1], dtype=torch.bool, device=clip.device)
        long[:, ::skip], known[::skip] = clip, True
        for start in range(0, long.shape[1] - 1, frames - 1):
            window = slice(start, start + frames)
            if not known[window].all():
                fps = self.generate.fps * skip
                long[:, window] = self.fill_window(
                    long[:, window], known[window], embedding, fps, start, "interpolation"
                )
                known[window] = True
        return long

    def fill_between(self, given: np.ndarray, embedding: Tensor, places: list[int]) -> Tensor:
        """F^ from pictures alone, uint8 (B, len(places), S, S, 3), that stand at these places of a clip of the decoder's length."""
        known, length = self.cascade.to_base(given), self.cascade.sizes.frames
        clip = known.new_zeros(len(known), length, *known.shape[2:])
        mask = torch.zeros(length, dtype=torch.bool, device=clip.device)
        clip[:, places], mask[places] = known, True
        return self.fill_window(clip, mask, embedding, self.generate.fps, start=0, purpose="animation")

    def fill_window(
        self, clip: Tensor, known: Tensor, embedding: Tensor, fps: float, start: int, purpose: str
    ) -> Tensor:
        """F^ on one window: clip (B, F, 3, s, s), known (F,) bool; known frames come back as they were given."""
        conditions = {
            "embedding": embedding,
            "fps": self._each(fps),
            "known": known_frames(clip, known.expand(len(clip), -1)),
        }
        frames = range(start, start + clip.shape[1])
        made = self._frames("interpolation", self.generate.interpolation, frames, clip.shape[-1], conditions, purpose)
        return torch.where(known[:, None, None, None], clip, made)

    def upsample_low(self, clip: Tensor) -> Tensor:
        """SR_l^t over windows of frames; a frame's noise is its own, so windows agree."""
        fps, size = self.generate.fps * self.cascade.sizes.frame_skip, self.cascade.sizes.frames
        parts, done = [], 0
        while done < clip.shape[1]:
            start = max(0, min(done, clip.shape[1] - size))  # the last window ends with the video
            frames = range(start, min(start + size, clip.shape[1]))
            extra = {"fps": self._each(fps)}
            made = self._super_resolve(
                "sr_low", self.generate.sr_low, clip[:, start : frames.stop], frames, self.cascade.sizes.low_size, extra
            )
            parts.append(made[:, done - start :])
            done = frames.stop
        return torch.cat(parts, dim=1)

    def upsample_high(self, clip: Tensor) -> Tensor:
        """SR_h, an image network: every frame starts from the same noise, so that what it invents does not flicker (paper section 3.2)."""
        size, count = self.cascade.sizes.high_size, self.cascade.sizes.frames
        parts = [
            self._super_resolve("sr_high", self.generate.sr_high, part, [0] * part.shape[1], size, {})
            for part in clip.split(count, dim=1)
        ]
        return torch.cat(parts, dim=1)

    # ------------------------------------------------------------------------------------------------------- what they share

    def _super_resolve(
        self, name: str, sampling: Sampling, clip: Tensor, frames: Sequence[int], size: int, extra: dict[str, Tensor]
    ) -> Tensor:
        level = self._each(self.generate.noise_augmentation)
        low = upsample(clip, size // clip.shape[-1])
        if self.generate.noise_augmentation:
            low = augment(
                low, level, SampleNoise(self.seeds, f"{name} input", low.shape[2:], frames, self.cascade.device)()
            )
        return self._frames(name, sampling, frames, size, {"low": low, "low_noise": level, **extra})

    def _frames(
        self,
        name: str,
        sampling: Sampling,
        frames: Sequence[int],
        size: int,
        conditions: dict[str, Tensor],
        purpose: str = "",
    ) -> Tensor:
        """A clip from one of the U-Nets, (B, len(frames), 3, size, size); each frame's noise is keyed by its number."""
        export: Export = getattr(self.cascade, name)
        share = export.objective.shared_noise
        noise = SampleNoise(self.seeds, purpose or name, (3, size, size), frames, self.cascade.device, share)
        return self._walk(
            name, self._denoiser(export, sampling, conditions, clip=True, time=self.time), noise, sampling
        )

    def _denoiser(self, export: Export, sampling: Sampling, conditions: dict[str, Tensor], **more: Any) -> Denoiser:
        return Denoiser(
            export.network, export.objective, conditions, sampling.guidance, sampling.guidance_rescale, **more
        )

    def _walk(self, name: str, denoiser: Denoiser, noise: Callable[[], Tensor], sampling: Sampling) -> Tensor:
        report = None if self.progress is None else (lambda done, steps, say=self.progress: say(name, done, steps))
        return sample(denoiser, noise, sampling, report)

    def _each(self, value: float) -> Tensor:
        return torch.full((len(self.seeds),), float(value), device=self.cascade.device)
