"""A picture of what a network has learned: training samples above its own, under the same conditions."""

import io

import torch
from einops import rearrange
from torch import Tensor, nn

from mav.diffusion.guidance import Denoiser
from mav.diffusion.noise import SampleNoise
from mav.diffusion.pixels import to_pixels
from mav.diffusion.sampler import sample
from mav.recipes import Objective, Sampling
from mav.storage import Folder

SHEET = "samples.png"
STEPS = 12


def write_sheet(
    out: Folder, network: nn.Module, objective: Objective, x0: Tensor, conditions: dict[str, Tensor], seed: int
) -> None:
    """Writes `samples.png`, training clips x0 (B, T, 3, S, S) over sampled ones.

    Images are in one row, side by side. Clips are rows of frames, where each sampled clip is below its training clip.
    """
    from PIL import Image

    noise = SampleNoise(range(seed, seed + len(x0)), "sheet", x0.shape[2:], range(x0.shape[1]), x0.device)
    made = sample(Denoiser(network, objective, conditions), noise, Sampling(steps=STEPS))
    grid = "two b 1 c h w -> (two h) (b w) c" if x0.shape[1] == 1 else "two b t c h w -> (b two h) (t w) c"
    picture = rearrange(to_pixels(torch.stack([x0, made])), grid).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    out.write_bytes(SHEET, buffer.getvalue())
