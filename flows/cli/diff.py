"""`mav diff`: what is different between two recipes, two runs or two artifacts, and what follows from it; `mav sweep`:
what would be different with other thresholds.
"""

import dataclasses
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import typer

from flows.cli.describe import short
from flows.cli.options import Json, RecipeName, Runs, Set, complete_recipe, open_graph
from flows.services.printing import PlainTable, say, show
from mav.errors import UserError
from mav.recipes.identity import values
from mav.recipes.reader import load_recipe
from mav.recipes.rules import shown
from mav.storage import MANIFEST, Artifact, Folder
from mav.storage.compare import Difference, compare

app = typer.Typer()
_SIDE = "A recipe (a shipped name or a YAML file), or the folder of an artifact."
A = Annotated[str, typer.Argument(metavar="A", help=_SIDE, autocompletion=complete_recipe)]
_OTHER = "What to compare it with, of the same kind."
B = Annotated[str, typer.Argument(metavar="B", help=_OTHER, autocompletion=complete_recipe)]
OtherRuns = Annotated[str, typer.Option("--other-runs", metavar="URL", help="Where B's artifacts are, if elsewhere.")]
Threshold = Annotated[
    str,
    typer.Argument(metavar="KEY=VALUES", help="A threshold of video_select and its values, such as still=0.02,0.1."),
]
SHOWN = 8  # lines of one kind
READING = 16  # ledgers at a time: on an object store this is waiting, not work


@app.command()
def diff(a: A, b: B, json_: Json = False, runs: Runs = "runs", other_runs: OtherRuns = "") -> None:
    """Say what is different: values, the stages that follow, rows with their reasons, bytes, metrics with intervals.

    Of two recipes, what is built of both in --runs is compared as well. Exit 1 when there is a difference.
    """
    folders = [_is_artifact(side) for side in (a, b)]
    if folders[0] != folders[1]:
        raise UserError(f"{a} and {b} are not of one kind: give two recipes or the folders of two artifacts.")
    if folders[0]:
        one, two = Artifact.open(a), Artifact.open(b)
        if one.manifest.stage != two.manifest.stage:
            stages = f"{a} is of {one.manifest.stage} and {b} of {two.manifest.stage}"
            raise UserError(f"{stages}: give two artifacts of one stage.")
        found: dict[str, Any] = {"artifacts": {one.manifest.stage: compare(one, two)}}
    else:
        found = _recipes(a, b, runs, other_runs or runs)
    if json_:
        print(json.dumps(_plain(found), indent=1, default=str))
    else:
        _show(found)
    if any(found.get(part) for part in ("values", "stages")) or any(map(_differs, found["artifacts"].values())):
        raise typer.Exit(1)


def _is_artifact(side: str) -> bool:
    return ("://" in side or os.path.isdir(side)) and Folder(side).exists(MANIFEST)


def _recipes(a: str, b: str, runs: str, other_runs: str) -> dict[str, Any]:
    """Compares two recipes, and the artifacts of both that are there."""
    (one, graph, store), (two, other, elsewhere) = open_graph(a, None, runs), open_graph(b, None, other_runs)
    ours, theirs = ({value.key: value for value in values(recipe)} for recipe in (one, two))
    lines = {}
    for key in sorted({*ours, *theirs} - {"name", "about"}):
        before, after = ours.get(key), theirs.get(key)
        if before is None or after is None or before.value != after.value:
            value = after or before
            assert value is not None
            effect = "" if value.counts else "a deadline: no stage follows" if value.deadline else "no stage follows"
            pair = [side.value if side else None for side in (before, after)]
            lines[key] = {"a": pair[0], "b": pair[1], "effect": effect}
    stages, artifacts = {}, {}
    for name in dict.fromkeys([*graph.nodes, *other.nodes]):
        mine, yours = graph.nodes.get(name), other.nodes.get(name)
        if mine is None or yours is None:
            stages[name] = f"only in {a if mine else b}"
            continue
        if mine.fingerprint != yours.fingerprint:
            stages[name] = "made anew"
        built = store.find(mine), elsewhere.find(yours)
        if built[0] and built[1] and built[0].folder.url != built[1].folder.url:
            artifacts[name] = compare(built[0], built[1])
    return {"values": lines, "stages": stages, "artifacts": artifacts}


def _differs(difference: Difference) -> bool:
    return any(getattr(difference, part) for part in ("values", "counts", "metrics", "files"))


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    artifacts = {}
    for name, difference in found["artifacts"].items():
        rows = [
            {"before": change[0], "after": change[1], "rows": number, "examples": difference.examples[change]}
            for change, number in difference.rows.items()
        ]
        artifacts[name] = {f.name: getattr(difference, f.name) for f in dataclasses.fields(difference)}
        artifacts[name]["rows"] = rows
        del artifacts[name]["examples"]
    return found | {"artifacts": artifacts}


