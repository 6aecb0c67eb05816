"""A checkpoint is continued wherever what it continues is the same, however it is made from there on."""

import dataclasses
from pathlib import Path

import pytest
from small_training import run, small_recipe

from mav.errors import UserError
from mav.recipes import Recipe
from mav.storage import Folder


def _with(recipe: Recipe, **optimisation: object) -> Recipe:
    section = recipe.train_prior
    changed = dataclasses.replace(section.optimisation, **optimisation)
    return dataclasses.replace(recipe, train_prior=dataclasses.replace(section, optimisation=changed))


def test_a_checkpoint_is_refused_only_when_what_it_continues_differs(tmp_path: Path) -> None:
    recipe, root = small_recipe(), Folder(str(tmp_path))
    run(root, "train-prior", recipe)
    sizes = dataclasses.replace(recipe.cascade, frames=6)
    for same in (
        dataclasses.replace(recipe, cascade=sizes),  # the prior reads none of the sizes
        _with(recipe, log_every=2, checkpoint_every=6, corrupted_share=0.5),
        dataclasses.replace(recipe, name="other", cluster=dataclasses.replace(recipe.cluster, attempts=2)),
    ):
        assert run(root, "train-prior", same)["samples"] == 12
    for different in (_with(recipe, learning_rate=2e-3), dataclasses.replace(recipe, seed=1)):
        with pytest.raises(UserError, match="is the checkpoint of another recipe"):
            run(root, "train-prior", different)


def test_the_sizes_belong_to_what_the_decoder_continues(tmp_path: Path) -> None:
    recipe, root = small_recipe(), Folder(str(tmp_path))
    run(root, "train-decoder", recipe)
    run(root, "train-decoder", dataclasses.replace(recipe, cascade=dataclasses.replace(recipe.cascade, high_size=64)))
    other = dataclasses.replace(recipe, cascade=dataclasses.replace(recipe.cascade, base_size=4, low_size=8))
    with pytest.raises(UserError, match="is the checkpoint of another recipe"):
        run(root, "train-decoder", other)
