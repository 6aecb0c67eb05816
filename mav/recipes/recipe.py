"""The recipe: every choice of a run, typed, in one place.

A recipe is a YAML file or the name of one that is shipped in `mav/recipes`. A stage's fingerprint covers only the
sections that the stage names, so a change of `generate` never retrains a network.
"""

import operator
from collections.abc import Iterable
from dataclasses import field
from typing import Any

from mav.recipes.cluster import Cluster, Expect
from mav.recipes.data import ImageDownload, ImageEmbed, ImageMetadata, Screening, VideoShards, World
from mav.recipes.evaluation import Evaluate
from mav.recipes.generation import CascadeSizes, Generate
from mav.recipes.sections import section, to_plain
from mav.recipes.training import ClipSection, TrainImage, TrainPrior, TrainVideo

PATHS = (  # keys whose value is the path of an outside file or folder
    "clip.pretrained", "clip.nsfw_head", "clip.watermark_head", "train_prior.start", "train_decoder.start",
    "train_sr_low.start", "train_sr_high.start", "video_shards.files", "generate.prompts", "evaluate.weights_dir",
    "evaluate.ucf101", "evaluate.msrvtt",
)  # fmt: skip


@section
class Recipe:
    """All values of a run, by section."""

    name: str
    about: str = ""
    seed: int = 0
    world: World | None = None  # the demo world, which the run draws and serves itself
    screening: Screening = field(default_factory=Screening)
    image_metadata: ImageMetadata = field(default_factory=ImageMetadata)
    image_download: ImageDownload = field(default_factory=ImageDownload)
    clip: ClipSection = field(default_factory=ClipSection)
    image_embed: ImageEmbed = field(default_factory=ImageEmbed)
    video_shards: VideoShards = field(default_factory=VideoShards)
    cascade: CascadeSizes = field(default_factory=CascadeSizes)
    train_prior: TrainPrior
    train_decoder: TrainImage
    train_sr_low: TrainImage
    train_sr_high: TrainImage
    train_decoder_video: TrainVideo
    train_interpolation: TrainVideo
    train_sr_low_video: TrainVideo
    generate: Generate = field(default_factory=Generate)
    evaluate: Evaluate = field(default_factory=Evaluate)
    cluster: Cluster = field(default_factory=Cluster)
    expect: Expect = field(default_factory=Expect)

    def paths(self) -> list[tuple[str, str]]:
        """Returns (key, path) of every outside file or folder that the recipe names."""
        named = [(key, operator.attrgetter(key)(self)) for key in PATHS]
        named += [("image_metadata.sources", path) for path in self.image_metadata.sources]
        named += [("video_shards.sources", path) for path in self.video_shards.sources]
        named += [("screening.word_lists", path) for path in self.screening.word_lists if "/" in path or "." in path]
        return [(key, path) for key, path in named if path]

    def section_of(self, stage: str) -> Any:
        """Returns the section of a training stage."""
        return getattr(self, stage.replace("-", "_"))

    def part(self, names: Iterable[str]) -> dict[str, Any]:
        """Returns the named sections as plain data, for a stage's fingerprint and manifest."""
        return {name: to_plain(getattr(self, name)) for name in sorted(names)}
