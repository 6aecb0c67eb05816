"""The recipe: every choice of a run, typed, in one place.

A recipe is a YAML file (or the name of one shipped in `mav/recipes`). Each section below is one part of it and belongs to
the stages that name it; a stage's fingerprint covers its own sections only, so changing `generate` never retrains a network.
`cluster` says where a run happens and enters no fingerprint.

The sections are plain frozen dataclasses of the standard library, so that networks and training can import them on a
machine that has torch and nothing else. pydantic checks them when a file is loaded.
"""

from collections.abc import Iterable
from dataclasses import field
from typing import Any

from mav.recipes.cluster import Cluster, Expect
from mav.recipes.data import ImageDownload, ImageEmbed, ImageMetadata, Screening, VideoShards, World
from mav.recipes.generation import CascadeSizes, Evaluate, Generate
from mav.recipes.sections import section, to_plain
from mav.recipes.training import ClipSection, TrainImage, TrainPrior, TrainVideo


@section
class Recipe:
    """Everything a run needs to know; see the sections."""

    name: str
    about: str = ""
    seed: int = 0
    world: World | None = None  # the demo world, drawn and served by the run itself
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
        """Every outside file or folder the recipe names, with its key."""
        named = [
            ("clip.pretrained", self.clip.pretrained),
            ("clip.nsfw_head", self.clip.nsfw_head),
            ("clip.watermark_head", self.clip.watermark_head),
            ("train_prior.start", self.train_prior.start),
            ("train_decoder.start", self.train_decoder.start),
            ("train_sr_low.start", self.train_sr_low.start),
            ("train_sr_high.start", self.train_sr_high.start),
            ("video_shards.files", self.video_shards.files),
            ("generate.prompts", self.generate.prompts),
            ("evaluate.weights_dir", self.evaluate.weights_dir),
            ("evaluate.ucf101", self.evaluate.ucf101),
            ("evaluate.msrvtt", self.evaluate.msrvtt),
        ]
        named += [("image_metadata.sources", path) for path in self.image_metadata.sources]
        named += [("video_shards.sources", path) for path in self.video_shards.sources]
        named += [("screening.word_lists", path) for path in self.screening.word_lists if "/" in path or "." in path]
        return [(key, path) for key, path in named if path]

    def section_of(self, stage: str) -> Any:
        """The section of a training stage."""
        return getattr(self, stage.replace("-", "_"))

    def part(self, names: Iterable[str]) -> dict[str, Any]:
        """The named sections as plain data, for a stage's fingerprint and manifest."""
        return {name: to_plain(getattr(self, name)) for name in sorted(names)}
