"""`mav plan`: what a recipe's data will take on its cluster, from rates measured on this machine or given.

`mav run --dry-run`, which says what would be built and why, is here too.
"""

import dataclasses
import io
import json
import math
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from flows.cli.describe import short
from flows.cli.options import Json, RecipeName, Runs, Set, command, open_graph
from flows.cli.recipes import show_fit
from flows.engine.stage import Node
from flows.engine.store import Store, changes, recipe_owner
from flows.services.printing import PlainTable, say, show
from flows.services.terminal import spinner
from mav.errors import UserError
from mav.recipes import Recipe
from mav.recipes.plan import RATES, Rate, StagePlan, plan_stages, processors, with_rates
from mav.storage import Artifact

app = typer.Typer()
# The rate that a stage's rows in and out tell when it is done.
SHARES = {"image-metadata": "kept", "image-download": "reached", "image-select": "distinct",
          "video-shards": "clip_reached", "video-select": "chosen"}  # fmt: skip
MEASURED_ROWS = 60_000
MEASURED_SECONDS = 1.5
MEASURED_CLIPS = 6
FETCHING_SECONDS = 0.0015  # of a core, to fetch one file and to write it into a shard
WORDS = [
    "a", "photo", "of", "house", "red", "large", "garden", "vintage", "the", "city", "poster", "woman's", "dress",
    "2019",
]  # fmt: skip

RateOption = typer.Option("--rate", metavar="NAME=VALUE", help="Give a rate, not to measure or assume it; may repeat.")
ClusterOption = typer.Option("--cluster", metavar="FILE", help="See whether the nodes of this cluster's file hold it.")


@app.command()
def plan(
    recipe: RecipeName, rate: Annotated[list[str] | None, RateOption] = None,
    cluster: Annotated[str, ClusterOption] = "", json_: Json = False, runs: Runs = "runs", set_: Set = None,
) -> None:  # fmt: skip
    """Say how many rows, shards, bytes, hours and days the data of a recipe will take, and from which assumptions.

    Of stages that are done in --runs, the shares of rows that came through are known. With --cluster it says instead
    whether the nodes that a KubeRay, Ray launcher, SkyPilot or Slurm file describes hold its work; exit 1 if not.
    """
    loaded, graph, store = open_graph(recipe, set_, runs)
    if cluster:
        show_fit(loaded, cluster, json_)
        return
    given = dict(_given(text) for text in rate or ())
    built = {
        name: share
        for stage, name in SHARES.items()
        if stage in graph.nodes and (share := _share(store.find(graph.nodes[stage])))
    }
    counted = image_rows(loaded), clips(loaded)  # before the seconds of measuring: it may find a file wrong
    with spinner("Measuring this machine"):
        rates = with_rates(given, built | measure(loaded, skip=set(given)))
    stages = plan_stages(loaded, rates, *counted)
    if json_:
        body = {
            "recipe": loaded.name,
            "stages": [dataclasses.asdict(stage) for stage in stages],
            "rates": {name: dataclasses.asdict(rate) for name, rate in rates.items()},
        }
        print(json.dumps(body, indent=1))
        return
    _show(loaded, stages, rates)


def _share(artifact: Artifact | None) -> float:
    """Returns the share of a stage's rows that came through; 0 when it is not known."""
    counts = artifact.manifest.counts if artifact else {}
    return float(counts["rows_out"] / counts["rows_in"]) if counts.get("rows_in") else 0.0


