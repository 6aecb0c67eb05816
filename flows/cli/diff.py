"""`mav diff`: what is different between two recipes, two runs or two artifacts, and what follows from it."""

import dataclasses
import json
import os
from typing import Annotated, Any

import typer

from flows.cli.describe import short
from flows.cli.options import Json, Runs, open_graph
from mav.errors import UserError
from mav.recipes.identity import values
from mav.recipes.rules import shown
from mav.storage import MANIFEST, Artifact, Folder
from mav.storage.compare import Difference, compare

app = typer.Typer()
_SIDE = "A recipe (a shipped name or a YAML file), or the folder of an artifact."
A = Annotated[str, typer.Argument(metavar="A", help=_SIDE)]
B = Annotated[str, typer.Argument(metavar="B", help="What to compare it with, of the same kind.")]
OtherRuns = Annotated[str, typer.Option("--other-runs", metavar="URL", help="Where B's artifacts are, if elsewhere.")]
SHOWN = 8  # lines of one kind


@app.command()
def diff(a: A, b: B, runs: Runs = "runs", other_runs: OtherRuns = "", json_: Json = False) -> None:
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
    for key, line in found.get("values", {}).items():
        effect = f"  ({line['effect']})" if line["effect"] else ""
        print(f"{key}: {shown(line['a'])} -> {shown(line['b'])}{effect}")
    if stages := found.get("stages"):
        print(f"\nStages that follow: {', '.join(f'{name} ({how})' for name, how in stages.items())}.")
    for name, difference in found["artifacts"].items():
        _show_artifact(name, difference, "values" not in found)
    if not any((found.get("values"), found.get("stages"), *map(_differs, found["artifacts"].values()))):
        print("No difference.")


def _show_artifact(name: str, difference: Difference, alone: bool) -> None:
    if not _differs(difference):
        return
    print(f"\n{name}:")
    parts = (("", difference.values), ("input ", difference.inputs)) if alone else ()
    for what, changed in (*parts, ("", difference.counts), ("", difference.metrics)):
        for key, (before, after) in list(changed.items())[:SHOWN]:
            print(f"  {what}{key}: {_figure(before)} -> {_figure(after)}")
        if len(changed) > SHOWN:
            print(f"  ... and {len(changed) - SHOWN} more; --json has all")
    for (was, now), number in list(difference.rows.items())[:SHOWN]:
        print(f"  {number:,} rows: {was} -> {now} ({', '.join(difference.examples[was, now])} ...)")
    sizes = " -> ".join(f"{short(size)}B" for size in difference.bytes)
    print(f"  files with other bytes: {len(difference.files):,}; {sizes} in all")


def _figure(value: Any) -> str:
    """Returns a value, or a metric with its interval in brackets."""
    if isinstance(value, tuple):
        number, low, high = (f"{part:.4g}" if isinstance(part, float) else str(part) for part in value)
        return f"{number} [{low}, {high}]"
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else shown(value)
