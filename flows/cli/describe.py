"""`mav describe`: what a recipe's networks cost before anything is trained."""

import dataclasses
import json
import math

import typer
from rich.console import Console

from flows.cli.options import Json, RecipeName, Set
from flows.services.terminal import plain_table, spinner
from mav.recipes.reader import load_recipe

app = typer.Typer()

LEGEND = (
    "FLOP: forward and backward of one sample, and of the whole training. State: weights, gradients, AdamW's two "
    "moments and the averages in float32 on one worker, of which sharding leaves it a part. Activations: what backward "
    "needs of one micro-batch. Libraries' own memory comes on top."
)


def short(number: float) -> str:
    """Formats a number with three figures and a unit, such as 3.13 G."""
    units = ("", "K", "M", "G", "T", "P", "E", "Z")
    power = min(len(units) - 1, int(math.log10(number)) // 3) if number >= 1 else 0
    return f"{number / 1000**power:.3g} {units[power]}"


@app.command()
def describe(recipe: RecipeName, json_: Json = False, set_: Set = None) -> None:
    """Parameters, arithmetic and memory of every network of a recipe; nothing is allocated or trained."""
    from mav.generation.cascade import NETWORKS
    from mav.training.network_costs import network_costs

    loaded = load_recipe(recipe, set_ or ())
    with spinner("Counting on shapes alone"):
        components = network_costs(loaded)
    if json_:
        print(json.dumps([dataclasses.asdict(c) for c in components], indent=2))
        return
    console = Console(highlight=False)
    title = f"{loaded.name}, {loaded.cluster.workers} worker(s)"
    columns = ("parameters", "FLOP", "in all", "state", "activations")
    table = plain_table("network", "a sample", right=columns, title=title)
    for c in components:
        values = (c.parameters, c.flops_per_sample, c.flops_in_all, c.state_bytes, c.activation_bytes)
        cells = (short(value) + unit for value, unit in zip(values, ("", "", "", "B", "B"), strict=True))
        table.add_row(c.stage.removeprefix("train-"), "x".join(map(str, c.sample)), *cells)
    console.print(table)
    cascade = sum(c.parameters for c in components if c.stage in NETWORKS.values())
    console.print(f"The cascade that generates: {short(cascade)} parameters.")
    console.print(LEGEND, style="dim")