def _show(recipe: Recipe, stages: list[StagePlan], rates: dict[str, Rate]) -> None:
    columns = ("rows in", "rows out", "shards", "leaves", "CPU hours", "GPU hours", "days")
    table = PlainTable("stage", *columns, right=columns)
    for s in stages:
        counts = [f"{number:,}" for number in (s.rows_in, s.rows_out, s.shards)]
        hours = (_hours(s.cpu_hours), _hours(s.gpu_hours))
        table.add_row(s.stage, *counts, f"{short(s.bytes)}B", *hours, _hours(s.days))
    size, cpu, gpu, days = (
        sum(getattr(s, name) for s in stages) for name in ("bytes", "cpu_hours", "gpu_hours", "days")
    )
    table.add_row("together", "", "", "", f"{short(size)}B", _hours(cpu), _hours(gpu), _hours(days), style="bold")
    show(table)
    cpus, gpus = processors(recipe.cluster)
    say(
        f"\nCPUs: {cpus}, GPUs: {gpus:g}, workers: {recipe.cluster.workers}; one stage after the other; "
        "shards are counted before screening.\n"
    )
    assumptions = PlainTable("rate", "value", "unit", "origin", "what", right=("value",))
    for name, rate in rates.items():
        value = f"{rate.value:,.4g}" if rate.value < 1000 else f"{rate.value:,.0f}"
        assumptions.add_row(name, value, rate.unit, rate.origin, rate.about)
    show(assumptions)
    say(
        "\nMeasured: on one core of this machine, or in stages that are done. Assumed: give yours with "
        "`--rate NAME=VALUE`."
    )


def _hours(value: float) -> str:
    """Returns hours or days, of a laptop's minutes too."""
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def image_rows(recipe: Recipe) -> int:
    """Returns the rows of the recipe's tables: what the recipe expects, or what the tables' footers say."""
    from mav.data.images.laion import part_rows, source_parts
    from mav.data.sources import require_sources

    if recipe.expect.image_rows:
        return recipe.expect.image_rows
    if not recipe.image_metadata.sources:
        return recipe.world.images if recipe.world else 0
    require_sources(recipe, ("image-metadata",))
    return sum(map(part_rows, source_parts(recipe.image_metadata.sources)))


def clips(recipe: Recipe) -> int:
    """Returns the clips of the recipe's lists: what the recipe expects, the demo world's, or what the lists hold."""
    from mav.data.videos.clip_list import SPANS_A_VIDEO, split_lists

    if recipe.expect.clips:
        return recipe.expect.clips
    sources = recipe.video_shards.sources
    if not sources and recipe.world:
        return recipe.world.clips
    parts = split_lists(sources, recipe.video_shards.clips_per_shard) if sources else []
    return sum(part.rows * (1 if part.columns else SPANS_A_VIDEO) for part in parts)


def measure(recipe: Recipe, skip: set[str]) -> dict[str, float]:
    """Measures on one core, in a few seconds, the rates of screening rows and of preparing pictures and clips."""
    measures = {"screened": _screened_rows, "fetched": _prepared_pictures}
    found = {name: measured(recipe) for name, measured in measures.items() if name not in skip}
    if "encoded" not in skip or (recipe.world and "clip_bytes" not in skip):
        found |= {name: value for name, value in _converted_clips(recipe).items() if name not in skip}
    return found


def _screened_rows(recipe: Recipe) -> float:
    """Returns rows per second, screened in memory and written. Reading counts as much as writing."""
    import numpy as np
    import pyarrow as pa

    from filters.screen import Screen, write_plain
    from mav.data.images.laion import TYPES

    rng, words, count = np.random.default_rng(0), np.array(WORDS), MEASURED_ROWS
    hosts = "https://images.example.com"
    rows = {
        "url": [f"{hosts}/{i}/{rng.integers(1 << 40)}/picture-640x480.jpg" for i in range(count)],
        "caption": [" ".join(line) for line in words[rng.integers(0, len(words), (count, 9))]],
        "width": rng.integers(64, 2000, count),
        "height": rng.integers(64, 2000, count),
        "punsafe": rng.beta(0.2, 3, count),
        "pwatermark": rng.beta(0.5, 1.8, count),
    }
    types = {name: pa.type_for_alias(kind) for name, kind in TYPES.items()}
    columns = {n: pa.array(rows[n], kind) if n in rows else pa.nulls(count, kind) for n, kind in types.items()}
    table = pa.table(columns)
    Screen(recipe.screening)(table.slice(0, 1000))  # compiles the word lists
    began = time.process_time()
    kept, _ = Screen(recipe.screening)(table)
    screened = time.process_time() - began
    began = time.process_time()
    write_plain(kept, io.BytesIO())
    return count / (screened + 2 * (time.process_time() - began))


