"""Whether Ray has room for what a stage asks: waiting is said, and what no node will ever have is refused at once."""

import json
import time

from flows.engine.run import Job
from mav.errors import UserError

SILENT_SECONDS = 30.0  # a stage that has not begun by then says what it waits for


class Room:
    """The processors that each of a stage's `workers` needs on one node, all of them at once.

    setting: of the recipe's cluster, where the number of CPUs comes from. Raises UserError when the cluster's nodes cannot hold them,
    unless it starts nodes by itself.
    """

    def __init__(
        self, job: Job, cpus: float, gpus: float = 0.0, workers: int = 1, setting: str = "cpus_per_worker"
    ) -> None:
        job.run.ray()
        self.job, self.workers = job, workers
        self.need = {name: number for name, number in (("CPU", float(cpus)), ("GPU", float(gpus))) if number}
        self._began, self._told = time.monotonic(), False
        nodes = _nodes()
        if self._fit(nodes) >= workers or grows():
            return
        largest = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in self.need}
        if largest.get("GPU", gpus) < gpus:
            remedy = (
                "cluster.gpus_per_worker=0" if not largest["GPU"] else f"cluster.gpus_per_worker={largest['GPU']:g}"
            )
        elif workers > 1 and self._fit(nodes):
            remedy = f"cluster.workers={self._fit(nodes)}"
        else:
            remedy = f"cluster.{setting}={max(largest.get('CPU', 0.0), 1.0):g}"
        raise UserError(
            f"{job.name} asks for {self._asked()} and the nodes of the cluster have at most {_words(largest)} each: "
            f"give `--set {remedy}`, or start a node that has them."
        )

    def look(self) -> None:
        """To be called now and then until the work has begun: says once, when that takes long, what it waits for."""
        if self._told or time.monotonic() - self._began < SILENT_SECONDS or not self._short():
            return
        import ray

        self._told = True
        free, there = ray.available_resources(), ray.cluster_resources()
        shares = " and ".join(f"{free.get(name, 0.0):g} of {there.get(name, 0.0):g} {name}" for name in self.need)
        to_come = "" if self._fit(_nodes()) >= self.workers else ", a node that has them is to come"
        self.job.report(0, 0, waits=f"for {self._asked()}: {shares} free in the cluster{to_come}")

    def _asked(self) -> str:
        return f"{_words(self.need)}" + (f" for each of {self.workers} workers" if self.workers > 1 else "")

    def _fit(self, nodes: list[dict[str, float]]) -> int:
        """How many workers such nodes hold."""
        return sum(int(min(node.get(name, 0.0) / number for name, number in self.need.items())) for node in nodes)

    def _short(self) -> bool:
        """Whether it is processors that are waited for, not the start of a process."""
        import ray
        from ray._private.state import available_resources_per_node

        if self.workers == 1:
            return self._fit(list(available_resources_per_node().values())) < 1
        return any(group["state"] in ("PENDING", "RESCHEDULING") for group in ray.util.placement_group_table().values())


def grows() -> bool:
    """Whether the cluster starts nodes when they are needed. Ray's own status names each node by its type where somebody scales it, and
    `node_ID` where nobody does; on Kubernetes a node carries the group that it is of."""
    import ray
    from ray.experimental.internal_kv import _internal_kv_get

    status = json.loads(_internal_kv_get("__autoscaling_status") or "{}")
    types = (status.get("autoscaler_report") or {}).get("active_nodes") or {}
    return any(not name.startswith("node_") for name in types) or any(
        "ray.io/node-group" in node["Labels"] for node in ray.nodes()
    )


def _nodes() -> list[dict[str, float]]:
    """What each living node has in all."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _words(resources: dict[str, float]) -> str:
    return " and ".join(f"{number:g} {name}" for name, number in resources.items())
