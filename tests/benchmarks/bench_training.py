"""Our training loop beside the same steps in a bare Python loop, one worker and two, and what a checkpoint costs.

The decoder of the demo recipe on random pictures, in batches of 16; two workers also in batches of 64, as a small step
has costs that do not divide. The bare loop has forward, loss, backward, clipping and AdamW and nothing else: no moving
average, log, finite check, prefetch, checkpoint or resume. Loops take turns; costs are seconds of the clock, so run it
on an idle machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import in_turn, rate, report
from torch import Tensor

from mav.diffusion.noise import Draws
from mav.diffusion.objective import diffusion_loss, draw_noise
from mav.diffusion.pixels import to_unit
from mav.diffusion.schedule import make_schedule
from mav.models.unet import UNet
from mav.recipes import Optimisation, Recipe
from mav.recipes.reader import load_recipe
from mav.storage import Folder
from mav.training.loop import TrainingTask, train
from mav.training.optimiser import make_optimiser

ROWS = 512


class Pictures:
    """Random pictures and embeddings in memory; sample n is a function of n."""

    def __init__(self) -> None:
        draws = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(256, (ROWS, 3, 16, 16), generator=draws, dtype=torch.uint8)
        self.embedding = torch.nn.functional.normalize(torch.randn(ROWS, 64, generator=draws), dim=-1)

    def batch(self, first: int, count: int) -> dict[str, Tensor]:
        rows = [number % ROWS for number in range(first, first + count)]
        return {"pixels": self.pixels[rows], "image_embedding": self.embedding[rows]}

    def __len__(self) -> int:
        return ROWS


def make_task(recipe: Recipe) -> TrainingTask:
    torch.manual_seed(0)
    objective = recipe.train_decoder.objective
    schedule = make_schedule(objective)

    def draw(batch: dict[str, Tensor], draws: Draws, level: float | None) -> dict[str, Tensor]:
        return batch | draw_noise(draws, (1, *batch["pixels"].shape[1:]), objective, drops=True)

    def loss(network: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
        x0, conditions = to_unit(batch["pixels"])[:, None], {"embedding": batch["image_embedding"]}
        return diffusion_loss(network, x0, conditions, batch, objective, schedule).mean()

    return TrainingTask("train-decoder", UNet(recipe.train_decoder.network), Pictures(), loss, draw, identity="bench")


def ours(recipe: Recipe, o: Optimisation, facts: dict[str, Any], rank: int = 0, world_size: int = 1) -> float:
    """Steps a second of the loop, its first logged line apart."""
    marks: list[tuple[float, int]] = []

    def seen(line: dict[str, Any]) -> None:
        marks.append((time.perf_counter(), line["samples"]))
        facts.update(data_wait=round(line["data_wait"], 4), save_wait=line["save_wait"])
        facts["seconds"] = line["samples"] / line["samples_per_second"]

    with tempfile.TemporaryDirectory() as work:
        train(make_task(recipe), o, 0, Folder(work), rank=rank, world_size=world_size, report=seen)
    (started, first), (ended, last) = marks[0], marks[-1]
    return (last - first) / o.batch_size / (ended - started)


def bare(recipe: Recipe, o: Optimisation) -> float:
    task = make_task(recipe)
    optimiser = make_optimiser(task.network, o, "cpu")
    parameters = list(task.network.parameters())
    started, warm = 0.0, o.log_every // o.batch_size
    steps = o.samples // o.batch_size
    for step in range(steps):
        if step == warm:
            started = time.perf_counter()
        first = step * o.batch_size
        draws = Draws((0, task.stage, number) for number in range(first, first + o.batch_size))
        task.loss(task.network, task.draw(task.source.batch(first, o.batch_size), draws, None)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, o.gradient_clip, foreach=True)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return (steps - warm) / (time.perf_counter() - started)


def worker(rank: int, port: int, recipe: Recipe, o: Optimisation, answers: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    speed = ours(recipe, o, {}, rank, 2)
    if rank == 0:
        answers.put(speed)
    torch.distributed.destroy_process_group()


def stranger(rank: int, port: int, recipe: Recipe, o: Optimisation, answers: Any) -> None:
    """The bare loop on half of each batch; the two begin together and never speak: what two processes can do on this
    machine."""
    torch.set_num_threads(1)
    store = torch.distributed.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    store.set(f"ready {rank}", "")
    store.wait(["ready 0", "ready 1"])
    speed = bare(
        recipe, dataclasses.replace(o, samples=o.samples // 2, batch_size=o.batch_size // 2, log_every=o.log_every // 2)
    )
    if rank == 0:
        answers.put(speed)


def two(what: Callable[..., None], recipe: Recipe, o: Optimisation) -> float:
    """Steps a second of the first of two processes."""
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(what, (port, recipe, o, answers), nprocs=2)
    return float(answers.get())


def checkpoint_steps(recipe: Recipe, o: Optimisation, apart: int = 10) -> dict[str, float]:
    """What a checkpoint costs, in steps: for how long training waits while it is copied, and by how much the writing,
    on the same processor, slows the steps beside it. One every `apart` steps, so that none waits for the one before."""
    facts: dict[str, Any] = {}
    every = dataclasses.replace(o, checkpoint_every=apart * o.batch_size)
    with_, without = ours(recipe, every, facts), ours(recipe, o, {})
    steps = o.samples // o.batch_size
    in_all = facts["save_wait"] * facts["seconds"] * without / (steps // apart)
    return {
        "checkpoint_blocks_steps": round(in_all, 3),
        "checkpoint_costs_steps": round(apart * (without / with_ - 1), 3),
    }


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe("demo")
    o = recipe.train_decoder.optimisation
    facts: dict[str, Any] = {}

    def sized(batch: int) -> Optimisation:
        samples = chosen.steps * batch
        return dataclasses.replace(o, samples=samples, batch_size=batch, log_every=5 * batch, checkpoint_every=samples)

    small, large = sized(16), sized(64)
    speeds = in_turn(
        {
            "ours": lambda: ours(recipe, small, facts),
            "bare": lambda: bare(recipe, small),
            "two": lambda: two(worker, recipe, small),
            "strangers": lambda: two(stranger, recipe, small),
            "ours, large": lambda: ours(recipe, large, {}),
            "two, large": lambda: two(worker, recipe, large),
            "strangers, large": lambda: two(stranger, recipe, large),
        },
        chosen.rounds,
    )
    shown = {"data_wait": facts["data_wait"], **checkpoint_steps(recipe, small)}
    rows = [
        rate("the loop, one worker", speeds["ours"], speeds["bare"], "a bare Python loop", "steps/s"),
        rate("two workers of one thread", speeds["two"], speeds["ours"], "one worker", "steps/s"),
        rate("two workers, batches of 64", speeds["two, large"], speeds["ours, large"], "one worker", "steps/s"),
        rate("two that never speak", speeds["strangers"], speeds["ours"], "one worker", "steps/s"),
        rate(
            "two that never speak, batches of 64",
            speeds["strangers, large"],
            speeds["ours, large"],
            "one worker",
            "steps/s",
        ),
    ]
    report("training", rows, **shown)


if __name__ == "__main__":
    main()
