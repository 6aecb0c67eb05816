"""Seconds of a clip from the demo's cascade, beside the same networks sampled as unCLIP samples its own.

    mav run demo && make bench-sampling

unCLIP: ancestral sampling, 250 steps for the decoder, guidance in two passes (its section 2 and Table 3); 27 and 15
DDIM steps for the upsamplers. The comparison holds when the oracle reads both alike, so its verdict on each is printed.
CPU seconds, one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from unittest import mock

import numpy as np
import torch
from harness import cost, report
from torch import Tensor

from flows.cli.generate import load_cascade
from mav.diffusion.guidance import Denoiser
from mav.generation.cascade import Cascade
from mav.recipes import Generate, GuidedSampling, Sampling
from mav.world.drawing import PALETTE
from mav.world.verdict import Material, oracle_verdict


@dataclasses.dataclass(frozen=True)
class TwoPasses(Denoiser):
    """Guidance by two forwards of the batch, one with the condition and one without."""

    def __call__(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        if self.guidance == 1.0:
            return super().__call__(x_t, t)
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {"guidance": 1.0}
        dropped = self.conditions | {"keep": torch.zeros(len(x_t), dtype=torch.bool)}
        with_condition, variance = Denoiser(**plain)(x_t, t)
        without, _ = Denoiser(**plain | {"conditions": dropped})(x_t, t)
        x0 = torch.lerp(without, with_condition, self.guidance)
        return (x0.clamp(-1, 1) if self.clip else x0), variance


def as_unclip(ours: Generate) -> Generate:
    ancestral = GuidedSampling(sampler="ancestral", steps=250)
    return dataclasses.replace(
        ours,
        prior=dataclasses.replace(ours.prior, sampler="ancestral", steps=64),
        decoder=dataclasses.replace(ancestral, guidance=ours.decoder.guidance),
        interpolation=ancestral,
        interpolation_start=1.0,  # from noise alone
        sr_low=Sampling(sampler="ddim", steps=27),
        sr_high=Sampling(sampler="ddim", steps=15),
    )


def sample(kind: type[Denoiser], cascade: Cascade, prompts: list[str], generate: Generate) -> tuple[np.ndarray, float]:
    before = time.process_time()
    with mock.patch("mav.generation.cascade.Denoiser", kind):
        videos = cascade.sample(prompts, list(range(len(prompts))), generate)
    return videos, (time.process_time() - before) / len(prompts)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--runs", default="runs")
    options.add_argument("--clips", type=int, default=18, help="a multiple of 6: colours in turn")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    recipe, cascade, _ = load_cascade("demo", chosen.runs, None)
    assert recipe.world is not None
    shapes = tuple(recipe.world.shapes)
    truths = [
        {"colour": list(PALETTE)[i % len(PALETTE)], "shape": shapes[i // len(PALETTE) % len(shapes)]}
        for i in range(chosen.clips)
    ]
    prompts = [f"a {truth['colour']} {truth['shape']}" for truth in truths]

    seconds, verdicts = {}, {}
    for name, kind, generate in (
        ("ours", Denoiser, recipe.generate),
        ("unCLIP", TwoPasses, as_unclip(recipe.generate)),
    ):
        videos, seconds[name] = sample(kind, cascade, prompts, generate)
        verdict = oracle_verdict(Material(list(videos), truths, shapes=shapes))
        verdicts[name] = {key: round(verdict[key], 3) for key in ("colour", "shape")}
        print(f"{name}: {seconds[name]:.2f} s a clip, {verdicts[name]}", flush=True)
    row = cost(
        "demo cascade, a clip",
        seconds["ours"],
        seconds["unCLIP"],
        "unCLIP's sampling",
        "CPU seconds a clip, one thread",
    )
    report("sampling", [row], oracle=verdicts, clips=chosen.clips)


if __name__ == "__main__":
    main()
