"""`mav status|verify|report`: look at what is built."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.text import Text

from flows.cli.options import Json, RecipeName, Runs, Set, damaged, nothing_built, open_graph
from flows.engine.store import changes, recipe_folder, recipe_owner
from flows.services.printing import PlainTable, say, show
from flows.services.terminal import ProgressLine, spinner
from mav.errors import UserError

app = typer.Typer()
FIGURES = (  # of the oracle: name, what it is, format, the name of the same figure of training clips
    ("speed_ratio", "speed over the clips'", ".2f", ""),
    ("direction_cosine", "direction kept (cosine)", ".2f", "direction_cosine_clips"),
    ("reversals", "reversals", ".0%", "reversals_clips"),
    ("area_change", "area, filled over given", "+.1%", ""),
    ("saturation_change", "saturation, filled over given", "+.1%", ""),
    ("frame_rate_obeyed", "frame rate obeyed (1 = right)", ".2f", ""),
    ("persistence", "colour and shape kept", ".0%", ""),
    ("motion_ratio_time_off", "speed with time layers off", ".2f", ""),
)
OF_DIGITS = {"saturation_change": "brightness, filled over given", "persistence": "digit kept"}
STATE_STYLE = {
    "done": "green", "running": "cyan", "failed": "red", "damaged": "red", "stale": "yellow", "missing": "dim",
}  # fmt: skip


@app.command()
def status(recipe: RecipeName, json_: Json = False, runs: Runs = "runs", set_: Set = None) -> None:
    """Say of every stage whether it is done, stale, missing, running, failed or damaged, and why."""
    loaded, graph, store = open_graph(recipe, set_, runs)
    stages: dict[str, dict[str, Any]] = {}
    verdict: dict[str, Any] = {}
    for node in graph.nodes.values():
        state: str = store.state(node, loaded.name, recipe_owner(recipe))
        if state == "done" and (problem := store.problem(node)):
            stages[node.name] = {"state": "damaged", "fingerprint": node.fingerprint, "counts": {}, "seconds": None}
            stages[node.name] |= {"reason": problem}
            continue
        artifact = store.find(node) if state == "done" else None
        manifest = artifact.manifest if artifact else None
        stages[node.name] = {
            "state": state,
            "fingerprint": node.fingerprint,
            "counts": manifest.counts if manifest else {},
            "seconds": manifest.seconds if manifest else None,
        }
        if state == "stale" and (older := store.older(node, loaded.name, recipe_owner(recipe))):
            stages[node.name]["changes"] = changes(node, older)
        failure = store.failure(node) if state == "failed" else None
        if failure:
            stages[node.name] |= {"reason": failure.reason, "failed_at": failure.at}
        if node.name == "oracle" and manifest:
            verdict |= manifest.metrics
        if node.name == "evaluate-interpolation" and manifest and "psnr_gain" in manifest.metrics:
            verdict["interpolation_gain_db"] = manifest.metrics["psnr_gain"]
    if json_:
        body = {"recipe": loaded.name, "stages": stages, "left_out": graph.left_out, "oracle": verdict}
        print(json.dumps(body, indent=1))
        return
    numbers = ("seconds", "rows in", "rows out")
    table = PlainTable("stage", "state", *numbers, "fingerprint", right=numbers)
    for name, row in stages.items():
        counts, state = row["counts"], row["state"]
        rows = [f"{counts[key]:,}" if key in counts else "" for key in ("rows_in", "rows_out")]
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        table.add_row(name, Text(state, STATE_STYLE[state]), seconds, *rows, row["fingerprint"][:12])
    show(table)
    lines = []
    for name, row in stages.items():
        if "reason" in row:
            when = f" at {row['failed_at']}" if "failed_at" in row else ""
            lines.append(f"{name} {row['state']}{when}: {row['reason']}")
        if "changes" in row:
            lines.append(f"{name} is stale: {'; '.join(row['changes'])}.")
    lines += [f"{name} is left out: {reason}." for name, reason in graph.left_out.items()]
    if lines:
        say("\n".join(["", *lines]))
    if "count" in verdict:
        say("")
        title = f"The oracle on {verdict['count']} videos, 95 % intervals in brackets:"
        table = PlainTable("figure", "measured", title=title)
        for what, figure in oracle_figures(verdict):
            table.add_row(what, figure)
        show(table)


def oracle_figures(verdict: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what the oracle read, and the figure of it with its interval."""

    def figure(name: str, form: str) -> str:
        value, interval = verdict[name], verdict["intervals"][name]
        if value is None:
            return "nothing to read"
        ends = f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else ""
        return f"{value:{form}}{ends}".replace("%", " %")

    other_names = OF_DIGITS if verdict["chance_colour"] is None else {}
    for name in ("colour", "shape")[bool(other_names) :]:  # digits have no colour
        yield f"{name} as asked", f"{figure(name, '.0%')}, by chance {100 * verdict['chance_' + name]:.0f} %"
    by_name = ", ".join(f"{name} {100 * share:.0f} %" for name, share in verdict["shape_by_name"].items())
    yield "each shape", by_name
    if verdict.get("reader_error") is not None:
        yield "true frames read wrong", f"{100 * verdict['reader_error']:.1f} %"
    for name, what, form, beside in FIGURES:
        other = f", clips {figure(beside, form)}" if beside else ""
        yield other_names.get(name, what), figure(name, form) + other
    if "interpolation_gain_db" in verdict:
        yield "F^ over linear blending", f"{verdict['interpolation_gain_db']:+.1f} dB"


@app.command()
def verify(
    recipe: RecipeName,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes only; do not re-read every byte.")] = False,
    runs: Runs = "runs",
    set_: Set = None,
) -> None:
    """Re-check every artifact: the digests of files, the manifest, and that counts add up. Exit 1 on a difference."""
    _, graph, store = open_graph(recipe, set_, runs)
    problems, checked = [], 0
    with ProgressLine() as line:
        for number, node in enumerate(graph.nodes.values()):
            line(node.name, number, len(graph.nodes))
            try:
                artifact = store.find(node)
            except UserError as error:
                problems.append(str(error))
                continue
            if artifact:
                checked += 1
                problems += [f"{node.name}: {problem}" for problem in artifact.problems(quick)]
                if artifact.manifest.fingerprint != node.fingerprint:
                    problems.append(f"{node.name}: {artifact.folder.url} carries another fingerprint than the recipe's")
    for problem in problems:
        say(problem)
    if problems:
        raise typer.Exit(1)
    if not checked:
        raise nothing_built(recipe, store, set_)
    say(
        f"{checked} of {len(graph.nodes)} stages checked: every file has the bytes its manifest says, "
        "and all counts add up."
    )


@app.command()
def report(recipe: RecipeName, runs: Runs = "runs", set_: Set = None) -> None:
    """Write the HTML report of what there is so far and print where it lies."""
    from flows.evaluation import stage_views
    from mav.report.page import write_report

    loaded, graph, store = open_graph(recipe, set_, runs)
    views = stage_views(graph.nodes.values(), store, loaded.name, recipe_owner(recipe))
    if all(view.artifact is None for view in views):
        raise nothing_built(recipe, store, set_)
    folder = store.root.child(f"reports/{recipe_folder(recipe)}")
    try:
        with spinner("Gathering what the stages made"):
            write_report(loaded, views, folder)
    except (ValueError, LookupError, TypeError, OSError):
        for view in views:
            if view.artifact and (damage := next(view.artifact.damage("all"), None)):
                raise damaged(recipe, view.name, damage, store, set_) from None
        raise
    say(folder.path("index.html"))
