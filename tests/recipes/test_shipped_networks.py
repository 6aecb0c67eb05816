"""The shipped recipes' networks: the paper's split of its parameters, and that the parts fit each other."""

import dataclasses

import pytest
import torch

from mav.models.prior import Prior
from mav.models.unet import UNet
from mav.recipes.reader import load_recipe

WORLD = ["world.images=8"]


def parameters(network) -> float:
    return sum(p.numel() for p in network.parameters())


def test_the_paper_recipe_has_the_paper_s_sizes():
    recipe = load_recipe("paper", WORLD)
    frames = recipe.cascade.frames
    with torch.device("meta"):
        decoder = dataclasses.replace(recipe.train_decoder.network, max_frames=frames)
        built = {
            "P": Prior(recipe.train_prior.network),
            "D": UNet(decoder),
            "F": UNet(dataclasses.replace(decoder, masked_frames=True)),
            "SR_l": UNet(dataclasses.replace(recipe.train_sr_low.network, max_frames=frames)),
            "SR_h": UNet(recipe.train_sr_high.network),
        }
    wanted = {"P": 1.3e9, "D": 3.1e9, "F": 3.1e9, "SR_l": 1.4e9, "SR_h": 0.7e9}
    for name, network in built.items():
        assert abs(parameters(network) / wanted[name] - 1) < 0.1, f"{name}: {parameters(network) / 1e9:.2f}B"


@pytest.mark.parametrize("name", ["demo", "tiny", "paper"])
def test_the_parts_of_a_recipe_fit(name):
    recipe = load_recipe(name, WORLD)
    sizes = recipe.cascade
    assert recipe.train_prior.network.embedding_dim == recipe.train_decoder.network.embedding_dim
    if not recipe.clip.architecture:
        assert recipe.clip.network.embedding_dim == recipe.train_prior.network.embedding_dim
        assert recipe.clip.network.text_context == recipe.train_prior.network.text_context
    low = (recipe.train_sr_low, sizes.base_size, sizes.low_size)
    high = (recipe.train_sr_high, sizes.low_size, sizes.high_size)
    for section, small, large in (low, high):
        factor, grid = large // small, 2 ** (len(section.network.levels) - 1)
        assert large % small == 0
        assert section.network.low_resolution
        assert not any(level.attention for level in section.network.levels)
        assert round(large * section.crop / factor) * factor % grid == 0
        assert large % grid == 0
    assert sizes.base_size % 2 ** (len(recipe.train_decoder.network.levels) - 1) == 0
