"""`mav diff`: what is different between two recipes, two runs or two artifacts, and what follows from it; `mav sweep`:
what would be different with other thresholds.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.describe import short
from flows.cli.options import Json, RecipeName, Runs, Set, complete_recipe, open_graph, run_until
from flows.engine.stage import Graph
from flows.engine.store import Store
from flows.services.printing import PlainTable, say, say_written, show
from mav.errors import UserError, nearest
from mav.recipes.identity import values
from mav.recipes.reader import load_recipe
from mav.recipes.rules import shown
from mav.storage import MANIFEST, Artifact, Folder
from mav.storage.compare import Difference, compare

if TYPE_CHECKING:
    from filters.clips import Clips
    from filters.pictures import Pictures
    from filters.sweep import Sweep

app = typer.Typer()
_SIDE = "A recipe (a shipped name or a YAML file), or the folder of an artifact."
A = Annotated[str, typer.Argument(metavar="A", help=_SIDE, autocompletion=complete_recipe)]
_OTHER = "What to compare it with, of the same kind."
B = Annotated[str, typer.Argument(metavar="B", help=_OTHER, autocompletion=complete_recipe)]
OtherRuns = Annotated[str, typer.Option("--other-runs", metavar="URL", help="Where B's artifacts are, if elsewhere.")]
Threshold = Annotated[
    str,
    typer.Argument(
        metavar="KEY=VALUES",
        help="A threshold of video_select or image_select and its values, such as video_select.still=0.02,0.1.",
    ),
]
Sheets = Annotated[
    str, typer.Option("--sheets", metavar="FILE", help="Write an HTML page with examples of what each value does.")
]
SELECTIONS = {"video_select": "clips", "image_select": "pictures"}
SHOWN = 8  # lines of one kind


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
        pair = [side.value if side else None for side in (before, after)]
        if pair[0] != pair[1]:
            value = after or before
            assert value is not None
            effect = "" if value.counts else "a deadline: no stage follows" if value.deadline else "no stage follows"
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
def sweep(
    recipe: RecipeName, threshold: Threshold, sheets: Sheets = "", runs: Runs = "runs", set_: Set = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Say which clips or pictures other thresholds would keep and drop, from what is stored: nothing is made again.

    Each value has the rows kept, those that each filter drops, whichever comes first, and those that several drop. By
    embeddings, near duplicates are searched anew for each value, which takes minutes where there are a million rows.
    """
    from filters.sweep import sweep

    section, key, values_ = _threshold(recipe, threshold, set_)
    _, graph, store = open_graph(recipe, set_, runs)
    rules = {v: getattr(load_recipe(recipe, [*(set_ or ()), f"{key}={v}"]), section) for v in values_}
    rows = _stored(recipe, section, graph, store)
    tried = sweep(rows, rules)
    found, number = {value: tried.counts(value) for value in rules}, len(tried.rows)
    if sheets:
        _write_sheets(sheets, graph.recipe.name, key, rows, tried)
    if json_:
        print(json.dumps({"key": key, "rows": number, "values": found}, indent=1))
        return
    columns = ("kept", *found[values_[0]]["dropped"], "several")
    table = PlainTable(key, *columns, right=columns, title=f"{number:,} {SELECTIONS[section]}")
    for value, row in found.items():
        numbers = (row["kept"], *row["dropped"].values(), row["by_several"])
        table.add_row(value, *(f"{number:,}" for number in numbers))
    show(table)
    overlaps = {value: row["overlaps"] for value, row in found.items() if row["overlaps"]}
    if overlaps:
        say("\nDropped for two reasons:")
    for value, pairs in overlaps.items():
        most = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:SHOWN]
        say(f"  {value}: {', '.join(f'{pair} {both:,}' for pair, both in most)}")
    if sheets:
        say_written(sheets)


def _write_sheets(path: str, recipe: str, key: str, rows: Clips | Pictures, tried: Sweep) -> None:
    from mav.report.selection import EXAMPLES, contact_sheets, sweep_page

    pages = {}
    for value in tried.reasons:
        counts = tried.counts(value)
        numbers = {"kept": counts["kept"], **counts["dropped"]}
        pages[value] = contact_sheets(rows.tars, tried.examples(value, EXAMPLES), numbers)
    page = sweep_page(recipe, key, SELECTIONS[key.partition(".")[0]], pages)
    with open(path, "wb") as file:
        file.write(page)


def _threshold(recipe: str, threshold: str, set_: list[str] | None) -> tuple[str, str, list[str]]:
    """Returns the section, the whole key and the values. Raises UserError where the key is no threshold."""
    key, _, listed = threshold.partition("=")
    key = key if "." in key else f"video_select.{key}"
    section, _, field = key.partition(".")
    values_ = list(dict.fromkeys(value.strip() for value in listed.split(",") if value.strip()))
    if not values_ or section not in SELECTIONS:
        raise UserError(
            f"{threshold!r} is no threshold with its values: write a field of `video_select` or `image_select`, "
            "such as video_select.still=0.02,0.1."
        )
    rule = getattr(load_recipe(recipe, set_ or ()), section)
    known = [each.name for each in dataclasses.fields(rule) if isinstance(getattr(rule, each.name), int | float)]
    if field not in known:
        meant = nearest(field, known)
        remedy = f"did you mean {meant}?" if meant else f"its thresholds are {', '.join(known)}."
        raise UserError(f"`{key}` is no threshold of `{section}`: {remedy}")
    return section, key, values_


def _stored(recipe: str, section: str, graph: Graph, store: Store) -> Clips | Pictures:
    """Returns the clips or pictures that are built. Raises UserError where there are none."""
    from filters.clips import Clips
    from filters.pictures import Pictures

    def built(name: str) -> Folder:
        found = store.find(graph.node(name))
        if found is None:
            raise UserError(
                f"{name} of {recipe} is not built in {store.root.url}: {run_until(recipe, name, store)} builds it."
            )
        return found.folder

    if section == "video_select":
        return Clips(built("video-shards"), graph.recipe.video_select)
    return Pictures.open(built("image-download"), built("image-embed"), graph.recipe.image_select)