def _show(found: dict[str, Any]) -> None:
    if found.get("values"):
        say("values:")
    for key, line in found.get("values", {}).items():
        effect = f"  ({line['effect']})" if line["effect"] else ""
        say(f"  {key}: {shown(line['a'])} -> {shown(line['b'])}{effect}")
    for how in dict.fromkeys(found.get("stages", {}).values()):
        say(f"\nStages {how}: {', '.join(name for name, other in found['stages'].items() if other == how)}.")
    for name, difference in found["artifacts"].items():
        _show_artifact(name, difference, "values" not in found)
    if not any((found.get("values"), found.get("stages"), *map(_differs, found["artifacts"].values()))):
        say("No difference.")


def _show_artifact(name: str, difference: Difference, alone: bool) -> None:
    if not _differs(difference):
        return
    say(f"\n{name}:")
    parts = (("", difference.values), ("input ", difference.inputs)) if alone else ()
    for what, changed in (*parts, ("", difference.counts), ("", difference.metrics)):
        for key, (before, after) in list(changed.items())[:SHOWN]:
            say(f"  {what}{key}: {_figure(before)} -> {_figure(after)}")
        if len(changed) > SHOWN:
            say(f"  ... and {len(changed) - SHOWN} more; --json has all")
    for (was, now), number in list(difference.rows.items())[:SHOWN]:
        say(f"  {number:,} rows: {was} -> {now} ({', '.join(difference.examples[was, now])} ...)")
    sizes = " -> ".join(f"{short(size)}B" for size in difference.bytes)
    say(f"  files with other bytes: {len(difference.files):,}; {sizes} in all")


def _figure(value: Any) -> str:
    """Returns a value, or a metric with its interval in brackets."""
    if isinstance(value, tuple):
        number, low, high = (f"{part:.4g}" if isinstance(part, float) else str(part) for part in value)
        return f"{number} [{low}, {high}]"
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else shown(value)


@app.command()
def sweep(recipe: RecipeName, threshold: Threshold, json_: Json = False, runs: Runs = "runs", set_: Set = None) -> None:
    """Say which clips other thresholds of `video-select` would keep and drop, from the ledgers of the shards alone.

    Each value has the clips kept, those that each filter drops, whichever comes first, and those that several drop.
    """
    import numpy as np
    import pyarrow as pa

    from filters.clips import failures, read_scores
    from mav.data.shards import shard_names

    key, _, listed = threshold.partition("=")
    values_ = [value for value in listed.split(",") if value]
    key = key if "." in key else f"video_select.{key}"
    if not values_ or not key.startswith("video_select."):
        raise UserError(
            f"{threshold!r} is no threshold with its values: write a field of `video_select`, such as "
            "video_select.still=0.02,0.1."
        )
    _, graph, store = open_graph(recipe, set_, runs)
    node = graph.node("video-shards")
    shards = store.find(node)
    if shards is None:
        raise UserError(f"video-shards of {recipe} is not built in {store.root.url}: run it with --until video-shards.")
    with ThreadPoolExecutor(READING) as pool:
        names = shard_names(shards.folder)
        scores = pa.concat_tables(pool.map(lambda name: read_scores(shards.folder, name), names))
    found: dict[str, Any] = {}
    for value in values_:
        rule = load_recipe(recipe, [*(set_ or ()), f"{key}={value}"]).video_select
        masks = failures(scores, rule)
        number = np.sum(list(masks.values()), axis=0)
        pairs = {f"{a}+{b}": int((masks[a] & masks[b]).sum()) for a, b in itertools.combinations(masks, 2)}
        found[value] = {
            "kept": int((number == 0).sum()),
            "dropped": {reason: int(mask.sum()) for reason, mask in masks.items()},
            "by_several": int((number > 1).sum()),
            "overlaps": {pair: rows for pair, rows in pairs.items() if rows},
        }
    if json_:
        print(json.dumps({"key": key, "rows": len(scores), "values": found}, indent=1))
        return
    columns = ("kept", *next(iter(found.values()))["dropped"], "several")
    table = PlainTable(key, *columns, right=columns, title=f"{len(scores):,} clips")
    for value, row in found.items():
        numbers = (row["kept"], *row["dropped"].values(), row["by_several"])
        table.add_row(value, *(f"{number:,}" for number in numbers))
    show(table)
    say("\nDropped by two:")
    for value, row in found.items():
        most = sorted(row["overlaps"].items(), key=lambda pair: (-pair[1], pair[0]))[:SHOWN]
        say(f"  {value}: {', '.join(f'{pair} {rows:,}' for pair, rows in most) or 'none'}")
