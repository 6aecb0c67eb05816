"""`mav run|rerun`: build what a recipe describes."""

import os
import signal
import sys
import time
from contextlib import ExitStack
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.cli.options import (
    RecipeName,
    Runs,
    Set,
    StageName,
    command,
    complete_stage,
    open_graph,
    require_folder,
    require_writing,
    run_until,
)
from flows.cli.plan import show_dry_run
from flows.engine.retry import retry_failed
from flows.engine.run import Run
from flows.engine.stage import Node, require_files
from flows.engine.store import Store, recipe_owner, record
from flows.services.environment import require_places
from flows.services.printing import say
from flows.services.terminal import Terminal
from mav.errors import UserError
from mav.recipes import Recipe
from mav.recipes.reader import load_recipe
from mav.secrets import redacted
from mav.storage import MANIFEST

app = typer.Typer()

Until = Annotated[
    str, typer.Option("--until", metavar="STAGE", help="Stop when this stage is done.", autocompletion=complete_stage)
]
RETRY_HELP = "Of a stage that fetches: try again just the rows that failed for a passing reason."


@app.command()
def run(
    recipe: RecipeName, until: Until = "", runs: Runs = "runs", set_: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be built, and why.")] = False,
) -> None:  # fmt: skip
    """Build everything a recipe describes; what is done already is left alone."""
    loaded, graph, store = open_graph(recipe, set_, runs)
    wanted = graph.until(until) if until else list(graph.nodes.values())
    missing = [node for node in wanted if not store.artifact(node).exists(MANIFEST)]
    require_files(missing)
    if missing:
        from mav.data.sources import require_sources

        require_sources(loaded, [node.name for node in missing])
    if dry_run:
        show_dry_run(recipe, loaded, wanted, store, set_)
        return
    if not until:
        for name, reason in graph.left_out.items():
            say(f"{name} is left out: {reason}.", sys.stderr)
    if all(store.find(node) for node in wanted):
        done = f"all {len(wanted)} stages of {recipe} are done in {store.root.url}"
        say(f"Nothing to do: {done}. See {command('status', recipe, store, set_)}.")
        try:  # another recipe may have built them
            record(recipe_owner(recipe), store, wanted, loaded)
        except OSError as error:  # of a folder that may only be read
            say(f"Not recorded that {recipe} needs them ({error.strerror}): `mav clean` there may remove them.")
        return
    _run_flow(recipe, runs, set_, until=until)


@app.command()
def rerun(
    recipe: RecipeName,
    stage: StageName,
    downstream: Annotated[bool, typer.Option("--downstream", help="Also rebuild every stage that needs it.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help=RETRY_HELP)] = False,
    runs: Runs = "runs",
    set_: Set = None,
) -> None:
    """Build one stage anew, even if it is done."""
    loaded, graph, store = open_graph(recipe, set_, runs)
    node = graph.node(stage)
    for needed in node.inputs:
        if store.find(needed) is None:
            remedy = f"{run_until(recipe, needed.name, store, set_)} builds it"
            raise UserError(f"{stage} needs {needed.name}, which is not done: {remedy}.")
    later = [other.name for other in graph.downstream(stage)]
    if not failed:
        chosen = (stage, *later) if downstream else (stage,)
        _run_flow(recipe, runs, set_, only=chosen, fresh=chosen)
        return
    recovered = _retry(loaded, node, store)
    if downstream:
        _run_flow(recipe, runs, set_, only=later, fresh=later)
    elif recovered:
        remedy = f"{command('rerun', recipe, store, set_, f'{stage} --failed --downstream')} builds them anew"
        say(f"Stages after {stage} were built without them: {remedy}.")


def _retry(recipe: Recipe, node: Node, store: Store) -> int:
    """Makes one retry pass over the failed rows of a finished stage; returns how many came through."""
    with ExitStack() as services, Terminal() as terminal:
        done = retry_failed(node, Run(recipe, store, terminal, services))
    if not done.rows:
        reasons = "dns, timeout, reset, connection, 429, 5xx"
        say(f"Nothing to try again: no row of {node.name} failed for a passing reason ({reasons}).")
        return 0
    left = ", ".join(f"{reason} {n:,}" for reason, n in done.failed.items())
    rows = f"{done.recovered:,} of {done.rows:,} rows"
    say(f"{rows} that had failed came through{f' (still failed: {left})' if left else ''}.")
    return done.recovered


def _run_flow(recipe: str, runs: str, overrides: list[str] | None, **choice: Any) -> None:
    """Starts Prefect and Ray and runs the flow of the whole graph."""
    store = Store(runs)
    require_folder("--runs", runs, written=True)
    require_writing(store)
    require_places()
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # read by the imports below; our terminal shows it all
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
        import httpx
        from prefect.exceptions import ObjectNotFound, TerminationSignal

        # Ray has set its own handler by now, and Prefect passes on what it receives.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            make_a_video_flow(recipe=recipe, runs=runs, overrides=overrides or [], **choice)
        except TerminationSignal:  # Prefect's name for SIGTERM
            raise KeyboardInterrupt from None
        except (httpx.HTTPError, ObjectNotFound) as error:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            remedy = "see that it runs and keeps its database, then run again; what is finished is kept"
            server = redacted(os.environ.get("PREFECT_API_URL", "")) or "of this run"
            raise UserError(f"The Prefect server {server} lost the run ({reason}): {remedy}.") from None
    took = f"{recipe}: done in {time.monotonic() - began:.0f} s."
    shown = " and ".join(command(words, recipe, store, overrides) for words in ("status", "report"))
    say(f"{took} {shown} show it.", sys.stderr)
