"""`mav publish`: finished networks with a model card in a folder, and on request in a hub repository."""

import os
import string
from typing import Annotated

import typer

from flows.cli.options import RecipeName, Runs, Set, complete_stage, open_graph, run_until
from flows.services.printing import PlainTable, say, show
from mav.errors import UserError

app = typer.Typer()
TOKEN = "HF_TOKEN"
NAME = frozenset(string.ascii_letters + string.digits + "-_.")
LICENSE = "The networks' licence as the hub names it, e.g. cc-by-4.0; your data may decide it."
MEASURED = ("evaluate-ucf101", "evaluate-msrvtt", "evaluate-interpolation", "oracle")
STAGES = typer.Argument(
    metavar="STAGE", help="Training stages; by default all that are done.", autocompletion=complete_stage
)


@app.command()
def publish(
    recipe: RecipeName,
    to: Annotated[str, typer.Option("--to", metavar="NAME", help="The repository on the hub: owner/name.")],
    stages: Annotated[list[str] | None, STAGES] = None,
    license_: Annotated[str, typer.Option("--license", metavar="ID", help=LICENSE)] = "",
    push: Annotated[bool, typer.Option("--push", help="Upload it; otherwise only the folder is written.")] = False,
    runs: Runs = "runs",
    set_: Set = None,
) -> None:
    """Write a folder with the networks and their model card, and show what a push would upload.

    The token is read from HF_TOKEN.
    """
    from mav.report import publish as releases
    from mav.training.stages import TRAININGS

    if to.count("/") != 1 or not all(part and set(part) <= NAME for part in to.split("/")):
        raise UserError("--to takes the repository's name, for example --to someone/make-a-video-demo.")
    loaded, graph, store = open_graph(recipe, set_, runs)
    if strange := [stage for stage in stages or () if stage not in TRAININGS]:
        raise UserError(f"{strange[0]} is not a training stage: {', '.join(TRAININGS)} are.")

    # Find the finished networks, and the finished data that they were trained on.
    nodes = [graph.node(stage) for stage in stages or TRAININGS]
    found = {node.name: store.find(node) for node in nodes}
    networks = {name: artifact for name, artifact in found.items() if artifact is not None}
    missing = [name for name, artifact in found.items() if artifact is None]
    if not networks or (stages and missing):
        raise UserError(f"{missing[0]} is not trained yet: {run_until(recipe, missing[0], store, set_)} trains it.")
    before = {up.name: up for node in nodes if node.name in networks for up in node.upstream()}
    data = {
        name: artifact
        for name, node in sorted(before.items())
        if name not in TRAININGS and (artifact := store.find(node)) is not None
    }
    measured = [graph.node(name) for name in MEASURED if name in graph.nodes]
    results = {node.name: artifact for node in measured if (artifact := store.find(node)) is not None}

    folder = store.root.child(f"publish/{to.replace('/', '--')}")
    sizes = releases.write_release(loaded, networks, data, results, folder, license_)
    table = PlainTable("file", "bytes", right=("bytes",))
    for name, size in sizes.items():
        table.add_row(name, f"{size:,}")
    table.add_row("together", f"{sum(sizes.values()):,}", style="bold")
    show(table)
    say(f"\n{len(sizes)} files are in {folder.url}")
    if missing:
        say(f"Not trained yet, so not in it: {', '.join(missing)}.")
    if not push:
        say(f"Nothing was uploaded: --push uploads the folder to {to}.")
        return
    token = os.environ.get(TOKEN, "")
    if not token:
        raise UserError(f"--push needs the hub's token in the environment variable {TOKEN}.")
    if not folder.local:
        raise UserError("--push needs --runs on a disk: the hub's client uploads files.")
    say(releases.push(folder, to, token))
