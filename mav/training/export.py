"""Exports: a finished network as `network.safetensors` and a `network.json` that rebuilds it.

The json says what the network is (kind and config), what it predicts (objective) and where it came from, so a reader needs no recipe.
Loading is strict: a file that does not fit its own description is refused with one sentence.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from mav.errors import UserError
from mav.models.prior import Prior
from mav.models.unet import UNet
from mav.recipes import Level, Objective, PriorConfig, UNetConfig, to_plain
from mav.storage import Folder

WEIGHTS, FACTS, CURVES = "network.safetensors", "network.json", "curves.jsonl"


@dataclass(frozen=True)
class Export:
    """A network read back, in evaluation mode, with what its file says about it."""

    network: UNet | Prior
    objective: Objective
    facts: dict[str, Any]


def export_network(out: Folder, network: UNet | Prior, objective: Objective, **facts: Any) -> None:
    """Writes the network's parameters (float32) and its description; `facts` are kept beside them."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    out.write_bytes(WEIGHTS, save(tensors))
    kind = "prior" if isinstance(network, Prior) else "unet"
    parameters = sum(p.numel() for p in network.parameters())
    described = {
        "kind": kind,
        "config": to_plain(network.config),
        "objective": to_plain(objective),
        "parameters": parameters,
    }
    out.write_json(FACTS, described | facts)


def load_network(folder: Folder, device: str = "cpu") -> Export:
    """Rebuilds a network from its own description. Raises UserError when there is none or its weights do not match."""
    try:
        facts = json.loads(folder.read_bytes(FACTS))
        network = build(facts["kind"], facts["config"])
        objective = Objective(**facts["objective"])
        tensors = load(folder.read_bytes(WEIGHTS))
    except FileNotFoundError as error:
        raise UserError(
            f"There is no trained network in {folder.url} ({error.filename or error} is missing): run its stage first."
        ) from None
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"The network in {folder.url} cannot be read ({reason}): rerun its stage.") from None
    if problem := mismatch(network, tensors):
        raise UserError(f"{folder.path(WEIGHTS)} does not fit {FACTS} beside it: {problem}. Rerun its stage.")
    network.load_state_dict(tensors)
    return Export(network.to(device).eval().requires_grad_(False), objective, facts)


def build(kind: str, config: Mapping[str, Any]) -> UNet | Prior:
    """A fresh network of a described config."""
    if kind == "prior":
        return Prior(PriorConfig(**config))
    if kind == "unet":
        return UNet(UNetConfig(**{**config, "levels": tuple(Level(**level) for level in config["levels"])}))
    raise ValueError(f"unknown kind of network {kind!r}: prior or unet")


def mismatch(network: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """What keeps the tensors from being exactly the network's, or nothing."""
    own = network.state_dict()
    shared = sorted(set(own) & set(tensors))
    problems = {
        "it lacks": sorted(set(own) - set(tensors)),
        "it has no place for": sorted(set(tensors) - set(own)),
        "of another shape is": [name for name in shared if own[name].shape != tensors[name].shape],
    }
    return "; ".join(f"{what} {_listed(names)}" for what, names in problems.items() if names)


def _listed(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def write_curves(out: Folder, curves: list[dict[str, float]]) -> None:
    """One JSON object a line: samples, loss, gradient_norm, learning_rate. Holds no times, so equal runs write equal bytes."""
    out.write_bytes(CURVES, b"".join(json.dumps(line, sort_keys=True).encode() + b"\n" for line in curves))
