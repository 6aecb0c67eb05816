"""A picture of what a network has learned: a few training samples above what it makes under the same conditions."""

import io

import torch
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
    """Writes `samples.png`: true clips x0 (B, T, 3, S, S) over sampled ones. Images stand side by side; clips are rows of frames."""
    from PIL import Image

    noise = SampleNoise(range(seed, seed + len(x0)), "sheet", x0.shape[2:], range(x0.shape[1]), x0.device)
    denoiser = Denoiser(network, objective, conditions)
    made = sample(denoiser, noise, Sampling(steps=STEPS))
    both = torch.stack([x0, made]) if x0.shape[1] == 1 else torch.stack([x0, made], dim=1)
    rows, columns = (2, len(x0)) if x0.shape[1] == 1 else (2 * len(x0), x0.shape[1])
    tiles = to_pixels(both).reshape(rows, columns, 3, *x0.shape[3:]).permute(0, 3, 1, 4, 2)
    picture = tiles.reshape(rows * x0.shape[3], columns * x0.shape[4], 3).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    out.write_bytes(SHEET, buffer.getvalue())
