"""Protocols as data: how a number was made. Named, versioned YAML files beside this one; a result is never printed without its own."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml

from mav.errors import UserError
from mav.recipes import Recipe


@dataclass(frozen=True)
class Preparation:
    """What happens to a video before a network sees it."""

    frames: int  # from the middle of the clip
    fps: float = 0.0  # as if filmed at this rate; 0 = the clip's own
    size: int = 0  # shorter side, then the central square; 0 = as it is
    resize: str = "none"  # filter: bicubic or area (both antialiased)


@dataclass(frozen=True)
class Protocol:
    """One way to make a benchmark's numbers. Texts say what a reader must know to compare; `silent` lists what its source leaves open."""

    name: str
    version: int
    benchmark: str
    about: str
    samples: int  # videos to generate; 0 = as many as there are prompts
    prompts: str
    real: str
    split: Literal["train", "test"]  # of the real clips
    frames: int | str
    fps: float | str
    size: int | str
    resize: Literal["none", "bicubic", "area"]
    features: dict[str, str]  # metric -> network; `fid_clip` is a second FID
    covariance: Literal["unbiased", "biased"]
    estimator: str
    splits: int  # of the inception score
    silent: tuple[str, ...] = ()

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks its metrics need, each once."""
        return tuple(dict.fromkeys(name for name in self.features.values() if name != "none"))

    def preparation(self, recipe: Recipe | None) -> Preparation:
        """With the values that the demo's protocols leave to the recipe filled in."""
        words: dict[str, float] = {"native": 0}
        if recipe is not None:
            words |= {
                "cascade.frames": recipe.cascade.frames,
                "generate.fps": recipe.generate.fps,
                "cascade.base_size": recipe.cascade.base_size,
            }
        values = [
            words.get(value, value) if isinstance(value, str) else value for value in (self.frames, self.fps, self.size)
        ]
        if any(isinstance(value, str) for value in values):
            raise UserError(f"The protocol {self.name} takes its {values} from a recipe: name one with --recipe.")
        return Preparation(int(values[0]), float(values[1]), int(values[2]), self.resize)

    def only(self, metrics: list[str]) -> Protocol:
        """With these of its metrics. Raises UserError when it has no such metric."""
        unknown = [name for name in metrics if name not in self.features]
        if unknown:
            raise UserError(
                f"The protocol {self.name} has no metric {unknown[0]!r}: choose among {', '.join(self.features)}."
            )
        return dataclasses.replace(self, features={name: self.features[name] for name in metrics}) if metrics else self


def protocol_names(benchmark: str = "") -> list[str]:
    """Names of the shipped protocols, of one benchmark when given."""
    files = (file.name for file in resources.files(__package__).iterdir())
    names = sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml") and name != "published.yaml")
    return [name for name in names if not benchmark or load_protocol(name).benchmark == benchmark]


@functools.cache
def load_protocol(name: str) -> Protocol:
    """Raises UserError naming the shipped ones when there is none of this name."""
    file = resources.files(__package__).joinpath(f"{name}.yaml")
    if "/" in name or name == "published" or not file.is_file():
        raise UserError(f"There is no protocol {name!r}: choose one of {', '.join(protocol_names())}.")
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    return Protocol(**{**data, "silent": tuple(data["silent"])})


@functools.cache
def published() -> dict[str, list[dict[str, Any]]]:
    """Rows of the paper and of others, by benchmark, each with the protocol of its source."""
    rows: dict[str, list[dict[str, Any]]] = yaml.safe_load(
        resources.files(__package__).joinpath("published.yaml").read_text(encoding="utf-8")
    )
    return rows
