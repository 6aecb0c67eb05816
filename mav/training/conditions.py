"""What video and SR stages make of a batch: clips without text, low-resolution inputs, masks of given frames."""

import torch
from torch import Tensor

from mav.diffusion.noise import Draws
from mav.diffusion.pixels import augment, blur, crop, downsample, to_unit, upsample
from mav.recipes import TrainImage, TrainVideo
from mav.recipes.training import crop_side
from mav.training.validation import Batch

VIDEO_KEYS = {"pixels", "fps"}  # all that a video stage may read of a clip

Prepared = tuple[Tensor, dict[str, Tensor]]  # clean samples, and their conditions


def only_motion(stage: str, batch: Batch) -> Batch:
    """Returns the batch. Raises ValueError when it does not hold pixels and fps and nothing else, such as text."""
    if set(batch) != VIDEO_KEYS:
        found = ", ".join(sorted(batch))
        raise ValueError(
            f"{stage} trains on pixels and fps alone, as text never meets motion, but its batch holds {found}"
        )
    return batch


def draw_crop(pixels: Tensor, factor: int, section: TrainImage | TrainVideo, draws: Draws) -> Batch:
    """Cuts a crop out of each clip (B, T, 3, S, S), and draws level and noise of its low-resolution copy."""
    size = pixels.shape[-1]
    side = crop_side(size, factor, section.crop)
    places = (size - side) // factor + 1  # crops are aligned to the low-resolution grid
    pixels = crop(pixels, draws.integers(places, 2) * factor, side)
    level = draws.uniform() * section.noise_augmentation
    return {"pixels": pixels, "low_level": level, "low_noise": draws.normal(*pixels.shape[1:])}


def with_low_resolution(batch: Batch, factor: int, section: TrainImage | TrainVideo) -> Prepared:
    """The crops that were drawn, and as a condition their low-resolution copies: blurred, and with noise of a level.

    The level is a condition too.
    """
    x0 = to_unit(batch["pixels"])
    low = upsample(blur(downsample(x0, x0.shape[-1] // factor), section.blur_sigma), factor)
    level = batch["low_level"]
    return x0, {"low": augment(low, level, batch["low_noise"].to(low)), "low_noise": level}


def random_mask(draws: Draws, frames: int, skip: int) -> Tensor:
    """Draws the frames that F^ is given, (B, frames), True = given. At least one is given and at least one is not.

    They are every k-th frame from a random start (k from 2), both ends, or the first (Make-A-Video 3.3: interpolation
    with variable frame skips, and extrapolation). Half of the masks are every `skip`-th frame, as in generation.
    """
    masks = torch.zeros(len(draws), frames, dtype=torch.bool)
    for mask, kind, step, start in zip(masks, draws.uniform(), draws.uniform(), draws.uniform(), strict=True):
        if kind < 0.75:
            k = min(skip, frames - 1) if kind < 0.5 else 2 + int(step * max(1, frames - 2))
            mask[int(start * min(k, frames)) :: k] = True
            # A window of a long video has its first frame from the window before, whatever the others are.
            mask[0] |= bool(kind < 0.35)
        else:
            mask[0] = True
            mask[-1] = bool(kind < 0.87)
        if mask.all():
            mask[1:] = False
    return masks
