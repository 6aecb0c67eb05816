"""What a stage's training is built from: its section of the recipe, its parent network and its samples."""

from dataclasses import dataclass
from typing import Any

from mav.models.clip import ClipModel
from mav.models.unet import UNet
from mav.recipes import Recipe
from mav.storage import Folder
from mav.training.export import load_network
from mav.training.loop import BatchSource


@dataclass(frozen=True)
class StageSetup:
    """What a training is built from. `source`: samples from elsewhere than the inputs, for tests and experiments."""

    stage: str
    recipe: Recipe
    inputs: dict[str, Folder]
    device: str = "cpu"
    source: BatchSource | None = None

    @property
    def section(self) -> Any:
        """The stage's section of the recipe."""
        return self.recipe.section_of(self.stage)

    @property
    def key(self) -> str:
        """The name of that section, for messages."""
        return self.stage.replace("-", "_")

    def parent(self, stage: str) -> UNet:
        """The network that a video stage starts from, ready to be trained."""
        network = load_network(self.inputs[stage]).network
        if not isinstance(network, UNet):
            raise ValueError(f"{self.inputs[stage].url} holds a prior, not a U-Net")
        return network.requires_grad_(True)

    def captioned_images(self, clip: ClipModel) -> BatchSource:
        """Images of CLIP's size, with their captions as its tokens."""
        if self.source is not None:
            return self.source
        from mav.data.loading.loaders import CaptionedImages

        download, share = self.inputs["image-download"], self.section.optimisation.corrupted_share
        return CaptionedImages(download, clip.image_size, self.recipe.seed, clip.tokenize, share)

    def images(self, size: int, enlarged: bool = True) -> BatchSource:
        """Images with their embeddings, with the enlarged ones or without; size 0 leaves the pixels out."""
        if self.source is not None:
            return self.source
        from mav.data.loading.loaders import ImageSource

        embeds, share = self.inputs["image-embed"], self.section.optimisation.corrupted_share
        download = self.inputs.get("image-download", embeds)
        return ImageSource(download, embeds, size, self.recipe.seed, size > 0, share, enlarged)

    def clips(self) -> BatchSource:
        """Clips at SR_l's resolution, which CLIP sees. The base size is averaged from it."""
        if self.source is not None:
            return self.source
        from mav.data.loading.loaders import ClipSource

        section, cascade, o = self.section, self.recipe.cascade, self.section.optimisation
        shards, frames = self.inputs["video-shards"], section.frames or cascade.frames
        sizes = (frames, cascade.low_size, self.recipe.seed)
        return ClipSource(shards, *sizes, section.fps, o.samples, o.corrupted_share, self.inputs["video-select"])
