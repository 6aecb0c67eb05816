"""What a stage's training is built from: its section of the recipe, its parent network and its samples."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from mav.models.clip import ClipModel
from mav.models.prior import Prior
from mav.models.unet import UNet
from mav.recipes import CascadeSizes, Recipe
from mav.storage import Folder
from mav.training.export import load_network
from mav.training.loop import BatchSource

Network = TypeVar("Network", UNet, Prior)


@dataclass(frozen=True)
class StageSetup:
    """What a training is built from.

    source: samples from elsewhere than the inputs, for tests and experiments. hollow: whether networks are built
    without values, because another rank sends this one its share of them.
    """

    stage: str
    recipe: Recipe
    inputs: dict[str, Folder]
    device: str = "cpu"
    source: BatchSource | None = None
    hollow: bool = False

    @property
    def section(self) -> Any:
        """The stage's section of the recipe."""
        return self.recipe.section_of(self.stage)

    @property
    def cascade(self) -> CascadeSizes:
        """The sizes of pictures and clips."""
        return self.recipe.cascade

    @property
    def key(self) -> str:
        """The name of that section, for messages."""
        return self.stage.replace("-", "_")

    def network(self, make: Callable[[], Network]) -> Network:
        """Makes the network that the stage trains."""
        with torch.device("meta") if self.hollow else nullcontext():
            return make()

    def unet(self) -> UNet:
        """A new U-Net, as the section describes it."""
        return self.network(lambda: UNet(self.section.network))

    def parent(self, stage: str) -> UNet:
        """The network that a video stage starts from, ready to be trained."""
        network = load_network(self.inputs[stage], "meta" if self.hollow else "cpu").network
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
        chosen = self.inputs["image-select"]
        return ImageSource(download, embeds, size, self.recipe.seed, size > 0, share, enlarged, chosen)

    def clips(self) -> BatchSource:
        """Clips at SR_l's resolution, which CLIP sees. The base size is averaged from it."""
        if self.source is not None:
            return self.source
        from mav.data.loading.loaders import ClipSource

        section, cascade, o = self.section, self.cascade, self.section.optimisation
        shards, frames = self.inputs["video-shards"], section.frames or cascade.frames
        sizes = (frames, cascade.low_size, self.recipe.seed)
        return ClipSource(shards, *sizes, section.fps, o.samples, o.corrupted_share, self.inputs["video-select"])
