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
        if change := change_to_fit(nodes, self.need, workers, setting):
            if grows():
                return
            raise UserError(
                f"{job.name} asks for {words(self.need, workers)} and the nodes of the cluster have at most "
                f"{words(largest(nodes, self.need))} each: give `--set {change}`, or start a node that has them."
            )

    def report_waiting(self) -> None:
        """Reports once what the stage waits for, when that takes long. It is called again until the stage begins."""
        if self._reported or time.monotonic() - self._began < SILENT_SECONDS or not self._short():
            return
        import ray

        self._reported = True
        free, all_ = ray.available_resources(), ray.cluster_resources()
        shares = " and ".join(f"{free.get(name, 0.0):g} of {all_.get(name, 0.0):g} {name}" for name in self.need)
        to_come = "" if fitting(_nodes(), self.need) >= self.workers else ", a node that has them is to come"
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


def change_to_fit(nodes: Sequence[Resources], need: Resources, workers: int, setting: str) -> str:
    """Returns the setting of the recipe's cluster, as KEY=VALUE, that makes the workers fit the nodes; '' if they do.

    `setting` is the key that the number of CPUs comes from.
    """
    fit, most, cpus = fitting(nodes, need), largest(nodes, need), need.get("CPU", 0.0)
    if fit >= workers:
        return ""
    if most.get("GPU", 0.0) < need.get("GPU", 0.0):
        return f"cluster.gpus_per_worker={most['GPU']:g}"
    if "GPU" in need:  # GPUs are what a training is for, so CPUs are saved first
        fewer = (number for number in range(math.ceil(cpus) - 1, 0, -1))
        enough = next((number for number in fewer if fitting(nodes, need | {"CPU": float(number)}) >= workers), 0)
        if enough:
            return f"cluster.{setting}={enough}"
    if workers > 1 and fit:
        return f"cluster.workers={fit}"
    return f"cluster.{setting}={max(most['CPU'], 1.0):g}"


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
