"""Protocols as data: how a number was made. Named, versioned YAML files beside this one; a result is never printed without its own."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from mav.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """One way to make a benchmark's numbers. Texts say what a reader must know to compare; `silent` lists what its source leaves open."""

    name: str
    version: int
    benchmark: str
    about: str
    samples: int  # videos to generate
    prompts: str
    real: str
    frames: int | str
    size: int | str
    features: dict[str, str]  # metric -> network
    estimator: str
    splits: int
    silent: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.name} v{self.version}"


def protocol_names() -> list[str]:
    """Names of the shipped protocols."""
    files = (file.name for file in resources.files(__package__).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml") and name != "published.yaml")


@functools.cache
def load_protocol(name: str) -> Protocol:
    """Raises UserError naming the shipped ones when there is none of this name."""
    if name not in protocol_names():
        raise UserError(f"There is no protocol {name!r}: choose one of {', '.join(protocol_names())}.")
    data = yaml.safe_load(resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    return Protocol(**{**data, "silent": tuple(data["silent"])})


@functools.cache
def published() -> dict[str, list[dict[str, Any]]]:
    """Rows of the paper and of others, by benchmark, each with the protocol of its source."""
    rows: dict[str, list[dict[str, Any]]] = yaml.safe_load(
        resources.files(__package__).joinpath("published.yaml").read_text(encoding="utf-8")
    )
    return rows
