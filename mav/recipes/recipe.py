"""The recipe: every choice of a run, typed, in one place.

A recipe is a YAML file or the name of one that is shipped in `mav/recipes`. A stage's fingerprint covers only what the
stage reads and what decides its bytes (`mav.recipes.identity`), so a change of `generate` never retrains a network.
"""

import operator
from dataclasses import field
from typing import Annotated, Any

from annotated_types import MinLen

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
from mav.recipes.generation import CascadeSizes, Generate
from mav.recipes.sections import OPERATIONAL, Seed, section
from mav.recipes.training import ClipSection, TrainImage, TrainPrior, TrainVideo

PATHS = (  # keys whose value is the path of an outside file or folder
    "clip.pretrained", "clip.nsfw_head", "clip.watermark_head", "image_select.aesthetic_head", "train_prior.start",
    "train_decoder.start", "train_sr_low.start", "train_sr_high.start", "video_shards.files",
    "video_shards.shot_weights", "generate.prompts",
    "evaluate.weights_dir", "evaluate.ucf101", "evaluate.msrvtt",
)  # fmt: skip


@section
class Recipe:
    """All values of a run, by section."""

    name: Annotated[str, MinLen(1), OPERATIONAL]
    about: Annotated[str, OPERATIONAL] = ""
    seed: Seed = 0  # of all that is drawn; only the stages that draw follow it
    world: World | None = None  # the demo world, which the run draws and serves itself; null: none
    screening: Screening = field(default_factory=Screening)
    image_metadata: ImageMetadata = field(default_factory=ImageMetadata)
    image_download: ImageDownload = field(default_factory=ImageDownload)
    clip: ClipSection = field(default_factory=ClipSection)
    image_embed: ImageEmbed = field(default_factory=ImageEmbed)
    image_select: ImageSelect = field(default_factory=ImageSelect)
    video_shards: VideoShards = field(default_factory=VideoShards)
    video_select: VideoSelect = field(default_factory=VideoSelect)
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
    cluster: Annotated[Cluster, OPERATIONAL] = field(default_factory=Cluster)
    expect: Annotated[Expect, OPERATIONAL] = field(default_factory=Expect)

    def paths(self) -> list[tuple[str, str]]:
        """Returns (key, path) of every outside file or folder that the recipe names."""
        named = [(key, operator.attrgetter(key)(self)) for key in PATHS]
        named += [("image_metadata.sources", path) for path in self.image_metadata.sources]
        named += [("video_shards.sources", path) for path in self.video_shards.sources]
        named += [("screening.word_lists", path) for path in self.screening.word_lists if len(path) != 2]
        if self.world and self.world.kind == "digits" and self.world.files:
            # Its files themselves, so that a world is drawn anew when one of them is replaced.
            named.append(("world.files", f"{self.world.files.rstrip('/')}/*-ubyte*"))
        return [(key, path) for key, path in named if path]

    def section_of(self, stage: str) -> Any:
        """Returns the section of a training stage."""
        return getattr(self, stage.replace("-", "_"))
