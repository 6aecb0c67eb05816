"""Whether the Ray cluster can hold what a stage asks for. Waiting is reported; an impossible request is refused."""

import json
import time

from flows.engine.run import Job
from mav.errors import UserError

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
        if self._fit(nodes) >= workers or grows():
            return
        # Name the setting whose change makes the stage fit.
        largest = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in self.need}
        if largest.get("GPU", gpus) < gpus:
            remedy = f"cluster.gpus_per_worker={largest['GPU']:g}"
        elif workers > 1 and self._fit(nodes):
            remedy = f"cluster.workers={self._fit(nodes)}"
        else:
            remedy = f"cluster.{setting}={max(largest.get('CPU', 0.0), 1.0):g}"
        raise UserError(
            f"{job.name} asks for {self._request()} and the nodes of the cluster have at most {_words(largest)} each: "
            f"give `--set {remedy}`, or start a node that has them."
        )

    def report_waiting(self) -> None:
        """Reports once what the stage waits for, when that takes long. It is called again until the stage begins."""
        if self._reported or time.monotonic() - self._began < SILENT_SECONDS or not self._short():
            return
        import ray

        self._reported = True
        free, all_ = ray.available_resources(), ray.cluster_resources()
        shares = " and ".join(f"{free.get(name, 0.0):g} of {all_.get(name, 0.0):g} {name}" for name in self.need)
        to_come = "" if self._fit(_nodes()) >= self.workers else ", a node that has them is to come"
        self.job.report(0, 0, waits=f"for {self._request()}: {shares} free in the cluster{to_come}")

    def _request(self) -> str:
        return f"{_words(self.need)}" + (f" for each of {self.workers} workers" if self.workers > 1 else "")

    def _fit(self, nodes: list[dict[str, float]]) -> int:
        """Returns how many workers these nodes hold."""
        return sum(int(min(node.get(name, 0.0) / number for name, number in self.need.items())) for node in nodes)

    def _short(self) -> bool:
        """Says whether the stage waits for processors, and not for a process to start."""
        import ray
        from ray._private.state import available_resources_per_node

        if self.workers == 1:
            return self._fit(list(available_resources_per_node().values())) < 1
        groups = ray.util.placement_group_table().values()
        return any(group["state"] in ("PENDING", "RESCHEDULING") for group in groups)


def grows() -> bool:
    """Says whether the cluster starts nodes when they are needed.

    Where an autoscaler is at work, Ray's status names each node by its type, and otherwise `node_ID`; on Kubernetes a
    node has the label of its group.
    """
    import ray
    from ray.experimental.internal_kv import _internal_kv_get

    status = json.loads(_internal_kv_get("__autoscaling_status") or "{}")
    types = (status.get("autoscaler_report") or {}).get("active_nodes") or {}
    scaled = any(not name.startswith("node_") for name in types)
    return scaled or any("ray.io/node-group" in node["Labels"] for node in ray.nodes())


def _nodes() -> list[dict[str, float]]:
    """Returns the total resources of each living node."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _words(resources: dict[str, float]) -> str:
    return " and ".join(f"{number:g} {name}" for name, number in resources.items())
