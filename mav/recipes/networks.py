"""TODO-DOC mav/recipes/networks.py"""

from mav.recipes.sections import section

# ------------------------------------------------------------------------------------------------------------ networks


@section
class Level:
    """One resolution of a U-Net."""

    channels: int
    blocks: int = 2
    attention: bool = False


@section
class UNetConfig:
    """A pixel U-Net; with `time` it is the space-time network, without it the image network."""

    levels: tuple[Level, ...]
    in_channels: int = 3  # noisy RGB; SR adds 3 (low-resolution input), F^ adds 4 (masked RGB + mask)
    out_channels: int = 3  # 6 with learned sigma
    embedding_dim: int = 0  # CLIP image embedding condition; 0 = none
    context_tokens: int = 4  # tokens the embedding becomes for attention
    head_channels: int = 64
    low_resolution: bool = False  # an SR network: conditions on the upsampled input and on its noise level
    masked_frames: bool = False  # F^: conditions on given frames
    max_frames: int = 0  # 0 = image network; else the longest clip its frame embedding covers
    dropout: float = 0.0
    checkpoint_levels: int = 0  # activation checkpointing on this many of the highest resolutions


@section
class PriorConfig:
    """The prior P: a causal transformer from text to CLIP image embedding (unCLIP section 2.2)."""

    embedding_dim: int
    vocabulary: int = 49_408  # CLIP's BPE
    text_context: int = 77
    width: int = 2048
    depth: int = 24
    heads: int = 32
    dropout: float = 0.0


@section
class ClipConfig:
    """A CLIP built by open_clip from these sizes, trained in the `clip` stage (demo), or described by name (pretrained).

    Its image tower is CLIP's ResNet: on a few hundred steps it learns shapes that a transformer of the same cost does not.
    """

    embedding_dim: int = 64
    image_size: int = 32  # a multiple of 32
    vision_width: int = 8  # channels of the stem; the last level has 32 times as many
    vision_blocks: int = 1  # bottleneck blocks in each of the four levels
    text_width: int = 64
    text_heads: int = 4
    text_layers: int = 2
    text_context: int = 16
