"""The configurations of the networks: U-Net, prior and CLIP."""

import importlib.util
import json
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import MinLen

from mav.recipes.sections import Decay, Positive, Small, SmallOrNone, section


@section
class Level:
    """One resolution of a U-Net."""

    channels: Small
    blocks: Small = 2
    attention: bool = False


@section
class UNetConfig:
    """A pixel U-Net: the image network, or with `max_frames` the space-time network."""

    levels: Annotated[tuple[Level, ...], MinLen(1)]
    in_channels: Literal[3] = 3  # noisy RGB; SR adds 3 (low-resolution input), F^ adds 4 (masked RGB + mask)
    out_channels: Literal[3, 6] = 3  # 6 with learned sigma
    embedding_dim: SmallOrNone = 0  # of the CLIP image embedding that conditions it; 0 = no such condition
    context_tokens: Small = 4  # number of tokens that the embedding becomes for attention
    head_channels: Small = 64
    low_resolution: bool = False  # an SR network, conditioned on the upsampled input and on its noise level
    masked_frames: bool = False  # F^, conditioned on the given frames
    max_frames: SmallOrNone = 0  # longest clip that the frame embedding covers; 0 = image network
    dropout: Decay = 0.0
    checkpoint_levels: SmallOrNone = 0  # activation checkpointing on this many of the highest resolutions


@section
class PriorConfig:
    """The prior P, a causal transformer from text to CLIP image embedding (unCLIP section 2.2)."""

    embedding_dim: Small
    vocabulary: Positive = 49_408  # of CLIP's BPE
    text_context: Small = 77
    width: Small = 2048
    depth: Small = 24
    heads: Small = 32
    dropout: Decay = 0.0


@section
class ClipConfig:
    """The sizes of a small CLIP that open_clip builds and the `clip` stage trains; a pretrained one is given by name.

    The image tower is CLIP's ResNet, which learns shapes in a few hundred steps; a transformer of equal cost does not.
    """

    embedding_dim: Small = 64
    image_size: Small = 32  # a multiple of 32
    vision_width: Small = 8  # channels of the stem; the last level has 32 times this number
    vision_blocks: Small = 1  # bottleneck blocks in each of the four levels
    text_width: Small = 64
    text_heads: Small = 4
    text_layers: Small = 2
    text_context: Small = 16


def clip_sizes(architecture: str, network: ClipConfig) -> dict[str, int] | None:
    """Returns embedding_dim, text_context and vocabulary of a CLIP; None for an architecture that open_clip lacks.

    architecture: its name in open_clip; '' for the small CLIP of these sizes.
    """
    if not architecture:
        return {"embedding_dim": network.embedding_dim, "text_context": network.text_context, "vocabulary": 49_408}
    file = open_clip_architectures().get(architecture)
    if file is None:
        return None
    known = json.loads(file.read_text())
    text = known["text_cfg"]
    return {
        "embedding_dim": known["embed_dim"],
        "text_context": text.get("context_length", 77),
        "vocabulary": text.get("vocab_size", 49_408),
    }


def open_clip_architectures() -> dict[str, Path]:
    """Returns the files that describe open_clip's models, by name. The library itself takes seconds to import."""
    found = importlib.util.find_spec("open_clip")
    folders = found.submodule_search_locations or [] if found else []
    return {file.stem: file for folder in folders for file in Path(folder, "model_configs").glob("*.json")}
