"""The nodes that a cluster's file describes: of KubeRay, of Ray's launcher, of SkyPilot, of Slurm."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mav.errors import UserError

KINDS = "a RayCluster or RayJob, a file of Ray's launcher or of SkyPilot, or a Slurm script"


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind: their name, the most of them that there may be, and what Ray finds on each."""

    name: str
    most: int
    cpus: float
    gpus: float


def node_groups(path: str) -> list[NodeGroup]:
    """Reads the groups of nodes from a file. Raises UserError when it is none of the known kinds, or says no sizes."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        slurm = "#SBATCH" in text
        documents = [] if slurm else [found for found in yaml.safe_load_all(text) if isinstance(found, dict)]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"--cluster {path} cannot be read ({reason}): give {KINDS}.") from None
    try:
        if slurm:
            return [_slurm(text)]
        for document in documents:
            if document.get("kind") in ("RayCluster", "RayJob"):
                spec = document["spec"]
                return _kuberay(spec.get("rayClusterSpec", spec))
            if "available_node_types" in document:
                return _launcher(document)
            if "run" in document and "resources" in document:
                return [_skypilot(document)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"--cluster {path} does not say how large its nodes are ({error!r}): give their sizes."
        ) from None
    raise UserError(f"--cluster {path} describes no cluster that is known here: give {KINDS}.")


def _kuberay(spec: dict[str, Any]) -> list[NodeGroup]:
    scaled = spec.get("enableInTreeAutoscaling", False)
    groups = [("head", 1, spec["headGroupSpec"])]
    for group in spec.get("workerGroupSpecs", []):
        most = group.get("maxReplicas", group.get("replicas", 1)) if scaled else group.get("replicas", 1)
        groups.append((group["groupName"], int(most) * int(group.get("numOfHosts", 1)), group))
    return [_pods(*group) for group in groups]


def _pods(name: str, most: int, group: dict[str, Any]) -> NodeGroup:
    resources = group["template"]["spec"]["containers"][0]["resources"]
    limits = resources.get("requests", {}) | resources.get("limits", {})
    told = group.get("rayStartParams") or {}
    cpus = float(told["num-cpus"]) if "num-cpus" in told else _cores(limits["cpu"])
    return NodeGroup(name, most, cpus, float(told.get("num-gpus", limits.get("nvidia.com/gpu", 0))))


def _cores(quantity: str | float) -> float:
    """Reads Kubernetes' quantity of CPUs; Ray counts a part of one as one."""
    text = str(quantity)
    return float(-(-int(text[:-1]) // 1000)) if text.endswith("m") else float(-(-float(text) // 1))


def _launcher(document: dict[str, Any]) -> list[NodeGroup]:
    head = document.get("head_node_type")
    groups = []
    for name, kind in document["available_node_types"].items():
        most = 1 if name == head else min(kind.get("max_workers", 0), document.get("max_workers", 2))
        groups.append(NodeGroup(name, most, float(kind["resources"]["CPU"]), float(kind["resources"].get("GPU", 0))))
    return groups


def _skypilot(document: dict[str, Any]) -> NodeGroup:
    resources = document["resources"]
    told = resources.get("accelerators") or {}
    if isinstance(told, str):
        name, _, number = told.partition(":")
        told = {name: number or 1}
    cpus = float(str(resources["cpus"]).rstrip("+"))
    return NodeGroup("node", int(document.get("num_nodes", 1)), cpus, float(sum(map(float, told.values()))))


def _slurm(text: str) -> NodeGroup:
    told: dict[str, str] = dict(re.findall(r"^#SBATCH\s+--([a-z-]+)[= ](\S+)", text, re.MULTILINE))
    resources = told["gpus-per-node"] if "gpus-per-node" in told else _gpus_of(told.get("gres", ""))
    number = resources.rpartition(":")[2]
    gpus = float(number) if number.isdecimal() else float(bool(number))  # a kind alone is one of it
    return NodeGroup("node", int(told.get("nodes", "1").rpartition("-")[2]), float(told.get("cpus-per-task", 1)), gpus)


def _gpus_of(resources: str) -> str:
    """Returns what a list of generic resources says of GPUs: `gpu`, `gpu:8` or `gpu:a100:8`; '' for none."""
    return next((each for each in resources.split(",") if each.partition(":")[0] == "gpu"), "")
