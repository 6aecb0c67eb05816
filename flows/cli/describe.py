"""`mav describe`: what a recipe's networks cost before anything is trained."""

import dataclasses
import json
import math
import re
from typing import Annotated

import typer

from flows.cli.options import Json, RecipeName, Set
from flows.services.printing import PlainTable, say, show
from flows.services.terminal import ProgressLine
from mav.errors import UserError
from mav.recipes.reader import load_recipe

app = typer.Typer()

LEGEND = (
    "FLOP: forward and backward of one sample. Again: forward passes that the backward pass repeats to save memory. "
    "In all: both, of the whole training. State: weights, gradients, AdamW's two moments and the averages in float32 "
    "on one worker, of which sharding leaves it a part, and the CLIP that a video stage needs. Activations: what a "
    "step of one micro-batch takes on a GPU beyond that when it takes most."
)
Fit = Annotated[
    str,
    typer.Option(
        "--fit", metavar="SIZE", help="Find the largest micro-batches that fit a GPU, such as 80GB; it takes minutes."
    ),
]


def short(number: float) -> str:
    """Formats a number with three figures and a unit, such as 3.13 G."""
    units = ("", "K", "M", "G", "T", "P", "E", "Z")
    number = float(f"{number:.3g}")  # 999,600 is 1 M
    power = min(len(units) - 1, int(math.log10(number)) // 3) if number >= 1 else 0
    return f"{number / 1000**power:.3g} {units[power]}"


def read_size(text: str) -> float:
    """Returns the bytes of a size such as 80GB. Raises UserError for another text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?GB", text, re.IGNORECASE)
    if not match:
        raise UserError(f"{text!r} is no size of a GPU's memory: write it as 80GB.")
    return float(match[1]) * 1e9


@app.command()
def describe(recipe: RecipeName, fit: Fit = "", json_: Json = False, set_: Set = None) -> None:
    """Say what parameters, arithmetic and memory every network of a recipe takes; nothing is allocated or trained."""
    from mav.generation.cascade import NETWORKS
    from mav.training.network_costs import fitted, network_costs

    loaded, memory = load_recipe(recipe, set_ or ()), read_size(fit) if fit else 0.0
    with ProgressLine() as line:
        components = fitted(loaded, memory, line) if fit else network_costs(loaded, line)
    if json_:
        print(json.dumps([dataclasses.asdict(c) | {"peak_bytes": c.peak_bytes} for c in components], indent=2))
        return
    workers = loaded.cluster.workers
    title = f"{loaded.name}, {workers} worker{'s' if workers > 1 else ''}"
    columns = ("parameters", "FLOP", "again", "in all", "micro-batch", "parts", "state", "activations", "together")
    table = PlainTable("network", "a sample", *columns, right=columns, title=title)
    for c in components:
        counts = (short(c.parameters), short(c.flops_per_sample), short(c.recomputed_flops_per_sample))
        step = (short(c.flops_in_all), str(c.micro_batch), str(c.accumulation))
        memories = (short(size) + "B" for size in (c.state_bytes, c.activation_bytes, c.peak_bytes))
        table.add_row(c.stage.removeprefix("train-"), "x".join(map(str, c.sample)), *counts, *step, *memories)
    show(table)
    cascade = sum(c.parameters for c in components if c.stage in NETWORKS.values())
    say(f"\nThe cascade that generates: {short(cascade)} parameters.\n{LEGEND}")
    if fit:
        say(f"Each micro-batch is the largest that leaves a tenth of {fit} free: set its parts as `accumulation`.")
