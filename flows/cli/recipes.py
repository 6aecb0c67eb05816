"""`mav validate|schema`, `mav plan --cluster`: is a recipe right, how do editors check it, do these nodes hold it."""

import json
from dataclasses import asdict
from typing import Any

import typer

from flows.cli.options import Json, RecipeName, Set, graph_of
from flows.engine.capacity import Resources, change_to_fit, fitting, remedy, words
from flows.services.cluster_file import node_groups
from flows.services.printing import PlainTable, say, show
from mav.recipes import Recipe
from mav.recipes.reader import RecipeError, load_recipe

app = typer.Typer()


@app.command()
def validate(recipe: RecipeName, json_: Json = False, set_: Set = None) -> None:
    """Check a recipe and the files that it names, and say everything that is wrong. Exit 1 on a mistake."""
    problems: list[dict[str, object]] = []
    try:
        loaded = load_recipe(recipe, set_ or ())
    except RecipeError as error:
        problems = [vars(problem) | {"sentence": str(problem)} for problem in error.problems]
    else:
        from flows.engine.stage import absent_files
        from mav.data.sources import source_problems

        graph = graph_of(loaded)
        for key, path in absent_files(graph.nodes.values()):
            why, remedy = "it does not exist", "correct the path or bring the file"
            sentence = f"`{key}` is {path!r}, but {why}: {remedy}."
            problems.append({"key": key, "value": path, "why": why, "remedy": remedy, "sentence": sentence})
        for found in source_problems(loaded, graph.nodes):
            why, _, remedy = found.sentence.partition(": ")
            told: dict[str, object] = {"why": why, "remedy": remedy.rstrip("."), "sentence": found.sentence}
            problems.append({"key": found.key, "value": found.path} | told)
    if json_:
        print(json.dumps({"recipe": recipe, "problems": problems}, indent=1, default=str))
    else:
        for problem in problems:
            say(str(problem["sentence"]))
        if not problems:
            say(f"{recipe} is right: {len(graph.nodes)} stages.")
            for name, reason in graph.left_out.items():
                say(f"{name} is left out: {reason}.")
    if problems:
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, with which editors complete and check them."""
    from mav.recipes.schema import json_schema

    print(json.dumps(json_schema(), indent=1))


def demands(recipe: Recipe) -> list[tuple[str, Resources, int, str]]:
    """Returns what the recipe's work asks for: what it is, what each worker needs, how many, and the CPUs' setting."""
    cluster = recipe.cluster
    gpus = {"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {}
    shard, worker = {"CPU": cluster.cpus_per_shard}, {"CPU": float(cluster.cpus_per_worker)} | gpus
    found = [("a shard", shard, 1, "cpus_per_shard")]
    if gpus:
        found.append(("a shard of embeddings", shard | gpus, 1, "cpus_per_shard"))
    return [*found, ("a training", worker, cluster.least_workers[0], "cpus_per_worker")]


def show_fit(recipe: Recipe, path: str, as_json: bool) -> None:
    """Prints the nodes, how many times at once they hold each kind of work, and what to change if they hold one not.

    Raises typer.Exit with code 1 in that case.
    """
    groups = node_groups(path)
    kinds = [(group.most, {"CPU": group.cpus, "GPU": group.gpus}) for group in groups]
    asked: list[dict[str, Any]] = []
    for what, need, workers, setting in demands(recipe):
        at_once = sum(most * fitting([node], need) for most, node in kinds) // workers
        nodes = [node for most, node in kinds for _ in range(min(most, workers))]  # more would change nothing
        change = "" if at_once else change_to_fit(nodes, need, workers, setting, recipe.cluster.least_workers[1])
        asked.append({"what": what, "workers": workers, "each": need, "at_once": at_once, "change": change})
    if as_json:
        print(
            json.dumps({"recipe": recipe.name, "nodes": [asdict(group) for group in groups], "work": asked}, indent=1)
        )
    else:
        table = PlainTable("nodes", "at most", "CPUs", "GPUs", right=("at most", "CPUs", "GPUs"))
        for group in groups:
            table.add_row(group.name, str(group.most), f"{group.cpus:g}", f"{group.gpus:g}")
        work = PlainTable("work", "needs", "at once", right=("at once",))
        for each in asked:
            work.add_row(each["what"], words(each["each"], each["workers"]), f"{each['at_once']:,}")
        show(table)
        say("")
        show(work)
    wrong = [each for each in asked if not each["at_once"]]
    for each in () if as_json else wrong:
        say(
            f"The nodes of {path} cannot hold {each['what']} of {recipe.name}, which asks for "
            f"{words(each['each'], each['workers'])}: {remedy(each['change'], 'give larger or more nodes')}."
        )
    if wrong:
        raise typer.Exit(1)
