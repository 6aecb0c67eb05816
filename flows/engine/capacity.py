"""Whether the Ray cluster can hold what a stage asks for. Waiting is reported; an impossible request is refused."""

import json
import math
import os
import time
from collections.abc import Sequence
from typing import Any

from flows.engine.run import Job
from mav.errors import UserError

Resources = dict[str, float]  # CPU, GPU -> number
SILENT_SECONDS = 30.0  # a stage that has not begun after this time reports what it waits for


class Capacity:
    """The processors that each of a stage's `workers` needs on one node, all of them at once.

    `setting` is the key of the recipe's cluster that the number of CPUs comes from. Raises UserError when the cluster's
    nodes cannot hold the workers, unless the cluster starts nodes by itself.
    """

    def __init__(
        self, job: Job, cpus: float, gpus: float = 0.0, workers: int = 1, setting: str = "cpus_per_worker"
    ) -> None:
        job.run.ray()
        self.job, self.workers = job, workers
        self.need = {name: number for name, number in (("CPU", float(cpus)), ("GPU", float(gpus))) if number}
        self._began, self._reported = time.monotonic(), False
        nodes = _nodes()
        if fitting(nodes, self.need) >= workers or grows():
            return
        change = change_to_fit(nodes, self.need, workers, setting, job.recipe.cluster.least_workers[1])
        raise UserError(
            f"{job.name} asks for {words(self.need, workers)} and the nodes of the cluster have at most "
            f"{words(largest(nodes, self.need))} each: {remedy(change, 'start a node that has them')}."
        )

    def report_waiting(self) -> None:
        """Reports once what the stage waits for, when that takes long. It is called again until the stage begins."""
        if self._reported or time.monotonic() - self._began < SILENT_SECONDS or not self._short():
            return
        import ray

        self._reported = True
        free, all_ = ray.available_resources(), ray.cluster_resources()
        shares = " and ".join(f"{free.get(name, 0.0):g} of {all_.get(name, 0.0):g} {name}" for name in self.need)
        to_come = "" if fitting(_nodes(), self.need) >= self.workers else ", no node has them yet, one may be started"
        waits = f"for {words(self.need, self.workers)}: {shares} free in the cluster{to_come}"
        self.job.report(0, 0, waits=waits)
        self.job.say(f"waits {waits}")

    def _short(self) -> bool:
        """Says whether the stage waits for processors, and not for a process to start."""
        import ray
        from ray._private.state import available_resources_per_node

        if self.workers == 1:
            return fitting(list(available_resources_per_node().values()), self.need) < 1
        groups = ray.util.placement_group_table().values()
        return any(group["state"] in ("PENDING", "RESCHEDULING") for group in groups)


def fitting(nodes: Sequence[Resources], need: Resources) -> int:
    """Returns how many workers with this need the nodes hold."""
    return sum(int(min(node.get(name, 0.0) / number for name, number in need.items())) for node in nodes)


def largest(nodes: Sequence[Resources], need: Resources) -> Resources:
    """Returns the most that a node has of each resource of the need; of CPUs, that a node with the GPUs has."""
    gpus = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    with_gpus = [node for node in nodes if node.get("GPU", 0.0) >= min(gpus, need.get("GPU", 0.0))]
    cpus = max((node.get("CPU", 0.0) for node in with_gpus), default=0.0)
    return {name: gpus if name == "GPU" else cpus for name in need}


def change_to_fit(
    nodes: Sequence[Resources], need: Resources, workers: int, setting: str, number: str = "workers"
) -> str:
    """Returns the settings of the recipe's cluster that make the workers fit the nodes, as an argument of `--set`.

    Further ones follow with a `--set` of their own. It is '' where they fit already, and where no setting helps.
    `setting` is the key that the number of CPUs comes from, `number` the key of that of the workers.
    """
    need, changes = dict(need), dict[str, float]()
    if (most := largest(nodes, need).get("GPU", 0.0)) < need.get("GPU", 0.0):
        changes["gpus_per_worker"] = need["GPU"] = most
    need = {name: number for name, number in need.items() if number}
    # GPUs are what a training is for, so CPUs are saved before them. Without GPUs, workers are.
    fit = fitting(nodes, need)
    wanted = min(workers, fitting(nodes, need | {"CPU": 1.0})) if "GPU" in need else min(workers, max(fit, 1))
    fewer = (float(cpus) for cpus in range(math.ceil(need["CPU"]) - 1, 0, -1))
    enough = [need["CPU"]] if fit >= wanted else [n for n in fewer if fitting(nodes, need | {"CPU": n}) >= wanted]
    if not wanted or not enough:
        return ""
    if enough[0] != need["CPU"]:
        changes[setting] = need["CPU"] = enough[0]
    if wanted < workers:
        changes[number] = wanted
    return " --set ".join(f"cluster.{key}={value:g}" for key, value in changes.items())


def remedy(change: str, other: str) -> str:
    """Says what to do about nodes that hold too little: to change the recipe, where that helps, or something other."""
    return f"give `--set {change}`, or {other}" if change else other


def grows() -> bool:
    """Says whether the cluster starts nodes when they are needed.

    Where an autoscaler is at work, Ray's status names each node by its type, and otherwise `node_ID`.
    """
    import ray
    from ray.experimental.internal_kv import _internal_kv_get

    status = json.loads(_internal_kv_get("__autoscaling_status") or "{}")
    types = (status.get("autoscaler_report") or {}).get("active_nodes") or {}
    if any(not name.startswith("node_") for name in types):
        return True
    # On Kubernetes the status is not told, and nodes have a group in any case. KubeRay starts the head without Ray's
    # own monitor when its autoscaler runs beside it.
    on_kubernetes = any("ray.io/node-group" in node["Labels"] for node in ray.nodes())
    return on_kubernetes and "--no-monitor" in _head_start_command()


def _head_start_command() -> str:
    """Returns the command with which KubeRay started the cluster's head, which is in its environment."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    head = next(node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
    task: Any = ray.remote(lambda: os.environ.get("KUBERAY_GEN_RAY_START_CMD", ""))
    there = task.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(head, soft=False)).remote()
    return str(ray.get(there, timeout=60))


def _nodes() -> list[Resources]:
    """Returns the total resources of each living node."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def words(need: Resources, workers: int = 1) -> str:
    """Says what each of the workers needs."""
    each = " and ".join(f"{number:g} {name}" for name, number in need.items())
    return each + (f" for each of {workers} workers" if workers > 1 else "")
