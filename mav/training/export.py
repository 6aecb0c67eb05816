"""Exports: a trained network as `network.safetensors`, and a `network.json` that describes it.

The description holds the kind and config of the network, what it predicts (objective) and where it comes from, so that
a reader needs no recipe. Loading is strict: a file that does not fit its own description is refused.
"""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from mav.errors import UserError
from mav.models.prior import Prior
from mav.models.unet import UNet
from mav.recipes import Level, Objective, PriorConfig, UNetConfig, to_plain
from mav.storage import Folder

WEIGHTS, DESCRIPTION, CURVES = "network.safetensors", "network.json", "curves.jsonl"


@dataclass(frozen=True)
class Export:
    """A network that was read back, in evaluation mode, with its description."""

    network: UNet | Prior
    objective: Objective
    description: dict[str, Any]


def export_network(out: Folder, network: UNet | Prior, objective: Objective, **more: Any) -> None:
    """Writes the network's parameters (float32) and its description, to which `more` is added."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    out.write_bytes(WEIGHTS, save(tensors))
    kind = "prior" if isinstance(network, Prior) else "unet"
    parameters = sum(p.numel() for p in network.parameters())
    description = {"kind": kind, "config": to_plain(network.config), "objective": to_plain(objective)}
    out.write_json(DESCRIPTION, description | {"parameters": parameters} | more)


def load_network(folder: Folder, device: str = "cpu") -> Export:
    """Builds a network from its own description; on the device `meta` without its weights, which are not read.

    Raises UserError when there is none or its weights do not match.
    """
    try:
        description = json.loads(folder.read_bytes(DESCRIPTION))
        objective = Objective(**description["objective"])
        hollow = device == "meta"
        with torch.device("meta") if hollow else nullcontext():
            network = build(description["kind"], description["config"])
        tensors = network.state_dict() if hollow else load(folder.read_bytes(WEIGHTS))
    except FileNotFoundError as error:
        missing = error.filename or error
        raise UserError(
            f"There is no trained network in {folder.url} ({missing} is missing): run its stage first."
        ) from None
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"The network in {folder.url} cannot be read ({reason}): rerun its stage.") from None
    if problem := mismatch(network, tensors):
        raise UserError(f"{folder.path(WEIGHTS)} does not fit {DESCRIPTION} beside it: {problem}. Rerun its stage.")
    if not hollow:
        network.load_state_dict(tensors)
    return Export(network.to(device).eval().requires_grad_(False), objective, description)


def build(kind: str, config: Mapping[str, Any]) -> UNet | Prior:
    """Builds a new network of a described config."""
    if kind == "prior":
        return Prior(PriorConfig(**config))
    if kind == "unet":
        return UNet(UNetConfig(**{**config, "levels": tuple(Level(**level) for level in config["levels"])}))
    raise ValueError(f"unknown kind of network {kind!r}: prior or unet")


def mismatch(network: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Says what keeps the tensors from being exactly the network's; '' when they are."""
    own = network.state_dict()
    problems = {
        "it lacks": sorted(set(own) - set(tensors)),
        "it has no place for": sorted(set(tensors) - set(own)),
        "of another shape is": sorted(n for n in set(own) & set(tensors) if own[n].shape != tensors[n].shape),
    }
    return "; ".join(
        f"{what} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for what, names in problems.items()
        if names
    )


def write_curves(out: Folder, curves: list[dict[str, float]]) -> None:
    """Writes one JSON object a line: samples, loss, gradient_norm, learning_rate. They hold no times, only results."""
    out.write_bytes(CURVES, b"".join(json.dumps(line, sort_keys=True).encode() + b"\n" for line in curves))
