"""`mav serve-demo-world`: the demo's web server, without a run."""

import time

import typer

from flows.cli.options import RecipeName, Runs, Set, open_graph, run_until
from flows.services.printing import say
from mav.errors import UserError

app = typer.Typer()


@app.command("serve-demo-world")
def serve_demo_world(recipe: RecipeName = "demo", runs: Runs = "runs", set_: Set = None) -> None:
    """Serve the pictures, clips and faults of the demo world on loopback until Ctrl-C."""
    from mav.world.server import WorldServer

    loaded, graph, store = open_graph(recipe, set_, runs)
    if loaded.world is None:
        raise UserError(f"Recipe {recipe} has no demo world to serve: `mav serve-demo-world demo` serves the demo's.")
    artifact = store.find(graph.node("demo-world"))
    if artifact is None:
        raise UserError(f"The demo world is not drawn yet: {run_until(recipe, 'demo-world', store, set_)} draws it.")
    with WorldServer(artifact.folder.child("site"), loaded.world.port):
        say(f"http://127.0.0.1:{loaded.world.port}/ (Ctrl-C ends it)")
        while True:
            time.sleep(3600)
