"""Recipes: every size, threshold and rate of a run, as typed sections, and the YAML files that fill them.

The sections are frozen dataclasses of the standard library, so that networks and training can import them on a
machine that has only torch. `mav.recipes.reader` reads a file and checks it with pydantic.
"""

from mav.recipes.cluster import Cluster, Expect
from mav.recipes.data import (
    ImageDownload,
    ImageEmbed,
    ImageMetadata,
    ImageSelect,
    Screening,
    VideoSelect,
    VideoShards,
    World,
)
from mav.recipes.evaluation import Evaluate
from mav.recipes.generation import CascadeSizes, Generate, GuidedSampling, Sampling
from mav.recipes.identity import what
from mav.recipes.networks import ClipConfig, Level, PriorConfig, UNetConfig
from mav.recipes.recipe import Recipe
from mav.recipes.sections import digest, to_plain
from mav.recipes.training import (
    TRAINING_READS,
    ClipSection,
    FpsCurriculum,
    Objective,
    Optimisation,
    TrainImage,
    TrainPrior,
    TrainVideo,
)

__all__ = [
    "TRAINING_READS", "CascadeSizes", "ClipConfig", "ClipSection", "Cluster", "Evaluate", "Expect", "FpsCurriculum",
    "Generate", "GuidedSampling", "ImageDownload", "ImageEmbed", "ImageMetadata", "ImageSelect", "Level",
    "Objective", "Optimisation", "PriorConfig", "Recipe", "Sampling", "Screening", "TrainImage", "TrainPrior",
    "TrainVideo", "UNetConfig", "VideoSelect", "VideoShards", "World", "digest", "to_plain", "what",
]  # fmt: skip
