"""`mav plan --cluster`: whether the nodes of a cluster's file hold what a recipe asks for."""

import json
from dataclasses import asdict

from flows.engine.capacity import Resources, change_to_fit, fitting, words
from flows.services.cluster_file import node_groups
from flows.services.terminal import plain_table, table_console
from mav.errors import UserError
from mav.recipes import Recipe


def demands(recipe: Recipe) -> list[tuple[str, Resources, int, str]]:
    """Returns what the recipe's work asks for: what it is, what each worker needs, how many, and the CPUs' setting."""
    cluster = recipe.cluster
    gpus = {"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {}
    shard, worker = {"CPU": cluster.cpus_per_shard}, {"CPU": float(cluster.cpus_per_worker)} | gpus
    found = [("a shard", shard, 1, "cpus_per_shard")]
    if gpus:
        found.append(("a shard of embeddings", shard | gpus, 1, "cpus_per_shard"))
    return [*found, ("a training", worker, cluster.workers, "cpus_per_worker")]


def show_fit(recipe: Recipe, path: str, as_json: bool) -> None:
    """Prints the nodes, and how many times at once they hold each kind of work.

    Raises UserError with the setting to change when they do not hold one of them.
    """
    groups = node_groups(path)
    nodes = [{"CPU": group.cpus, "GPU": group.gpus} for group in groups for _ in range(group.most)]
    asked = [
        {"what": what, "workers": workers, "each": need, "at_once": fitting(nodes, need) // workers,
         "change": change_to_fit(nodes, need, workers, setting)}
        for what, need, workers, setting in demands(recipe)
    ]  # fmt: skip
    if as_json:
        print(
            json.dumps({"recipe": recipe.name, "nodes": [asdict(group) for group in groups], "work": asked}, indent=1)
        )
    else:
        table = plain_table("nodes", right=("at most", "CPUs", "GPUs"))
        for group in groups:
            table.add_row(group.name, str(group.most), f"{group.cpus:g}", f"{group.gpus:g}")
        work = plain_table("work", right=("needs", "at once"))
        for what, need, workers, _ in demands(recipe):
            work.add_row(what, words(need, workers), f"{fitting(nodes, need) // workers:,}")
        console = table_console()
        console.print(table)
        console.print()
        console.print(work)
    for what, need, workers, setting in demands(recipe):
        if change := change_to_fit(nodes, need, workers, setting):
            raise UserError(
                f"The nodes of {path} cannot hold {what} of {recipe.name}, which asks for {words(need, workers)}: "
                f"give `--set {change}`, or larger or more nodes."
            )
