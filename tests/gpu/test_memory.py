"""Predictions about a GPU against a real one; without a GPU these tests are skipped."""

import dataclasses

import pytest
import torch

from mav.recipes.reader import load_recipe
from mav.storage import Folder
from mav.training.network_costs import network_cost
from mav.training.stages import run_stage

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Pictures:
    """What D trains on, drawn at random."""

    def __init__(self, size: int, embedding: int) -> None:
        self.size, self.embedding = size, embedding

    def __len__(self) -> int:
        return 64

    def batch(self, first: int, count: int) -> dict[str, torch.Tensor]:
        draws = torch.Generator().manual_seed(first)
        unit = torch.nn.functional.normalize(torch.randn(count, self.embedding, generator=draws), dim=-1)
        return {
            "pixels": torch.randint(256, (count, 3, self.size, self.size), generator=draws, dtype=torch.uint8),
            "image_embedding": unit,
        }

    def peek(self, count: int) -> dict[str, torch.Tensor]:
        return self.batch(0, count)


def test_described_memory_is_what_training_takes(tmp_path):
    """Two steps of `single-gpu`'s decoder in bfloat16 take its state, a micro-batch's activations, and little else."""
    recipe = load_recipe("single-gpu")
    section = recipe.train_decoder
    o = section.optimisation
    micro = o.batch_size // o.accumulation
    short = {"samples": 2 * micro, "batch_size": micro, "accumulation": 1, "held_out": 0, "export": "last"}
    short |= {"log_every": micro, "checkpoint_every": 2 * micro}
    section = dataclasses.replace(section, optimisation=dataclasses.replace(o, **short))
    recipe = dataclasses.replace(recipe, train_decoder=section)
    described = network_cost("train-decoder", recipe)
    torch.cuda.reset_peak_memory_stats()
    source = Pictures(recipe.cascade.base_size, section.network.embedding_dim)
    root = Folder(str(tmp_path))
    metrics = run_stage(
        "train-decoder", recipe, {}, root.child("work"), root.child("out"), device="cuda", source=source
    )
    assert metrics["loss"] > 0
    assert torch.cuda.max_memory_allocated() == pytest.approx(described.peak_bytes, rel=0.1)