def _prepared_pictures(recipe: Recipe) -> float:
    """Returns pictures per second from 800 x 600 to the recipe's size, with their fetching and writing."""
    import cv2
    import numpy as np

    from mav.data.images.resize import guarded_resizer

    small = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    data = cv2.imencode(".jpg", cv2.resize(small, (800, 600), interpolation=cv2.INTER_CUBIC))[1].tobytes()
    resizer = guarded_resizer(recipe.image_download)
    began, count = time.process_time(), 0
    while time.process_time() - began < MEASURED_SECONDS:
        resizer.prepare(data)
        count += 1
    return 1 / ((time.process_time() - began) / count + FETCHING_SECONDS)


def _converted_clips(recipe: Recipe) -> dict[str, float]:
    """Returns seconds of clip per second of work, and the bytes per second of clip where the demo's clips are known.

    Other clips are taken for moving noise at 640 x 360.
    """
    import numpy as np

    from flows.demo import drawn_clips
    from mav.data.videos.transcode import convert
    from mav.data.videos.video_io import encode_mp4

    if world := recipe.world:
        fps, clips = world.clip_fps, drawn_clips(world, MEASURED_CLIPS)
    else:
        rng = np.random.default_rng(0)
        grain = np.repeat(np.repeat(rng.integers(0, 255, (90, 160, 3), dtype=np.uint8), 4, axis=0), 4, axis=1)
        fps, clips = 24, [np.stack([np.roll(grain, (n, 2 * n), (0, 1)) for n in range(24)])]
    sources = [encode_mp4(clip, fps) for clip in clips]
    began = time.process_time()
    kept = [convert(source, recipe.video_shards) for source in sources]
    seconds, work = sum(len(clip) for clip in clips) / fps, time.process_time() - began
    found = {"encoded": seconds / (work + FETCHING_SECONDS * len(kept))}
    return found | ({"clip_bytes": sum(len(clip.data) for clip in kept) / seconds} if world else {})


def _given(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        number = float(value)
        if name not in RATES or not 0 < number < math.inf:
            raise ValueError
        return name, number
    except ValueError:
        known = ", ".join(RATES)
        raise UserError(f"--rate {text}: give NAME=VALUE with a positive number; the rates are {known}.") from None


def show_dry_run(
    name: str, recipe: Recipe, wanted: Sequence[Node], store: Store, set_: Sequence[str] | None = None
) -> None:
    """Prints a line for every stage that is not done: why it is built, its rows, hours and bytes as far as known.

    Data stages are estimated from the assumed rates of `mav plan`. For the others the latest artifact of the recipe
    tells what it took.
    """
    todo = [node for node in wanted if store.find(node) is None]
    if not todo:
        say(f"Nothing to do: all {len(wanted)} stages of {name} are done in {store.root.url}.")
        return
    planned, anew = _planned(recipe), {node.name for node in todo}
    table = PlainTable("stage", "rows", "hours", "leaves", "why", right=("rows", "hours", "leaves"))
    for node in todo:
        older = store.older(node, recipe.name, recipe_owner(name))
        rows, hours, size = "", "", ""
        if plan := planned.get(node.name):
            rows, hours = f"{plan.rows_in:,}", _hours(max(plan.cpu_hours, plan.gpu_hours))
            size = f"{short(plan.bytes)}B"
        elif older:
            hours = _hours(older.get("seconds", 0) / 3600)
            size = f"{short(sum(entry['bytes'] for entry in older.get('files', {}).values()))}B"
        state = store.state(node, recipe.name, recipe_owner(name))
        why = "; ".join(changes(node, older)) if older else "never built"
        if state in ("failed", "running"):
            why = f"it is {state}; what it has finished is kept"
        elif not older and any(needed.name in anew for needed in node.inputs):
            why += ", nor its inputs"
        table.add_row(node.name, rows, hours, size, why)
    show(table)
    told = f"\n{len(todo)} of {len(wanted)} stages would be built."
    say(f"{told} {command('plan', name, store, set_)} has the rates behind the hours.")


def _planned(recipe: Recipe) -> dict[str, StagePlan]:
    """Returns the estimates of the data stages; none where the tables and lists cannot be read."""
    try:
        counted = image_rows(recipe), clips(recipe)
    except (UserError, OSError, ValueError):
        return {}
    return {plan.stage: plan for plan in plan_stages(recipe, RATES, *counted)}
