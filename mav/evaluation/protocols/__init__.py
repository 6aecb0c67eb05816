"""Protocols: how each number is made, as named and versioned YAML files beside this module.

A result is never printed without its protocol.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

import yaml

from mav.errors import UserError
from mav.recipes import Recipe


@dataclass(frozen=True)
class Preparation:
    """What is done to a video before a network sees it."""

    frames: int  # number of frames, from the middle of the clip
    fps: float = 0.0  # frame rate of these frames; 0 = the clip's own
    size: int = 0  # side in pixels: the shorter side is resized and the central square cut out; 0 = unchanged
    resize: str = "none"  # filter: bicubic or area (both antialiased)


@dataclass(frozen=True)
class Protocol:
    """One way to make the numbers of a benchmark. The texts say what a reader must know to compare them."""

    name: str
    version: int
    benchmark: str
    about: str
    samples: int  # videos to generate; 0 = one for each prompt
    prompts: str
    real: str
    split: Literal["train", "test"]  # of the real clips
    frames: int | str
    fps: float | str
    size: int | str
    resize: Literal["none", "bicubic", "area"]
    features: dict[str, str]  # metric -> network; `fid_clip` is a second FID
    covariance: Literal["unbiased", "biased"]  # of Frechet distances: divided by n - 1, or by n
    estimator: str
    splits: int  # number of splits of the inception score
    silent: tuple[str, ...] = ()  # what the protocol's source does not say
    covariances: dict[str, Literal["unbiased", "biased"]] = field(default_factory=dict)  # of metrics that differ

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks that its metrics need, each once."""
        return tuple(dict.fromkeys(name for name in self.features.values() if name != "none"))

    def covariance_of(self, metric: str) -> Literal["unbiased", "biased"]:
        """Returns how the covariances of a Frechet distance are divided, as the code that published it does."""
        return self.covariances.get(metric, self.covariance)

    def preparation(self, recipe: Recipe | None) -> Preparation:
        """Returns the preparation; a demo's takes values from the recipe. Raises UserError when that is missing."""
        words: dict[str, float] = {"native": 0}
        if recipe is not None:
            words |= {"cascade.frames": recipe.cascade.frames, "generate.fps": recipe.generate.fps,
                      "cascade.base_size": recipe.cascade.base_size}  # fmt: skip
        named = (self.frames, self.fps, self.size)
        values = [words.get(value, value) if isinstance(value, str) else value for value in named]
        if any(isinstance(value, str) for value in values):
            raise UserError(f"The protocol {self.name} takes its {values} from a recipe: name one with --recipe.")
        return Preparation(int(values[0]), float(values[1]), int(values[2]), self.resize)

    def only(self, metrics: list[str]) -> Protocol:
        """Returns the protocol with only these metrics, or with all of them. Raises UserError for an unknown one."""
        for name in metrics:
            if name not in self.features:
                known = ", ".join(self.features)
                raise UserError(f"The protocol {self.name} has no metric {name!r}: choose among {known}.")
        return dataclasses.replace(self, features={name: self.features[name] for name in metrics or self.features})


def protocol_names(benchmark: str = "") -> list[str]:
    """Returns the names of the shipped protocols, or of those of one benchmark."""
    files = (file.name for file in resources.files(__package__).iterdir())
    names = sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml") and name != "published.yaml")
    return [name for name in names if not benchmark or load_protocol(name).benchmark == benchmark]


@functools.cache
def load_protocol(name: str) -> Protocol:
    """Reads a shipped protocol. Raises UserError that names the shipped ones when there is none of this name."""
    if name not in protocol_names():
        raise UserError(f"There is no protocol {name!r}: choose one of {', '.join(protocol_names())}.")
    data = yaml.safe_load(resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    return Protocol(**{**data, "silent": tuple(data["silent"])})


@functools.cache
def published() -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of the paper and of others by benchmark, each with the protocol of its source."""
    text = resources.files(__package__).joinpath("published.yaml").read_text(encoding="utf-8")
    rows: dict[str, list[dict[str, Any]]] = yaml.safe_load(text)
    return rows
