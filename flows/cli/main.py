"""The `mav` command."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.cli import clean as cli_clean
from flows.cli import describe as cli_describe
from flows.cli import evaluate as cli_evaluate
from flows.cli import generate as cli_generate
from flows.cli import plan as cli_plan
from flows.cli import publish as cli_publish
from flows.cli import study as cli_study
from flows.cli.options import Json, RecipeName, Runs, Set, StageName, complete_stage, nothing_built, open_plan
from flows.services.terminal import Line, Terminal, working
from mav.errors import UserError
from mav.recipes import Recipe
from mav.recipes.reader import load_recipe

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
                  help="Make-A-Video as a system: from image-text tables and unlabelled video to a text-to-video model.",
                  epilog="Begin with [bold]mav run demo[/] and [bold]mav report demo[/]. A RECIPE is a shipped name or a YAML file; "
                  "[bold]--set key=value[/] overrides any value of it. Exit codes: 0 done, 1 a check found differences, 2 something to "
                  "correct, 130 stopped by Ctrl-C.")  # fmt: skip

INTERRUPTED = 130  # the shell's exit code of a command ended by Ctrl-C

STATE_STYLE = {"done": "green", "running": "cyan", "failed": "red", "stale": "yellow", "missing": "dim"}


@app.command()
def run(
    recipe: RecipeName,
    until: Annotated[
        str,
        typer.Option("--until", metavar="STAGE", help="Stop when this stage is done.", autocompletion=complete_stage),
    ] = "",
    runs: Runs = "runs",
    set_: Set = None,
) -> None:
    """Build everything a recipe describes; what is done already is left alone."""
    _, plan, store = open_plan(recipe, set_, runs)
    wanted = plan.until(until) if until else list(plan.nodes.values())
    if all(store.find(node) for node in wanted):
        print(
            f"Nothing to do: all {len(wanted)} stages of {recipe} are done in {store.root.url}. See `mav status {recipe}`."
        )
        return
    _flow_run(recipe, runs, set_, until=until)


@app.command()
def rerun(
    recipe: RecipeName,
    stage: StageName,
    downstream: Annotated[bool, typer.Option("--downstream", help="Also rebuild every stage that needs it.")] = False,
    failed: Annotated[
        bool,
        typer.Option(
            "--failed", help="Of a stage that fetches: try again just the rows that failed for a passing reason."
        ),
    ] = False,
    runs: Runs = "runs",
    set_: Set = None,
) -> None:
    """Build one stage anew, even if it is done."""
    loaded, plan, store = open_plan(recipe, set_, runs)
    node = plan.node(stage)
    for needed in node.inputs:
        if store.find(needed) is None:
            raise UserError(
                f"{stage} needs {needed.name}, which is not done: `mav run {recipe} --until {needed.name}` builds it."
            )
    if failed:
        later = [other.name for other in plan.downstream(stage)]
        recovered = _retry(loaded, node, store)
        if downstream:
            _flow_run(recipe, runs, set_, only=tuple(later), fresh=tuple(later))
        elif recovered:
            print(
                f"Stages after {stage} were built without them: `mav rerun {recipe} {stage} --failed --downstream` builds them anew."
            )
        return
    chosen = [stage] + ([later.name for later in plan.downstream(stage)] if downstream else [])
    _flow_run(recipe, runs, set_, only=tuple(chosen), fresh=tuple(chosen))


def _retry(recipe: Recipe, node: Any, store: Any) -> int:
    """One pass over the rows of a finished stage that failed for a transient reason; returns how many came through."""
    from flows.engine.retry import retry_failed
    from flows.engine.run import Run

    with ExitStack() as services, Terminal() as screen:
        done = retry_failed(node, Run(recipe, store, screen, services))
    if not done.rows:
        print(
            f"Nothing to try again: no row of {node.name} failed for a passing reason (dns, timeout, reset, connection, 429, 5xx)."
        )
        return 0
    left = ", ".join(f"{reason} {n:,}" for reason, n in done.left.items())
    print(
        f"{done.recovered:,} of {done.rows:,} rows that had failed came through{f' (still failed: {left})' if left else ''}."
    )
    return done.recovered


def _flow_run(recipe: str, runs: str, overrides: list[str] | None, **choice: Any) -> None:
    os.environ.setdefault(
        "PREFECT_LOGGING_LEVEL", "CRITICAL"
    )  # read by the imports below: our screen tells what there is to tell
    from flows.deploy import make_a_video_flow
    from flows.services.prefect_server import prefect_server
    from flows.services.ray_cluster import ray_cluster

    console = Console(stderr=True, highlight=False)
    began = time.monotonic()
    with ExitStack() as services:
        console.print("Starting Prefect and Ray ...", style="dim")
        dashboards: list[str] = []
        cluster = ray_cluster(load_recipe(recipe, overrides or ()).cluster)
        prefect = prefect_server(meanwhile=lambda: dashboards.append(services.enter_context(cluster)))
        console.print(f"Prefect UI     {services.enter_context(prefect)}")
        console.print(f"Ray dashboard  {dashboards[0] or 'off (cluster.dashboard)'}")
        from prefect.exceptions import TerminationSignal

        signal.signal(
            signal.SIGTERM, signal.default_int_handler
        )  # after Ray, which sets its own; Prefect hands on what it was sent
        try:
            make_a_video_flow(recipe=recipe, runs=runs, overrides=overrides or [], **choice)
        except TerminationSignal:  # Prefect's name for SIGTERM
            raise KeyboardInterrupt from None
    console.print(
        f"{recipe}: done in {time.monotonic() - began:.0f} s. `mav status {recipe}` and `mav report {recipe}` show it.",
        soft_wrap=True,
    )


@app.command()
def status(recipe: RecipeName, json_: Json = False, runs: Runs = "runs", set_: Set = None) -> None:
    """Say of every stage whether it is done, stale, missing, failed or running."""
    loaded, plan, store = open_plan(recipe, set_, runs)
    stages: dict[str, dict[str, Any]] = {}
    verdict: dict[str, Any] = {}
    for node in plan.nodes.values():
        state = store.state(node, loaded.name)
        artifact = store.find(node) if state == "done" else None
        manifest = artifact.manifest if artifact else None
        stages[node.name] = {
            "state": state,
            "fingerprint": node.fingerprint,
            "counts": manifest.counts if manifest else {},
            "seconds": manifest.seconds if manifest else None,
        }
        if node.name == "oracle" and manifest:
            verdict = manifest.metrics
    if json_:
        print(json.dumps({"recipe": loaded.name, "stages": stages, "oracle": verdict}, indent=1))
        return
    table = Table("stage", "state", box=None, header_style="bold", pad_edge=False)
    for name in ("seconds", "rows in", "rows out"):
        table.add_column(name, justify="right")
    table.add_column("fingerprint")
    for name, facts in stages.items():
        counts = facts["counts"]
        numbers = [f"{counts[key]:,}" if key in counts else "" for key in ("rows_in", "rows_out")]
        seconds = "" if facts["seconds"] is None else f"{facts['seconds']:.1f}"
        table.add_row(
            name, f"[{STATE_STYLE[facts['state']]}]{facts['state']}[/]", seconds, *numbers, facts["fingerprint"][:12]
        )
    console = Console(highlight=False)
    console.print(table)
    if verdict:
        console.print(
            f"\nThe oracle on {verdict['count']} videos, 95 % intervals in brackets:",
            *_oracle(verdict),
            sep="\n",
            markup=False,
        )


def _oracle(verdict: dict[str, Any]) -> Iterator[str]:
    """The oracle's figures, a line each."""

    def told(name: str, form: str) -> str:
        value, interval = verdict[name], verdict["intervals"][name]
        return "nothing to read" if value is None else f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"

    for name in ("colour", "shape"):
        yield f"  {name + ' as asked':<24} {told(name, '.0%')}, by chance {verdict['chance_' + name]:.0%}"
    for name, what in (("motion_ratio", "displacement over clips'"), ("motion_ratio_time_off", "with time layers off")):
        yield f"  {what:<24} {told(name, '.2f')}"


