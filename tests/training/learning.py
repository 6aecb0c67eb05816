"""The demo's networks, objectives and optimiser values in a minute and a half of training, on pictures drawn as the
demo's are. `reference_curves.json` has the expected losses.

    python tests/training/learning.py     trains with three seeds and writes new ranges, after an intended change
"""

import dataclasses
import functools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from mav.models.clip import ClipModel
from mav.recipes import Recipe
from mav.recipes.reader import load_recipe
from mav.storage import Folder
from mav.training.export import CURVES
from mav.training.stages import INPUTS, VIDEO_STAGES, run_stage
from mav.world.drawing import PALETTE, draw, draw_clip, random_scene

REFERENCE = Path(__file__).with_name("reference_curves.json")
SEEDS = range(3)
LINES = 4  # of a curve: mean losses of the four quarters of its training
STEPS = {
    "clip": 40,
    "train-prior": 60,
    "train-decoder": 160,
    "train-sr-low": 80,
    "train-sr-high": 60,
    "train-decoder-video": 24,
    "train-interpolation": 24,
    "train-sr-low-video": 24,
}
COLOURS, SHAPES = tuple(PALETTE), ("circle", "triangle", "cross")
DISTINCT = 512

Curve = list[float]


def shortened(seed: int, **changes: object) -> Recipe:
    """The demo with so few steps, warmed up over a tenth of them, at a constant rate then."""
    recipe = dataclasses.replace(load_recipe("demo"), seed=seed)
    for stage, steps in STEPS.items():
        name = stage.replace("-", "_")
        section = getattr(recipe, name)
        samples = steps * (batch := section.optimisation.batch_size)
        short = {"samples": samples, "warmup_samples": steps // 10 * batch, "cooldown_samples": 0}
        short |= {"log_every": samples // LINES, "checkpoint_every": samples, "held_out": 0}
        o = dataclasses.replace(section.optimisation, **{**short, **changes})
        recipe = dataclasses.replace(recipe, **{name: dataclasses.replace(section, optimisation=o)})
    return recipe


class Scenes:
    """Pictures with captions, and embeddings of colour and shape; sample n is a function of n."""

    def __init__(self, recipe: Recipe, size: int) -> None:
        self.size, self.tokenize = size, ClipModel.create(recipe.clip).tokenize
        self.names = np.random.default_rng(0).normal(
            size=(len(COLOURS) + len(SHAPES), recipe.clip.network.embedding_dim)
        )
        self.sample = functools.lru_cache(DISTINCT)(self._sample)

    def __len__(self) -> int:
        return DISTINCT

    def _sample(self, number: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((1, number))
        scene = random_scene(rng, COLOURS, SHAPES)
        meaning = self.names[COLOURS.index(scene.colour)] + self.names[len(COLOURS) + SHAPES.index(scene.shape)]
        image, text = (
            torch.tensor(meaning + rng.normal(size=meaning.shape) * 0.3, dtype=torch.float32) for _ in range(2)
        )
        return {
            "pixels": torch.from_numpy(draw(scene, self.size)).permute(2, 0, 1),
            "tokens": self.tokenize([scene.caption(number)])[0],
            "image_embedding": image / image.norm(),
            "text_embedding": text / text.norm(),
            "punsafe": torch.tensor(0.1),
            "pwatermark": torch.tensor(0.1),
        }

    def batch(self, first: int, count: int) -> dict[str, torch.Tensor]:
        rows = [self.sample(number % DISTINCT) for number in range(first, first + count)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def peek(self, count: int) -> dict[str, torch.Tensor]:
        return self.batch(0, count)


class Moving(Scenes):
    """Clips without a word."""

    def __init__(self, recipe: Recipe, size: int) -> None:
        super().__init__(recipe, size)
        self.frames = recipe.cascade.frames

    def _sample(self, number: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((2, number))
        fps = float(rng.uniform(4, 24))
        clip = torch.from_numpy(draw_clip(random_scene(rng, COLOURS, SHAPES), self.size, self.frames, fps))
        return {"pixels": clip.permute(0, 3, 1, 2), "fps": torch.tensor(fps)}


def curves(recipe: Recipe, stages: tuple[str, ...] = tuple(STEPS)) -> dict[str, Curve]:
    """Losses of the stages, each trained from what the ones before it exported."""
    torch.set_num_threads(1)
    cascade, found = recipe.cascade, {}
    sizes = {"train-decoder": cascade.base_size, "train-sr-high": cascade.high_size}
    with tempfile.TemporaryDirectory() as place:
        root = Folder(place)
        for stage in stages:
            source = (Moving if stage in VIDEO_STAGES else Scenes)(recipe, sizes.get(stage, cascade.low_size))
            inputs = {name: root.child(name) for name in INPUTS[stage]}
            run_stage(stage, recipe, inputs, root.child(f"work/{stage}"), root.child(stage), source=source)
            found[stage] = [json.loads(line)["loss"] for line in root.read_bytes(f"{stage}/{CURVES}").splitlines()]
    return found


def outside(found: dict[str, Curve]) -> list[str]:
    """A sentence for each curve that leaves its reference range."""
    reference = json.loads(REFERENCE.read_text())
    return [
        f"{stage}: the loss of quarter {place + 1} is {loss:.4g}, and was {low:.4g} to {high:.4g}"
        for stage, curve in found.items()
        for place, (loss, (low, high)) in enumerate(zip(curve, reference[stage], strict=True))
        if not low <= loss <= high
    ]


def main() -> None:
    """Ranges are what the seeds gave, widened at both ends by their span, and by a tenth at least."""
    runs = []
    for seed in SEEDS:
        runs.append(curves(shortened(seed)))
        print(f"seed {seed} done", file=sys.stderr)
    ranges = {}
    for stage in STEPS:
        quarters = np.array([run[stage] for run in runs])
        low, high = quarters.min(0), quarters.max(0)
        margin = np.maximum(high - low, 0.05 * (low + high))
        ranges[stage] = [
            [float(f"{end:.4g}") for end in ends] for ends in zip(low - margin, high + margin, strict=True)
        ]
    REFERENCE.write_text(
        "{\n" + ",\n".join(f"  {json.dumps(stage)}: {json.dumps(rows)}" for stage, rows in ranges.items()) + "\n}\n"
    )


if __name__ == "__main__":
    main()
