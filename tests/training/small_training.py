"""A recipe of the smallest sizes, sources that draw their samples, and `run`: what the tests of training share.

A module of its own, so that processes they start can import it.
"""

import dataclasses

import torch

from mav.diffusion.noise import Draws
from mav.models.clip import ClipModel
from mav.models.unet import UNet
from mav.recipes import (
    CascadeSizes,
    ClipConfig,
    ClipSection,
    Level,
    Optimisation,
    PriorConfig,
    Recipe,
    TrainImage,
    TrainPrior,
    TrainVideo,
    UNetConfig,
    World,
)
from mav.storage import Folder
from mav.training.export import DESCRIPTION, export_network
from mav.training.stages import INPUTS, VIDEO_STAGES, run_stage

DIM, CONTEXT, FRAMES = 8, 16, 4
HELD_OUT = 1_000_000  # number of the first held-out sample


def small_recipe(**optimisation) -> Recipe:
    o = Optimisation(
        **{"samples": 12, "batch_size": 2, "learning_rate": 1e-3, "log_every": 4, "checkpoint_every": 4} | optimisation
    )
    sr = UNetConfig(levels=(Level(channels=8, blocks=1),), low_resolution=True)
    decoder = UNetConfig(
        levels=(Level(channels=8, blocks=1), Level(channels=8, blocks=1, attention=True)),
        embedding_dim=DIM,
        head_channels=8,
    )
    upsampler = TrainImage(network=sr, optimisation=o, crop=0.5, noise_augmentation=0.3, blur_sigma=0.6)
    tiny_clip = ClipConfig(embedding_dim=DIM, image_size=32, vision_width=2, text_width=16, text_layers=1)
    return Recipe(
        name="small",
        world=World(),
        cascade=CascadeSizes(frames=FRAMES, base_size=8, low_size=16, high_size=32, frame_skip=3),
        clip=ClipSection(network=tiny_clip, optimisation=dataclasses.replace(o, batch_size=4)),
        train_prior=TrainPrior(
            network=PriorConfig(embedding_dim=DIM, text_context=CONTEXT, width=16, depth=1, heads=2), optimisation=o
        ),
        train_decoder=TrainImage(network=decoder, optimisation=o),
        train_sr_low=upsampler,
        train_sr_high=upsampler,
        train_decoder_video=TrainVideo(optimisation=o),
        train_interpolation=TrainVideo(optimisation=o),
        train_sr_low_video=TrainVideo(optimisation=o, crop=0.5),
    )


class Drawn:
    """Samples that are a function of their number; held-out ones have numbers of their own."""

    def __len__(self) -> int:
        return 8

    def peek(self, count: int) -> dict[str, torch.Tensor]:
        return self.batch(0, count)

    def hold_out(self, count: int, total: int) -> dict[str, torch.Tensor]:
        return self.batch(HELD_OUT, count)


class Pairs(Drawn):
    """Images with all that image stages read; sample n is a function of n."""

    def __init__(self, size: int) -> None:
        self.size = size

    def batch(self, first: int, count: int) -> dict[str, torch.Tensor]:
        draws = Draws((7, "pairs", n if n >= HELD_OUT else n % 8) for n in range(first, first + count))
        unit = torch.nn.functional.normalize
        return {
            "pixels": (draws.uniform(3, self.size, self.size) * 255).to(torch.uint8),
            "image_embedding": unit(draws.normal(DIM)),
            "text_embedding": unit(draws.normal(DIM)),
            "tokens": draws.integers(49_000, CONTEXT),
            "punsafe": draws.uniform(),
            "pwatermark": draws.uniform(),
        }


class Clips(Drawn):
    """Uncaptioned clips."""

    def __init__(self, size: int, **more: torch.Tensor) -> None:
        self.size, self.more = size, more

    def batch(self, first: int, count: int) -> dict[str, torch.Tensor]:
        draws = Draws((7, "clips", n if n >= HELD_OUT else n % 8) for n in range(first, first + count))
        pixels = (draws.uniform(FRAMES, 3, self.size, self.size) * 255).to(torch.uint8)
        return {"pixels": pixels, "fps": 4 + 20 * draws.uniform(), **self.more}


def source_of(stage: str, recipe: Recipe):
    cascade = recipe.cascade
    if stage in VIDEO_STAGES:
        return Clips(cascade.low_size)
    return Pairs({"train-decoder": cascade.base_size, "train-sr-high": cascade.high_size}.get(stage, cascade.low_size))


def parents(root: Folder, stage: str, recipe: Recipe) -> dict[str, Folder]:
    """The inputs of a stage that hold networks, untrained; the data inputs are replaced by `source`."""
    inputs = {}
    for name in INPUTS[stage]:
        folder = root.child(name)
        if name == "clip" and not folder.exists("clip.json"):
            torch.manual_seed(0)
            ClipModel.create(recipe.clip).save(folder)
        elif name == "train-decoder-video" and not folder.exists(DESCRIPTION):
            run(root, name, recipe)
        elif name.startswith("train-") and not folder.exists(DESCRIPTION):
            torch.manual_seed(0)
            section = getattr(recipe, name.replace("-", "_"))
            export_network(folder, UNet(section.network), section.objective)
        inputs[name] = folder
    return inputs


def run(root: Folder, stage: str, recipe: Recipe, *, work: str = "work", out: str = "", **options):
    inputs = parents(root, stage, recipe)
    options.setdefault("source", source_of(stage, recipe))
    return run_stage(stage, recipe, inputs, root.child(f"{work}/{stage}"), root.child(out or stage), **options)
