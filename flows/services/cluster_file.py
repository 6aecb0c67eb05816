"""The nodes that a cluster's file describes: of KubeRay, of Ray's launcher, of SkyPilot, of Slurm."""

import argparse
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from mav.errors import UserError

KINDS = "a RayCluster or RayJob, a file of Ray's launcher or of SkyPilot, or a Slurm script"
UNBOUNDED = 2**31 - 1  # KubeRay's own `maxReplicas` of a group that names none


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind: their name, the most of them that there may be, and what Ray finds on each."""

    name: str
    most: int
    cpus: float
    gpus: float


def node_groups(path: str) -> list[NodeGroup]:
    """Reads the groups of nodes of the cluster that a file describes.

    Raises UserError when it describes no cluster of a known kind, or several, or does not say the sizes of its nodes.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        slurm = text.startswith("#!") and re.search(r"^#SBATCH\s", text, re.MULTILINE)
        documents = [] if slurm else [found for found in yaml.safe_load_all(text) if isinstance(found, dict)]
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"--cluster {path} cannot be read ({reason}): give {KINDS}.") from None
    try:
        clusters = [[_slurm(text)]] if slurm else list(_clusters(documents))
    except (LookupError, TypeError, ValueError, AttributeError, argparse.ArgumentError) as error:
        told = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)
        reason = "its form is another" if isinstance(error, TypeError | AttributeError | IndexError) else told
        sentence = f"--cluster {path} does not say how large its nodes are ({reason}): give their sizes."
        raise UserError(sentence) from None
    if len(clusters) > 1:
        raise UserError(f"--cluster {path} describes {len(clusters)} clusters: give one of them in a file of its own.")
    if not clusters:
        raise UserError(f"--cluster {path} describes no cluster that is known here: give {KINDS}.")
    return clusters[0]


def _clusters(documents: list[dict[str, Any]]) -> Iterator[list[NodeGroup]]:
    for document in documents:
        if document.get("kind") == "List":  # as `kubectl get --output yaml` prints
            yield from _clusters(document["items"])
        elif document.get("kind") in ("RayCluster", "RayJob"):
            spec = document["spec"]
            yield _kuberay(spec.get("rayClusterSpec", spec))
        elif "available_node_types" in document:
            yield _launcher(document)
        elif "run" in document and "resources" in document:
            yield [_skypilot(document)]


def _number(value: Any, name: str) -> float:
    """Raises ValueError unless the value is a finite number, or the text of one, that is not negative."""
    number = float(value) if re.fullmatch(r"[0-9.]+(e[0-9]+)?", str(value)) and value is not True else math.nan
    if not math.isfinite(number):
        raise ValueError(f"`{name}` is {value!r}")
    return number


def _kuberay(spec: dict[str, Any]) -> list[NodeGroup]:
    scaled = spec.get("enableInTreeAutoscaling", False)
    groups = [_pods("head", 1, spec["headGroupSpec"])]
    for group in spec.get("workerGroupSpecs") or ():
        key, default = ("maxReplicas", UNBOUNDED) if scaled else ("replicas", 1)
        hosts = 0 if group.get("suspend") else _number(group.get("numOfHosts", 1), "numOfHosts")
        groups.append(_pods(group["groupName"], int(_number(group.get(key, default), key) * hosts), group))
    return groups


def _pods(name: str, most: int, group: dict[str, Any]) -> NodeGroup:
    """Reads what KubeRay tells Ray: the group's own resources, then `rayStartParams`, then those of the container."""
    resources = group["template"]["spec"]["containers"][0].get("resources") or {}
    limits = (resources.get("requests") or {}) | (resources.get("limits") or {})
    told = {"CPU": "num-cpus", "GPU": "num-gpus"}
    started, own = group.get("rayStartParams") or {}, group.get("resources") or {}
    given = {kind: started[key] for kind, key in told.items() if key in started} | own
    cpus = given["CPU"] if "CPU" in given else limits["cpu"]
    gpus = given.get("GPU", next((limits[key] for key in limits if key.endswith("gpu")), 0))  # of any maker
    return NodeGroup(name, most, _cores(cpus), _number(gpus, "gpu"))


def _cores(quantity: Any) -> float:
    """Reads Kubernetes' quantity of CPUs; Ray counts a part of one as one."""
    text = str(quantity)
    return float(math.ceil(_number(text[:-1], "cpu") / 1000 if text.endswith("m") else _number(quantity, "cpu")))


def _launcher(document: dict[str, Any]) -> list[NodeGroup]:
    """As Ray does: a type without `max_workers` may have as many as the cluster, the head's none but the head."""
    head, all_ = document.get("head_node_type"), _number(document.get("max_workers", 2), "max_workers")
    groups = []
    for name, kind in document["available_node_types"].items():
        workers = min(_number(kind.get("max_workers", 0 if name == head else all_), "max_workers"), all_)
        sizes = kind["resources"]
        cpus, gpus = _number(sizes["CPU"], "CPU"), _number(sizes.get("GPU", 0), "GPU")
        groups.append(NodeGroup(name, int(workers) + (name == head), cpus, gpus))
    return groups


def _skypilot(document: dict[str, Any]) -> NodeGroup:
    """Where SkyPilot may choose between several kinds of nodes, those count that have least."""
    told = document["resources"]
    cpus, gpus = [], []
    for choice in told.get("any_of") or told.get("ordered") or [{}]:
        resources = told | choice
        cpus.append(_number(str(resources["cpus"]).rstrip("+"), "cpus"))
        kinds = resources.get("accelerators") or {}
        for kind in [kinds] if isinstance(kinds, str | dict) else kinds:
            numbers = kind.values() if isinstance(kind, dict) else [str(kind).partition(":")[2] or 1]
            gpus.append(sum(_number(number, "accelerators") for number in numbers))
    return NodeGroup("node", int(_number(document.get("num_nodes") or 1, "num_nodes")), min(cpus), float(min(gpus)))


def _slurm(text: str) -> NodeGroup:
    """Reads the options before the first command, as `sbatch` does."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-N", "--nodes", default="1")
    parser.add_argument("-c", "--cpus-per-task", default="1")
    parser.add_argument("-G", "--gpus", default="")
    for name in ("--gpus-per-node", "--gpus-per-task", "--gres"):
        parser.add_argument(name, default="")
    head = takewhile(lambda line: not line.strip() or line.startswith("#"), text.splitlines())
    told = [line.removeprefix("#SBATCH") for line in head if re.match(r"#SBATCH\s", line)]
    options, _ = parser.parse_known_args([part for line in told for part in shlex.split(line, comments=True)])
    nodes = _number(options.nodes.rpartition("-")[2], "--nodes")
    kinds = [kind.partition(":") for kind in options.gres.split(",")]  # `gpu`, `gpu:8` or `gpu:a100:8`, and others
    a_node = options.gpus_per_node or options.gpus_per_task
    gpus = _gpus(a_node) if a_node else sum(_gpus(rest or "1") for name, _, rest in kinds if name == "gpu")
    gpus = gpus or _gpus(options.gpus) // max(nodes, 1)
    return NodeGroup("node", int(nodes), _number(options.cpus_per_task, "--cpus-per-task"), float(gpus))


def _gpus(told: str) -> float:
    """Reads `8`, `a100:8`, `a100` (one of it), or several of these with commas between them; '' is none."""
    numbers = [part.rpartition(":")[2] for part in told.split(",") if part]
    return sum(_number(number, "gpus") if number[:1].isdigit() else 1.0 for number in numbers)