@app.command()
def verify(
    recipe: RecipeName,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes only; do not re-read every byte.")] = False,
    runs: Runs = "runs",
    set_: Set = None,
) -> None:
    """Re-check every artifact: digests of all files, the manifest itself, and that counts add up. Exit 1 on a difference."""
    _, plan, store = open_plan(recipe, set_, runs)
    problems, checked = [], 0
    with Line() as line:
        for number, node in enumerate(plan.nodes.values()):
            line(node.name, number, len(plan.nodes))
            try:
                artifact = store.find(node)
            except UserError as error:
                problems.append(str(error))
                continue
            if artifact:
                checked += 1
                problems += [f"{node.name}: {problem}" for problem in artifact.problems(full=not quick)]
                if artifact.manifest.fingerprint != node.fingerprint:
                    problems.append(f"{node.name}: {artifact.folder.url} carries another fingerprint than the recipe's")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise typer.Exit(1)
    if not checked:
        raise nothing_built(recipe, store)
    print(
        f"{checked} of {len(plan.nodes)} stages checked: every file has the bytes its manifest says, and all counts add up."
    )


@app.command()
def report(recipe: RecipeName, runs: Runs = "runs", set_: Set = None) -> None:
    """Write the HTML report of what there is so far and print where it lies."""
    from flows.evaluation import stage_views
    from mav.report.page import write_report

    loaded, plan, store = open_plan(recipe, set_, runs)
    views = stage_views(plan.nodes.values(), store, loaded.name)
    if all(view.artifact is None for view in views):
        raise nothing_built(recipe, store)
    folder = store.root.child(f"reports/{loaded.name}")
    with working("Gathering what the stages made"):
        write_report(loaded, views, folder)
    print(folder.path("index.html"))


