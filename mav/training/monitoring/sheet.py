"""A picture of what a network has learned: training samples above its own, under the same conditions."""

import io
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from mav.diffusion.guidance import Denoiser
from mav.diffusion.noise import SampleNoise
from mav.diffusion.pixels import to_pixels
from mav.diffusion.sampler import sample
from mav.recipes import Objective, Sampling

SHEET = "samples.png"
STEPS = 12


@dataclass(frozen=True)
class Sheet:
    """Training samples x0 (B, T, 3, S, S) and their conditions, under which networks are asked for samples of theirs.

    The noise of a sample is a function of the seed and its place, so that two sheets differ by the network alone.
    """

    objective: Objective
    x0: Tensor
    conditions: dict[str, Tensor]
    seed: int

    def __call__(self, network: nn.Module, steps: int = 0) -> bytes:
        """Returns a PNG of the training samples over those of a network in evaluation mode; 0 steps = `STEPS`.

        Images are in one row, side by side. Clips are rows of frames, where each sampled clip is below its training
        clip.
        """
        from PIL import Image

        x0 = self.x0
        noise = SampleNoise(range(self.seed, self.seed + len(x0)), "sheet", x0.shape[2:], range(x0.shape[1]), x0.device)
        made = sample(Denoiser(network, self.objective, self.conditions), noise, Sampling(steps=steps or STEPS))
        grid = "two b 1 c h w -> (two h) (b w) c" if x0.shape[1] == 1 else "two b t c h w -> (b two h) (t w) c"
        picture = rearrange(to_pixels(torch.stack([x0, made])), grid).cpu().numpy()
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        return buffer.getvalue()