@app.command("serve-demo-world")
def serve_demo_world(recipe: RecipeName = "demo", runs: Runs = "runs", set_: Set = None) -> None:
    """Serve the pictures, clips and faults of the demo world on loopback until Ctrl-C."""
    from mav.world.server import WorldServer

    loaded, plan, store = open_plan(recipe, set_, runs)
    if loaded.world is None:
        raise UserError(f"Recipe {recipe} has no demo world to serve: `mav serve-demo-world demo` serves the demo's.")
    artifact = store.find(plan.node("demo-world"))
    if artifact is None:
        raise UserError(f"The demo world is not drawn yet: `mav run {recipe} --until demo-world` draws it.")
    with WorldServer(artifact.folder.child("site"), loaded.world.port):
        print(f"http://127.0.0.1:{loaded.world.port}/ (Ctrl-C ends it)", flush=True)
        while True:
            time.sleep(3600)


app.registered_commands += [
    command
    for part in (cli_clean, cli_generate, cli_evaluate, cli_describe, cli_plan, cli_publish)
    for command in part.app.registered_commands
]
PANELS = {  # every command with an example, in the groups and the order that help shows
    "Build": {
        "run": "mav run my.yaml --until image-download --runs s3://bucket/runs",
        "rerun": "mav rerun demo train-prior --downstream",
        "clean": "mav clean demo --delete",
    },
    "Look": {"status": "mav status demo --json", "report": "mav report demo", "verify": "mav verify demo --quick"},
    "Foresee": {
        "plan": "mav plan paper --rate fetched=400",
        "describe": "mav describe single-gpu --set cascade.frames=8",
    },
    "Use the networks": {
        "sample": 'mav sample demo "a red circle moves to the left" --count 4',
        "animate": "mav animate demo picture.png",
        "interpolate": "mav interpolate demo first.png last.png",
        "vary": "mav vary demo clip.mp4 --seed 7",
        "publish": "mav publish demo --to someone/make-a-video-demo",
    },
    "Measure": {
        "evaluate": "mav evaluate ucf101 --videos DIR --real UCF --weights-dir DIR",
        "study": "mav study freeze --system ours=DIR --system theirs=DIR --prompts FILE --out STUDY",
    },
    "Serve": {"serve-demo-world": "mav serve-demo-world demo"},
}
_PANEL = {name: panel for panel, commands in PANELS.items() for name in commands}


def _name(command: Any) -> str:
    return str(command.name or command.callback.__name__)


app.registered_commands.sort(key=lambda command: list(_PANEL).index(_name(command)))
for _command in app.registered_commands:
    _command.rich_help_panel = panel = _PANEL[_name(_command)]
    _command.epilog = f"Example: [bold]{PANELS[panel][_name(_command)]}[/]"
app.add_typer(
    cli_study.app,
    name="study",
    rich_help_panel=_PANEL["study"],
    epilog=f"Example: [bold]{PANELS['Measure']['study']}[/]",
)


def main() -> None:
    """Runs the command; an error a user can cause is one sentence and exit 2."""
    try:
        from flows.services.environment import configure_environment

        configure_environment()
        code = app(prog_name="mav", standalone_mode=False) or 0  # the code of a typer.Exit comes back as the value
        if code == INTERRUPTED:  # typer's answer to Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except UserError as error:
        print(f"mav: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        command = (
            "`mav run` of this recipe" if sys.argv[1:2] == ["rerun"] else "the same command"
        )  # which would begin anew
        print(f"mav: stopped; {command} goes on where it was.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        # click's own usage errors know how to show themselves
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
