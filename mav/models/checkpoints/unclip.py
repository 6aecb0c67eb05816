"""Open unCLIP weights (Karlo's, as published or as diffusers stores them) as a start for P and D.

Parameters of the same meaning and shape are copied. The others keep their new start, and `Carried` lists them. Three
things change their form exactly: the heads of attention are stored in another order; our second norm has no scale and
shift, so those of the file are folded into the modulation that follows; the file's noise step has a quarter of our
frequencies, every fourth of ours. Some things cannot be copied: Karlo's networks read CLIP's text sequence, ours read
BPE tokens or no text; our attention normalises queries and keys; its changes of resolution are blocks that we do not
have. So the result is a start for training, not the model itself.

The sizes that fit Karlo's: for `train_decoder.network` levels of 320, 640, 960 and 1280 channels with 3 blocks each,
attention in all but the first, embedding_dim 768; for `train_prior.network` width 2048, depth 20, heads 32,
embedding_dim 768, text_context 77.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from mav.errors import UserError
from mav.models.prior import Prior
from mav.models.unet import UNet

State = Mapping[str, Tensor]
Offered = dict[str, tuple[Tensor, tuple[str, ...]]]  # our name -> the value, and the file's names it was made from


@dataclass(frozen=True)
class Carried:
    """What became of the parameters of the network and of the file, by name."""

    carried: tuple[str, ...]  # the network's that were read from the file
    fresh: tuple[str, ...]  # the network's that kept their own start
    unused: tuple[str, ...]  # the file's that have no place in the network


@torch.no_grad()
def start_from(network: UNet | Prior, state: State, key: str) -> Carried:
    """Loads into the network what fits of an unCLIP checkpoint. `key` is the recipe's, for messages.

    Raises UserError when nothing fits, or when the file's blocks cannot be told apart.
    """
    plain = {name.removeprefix("model."): value.float() for name, value in state.items()}
    if isinstance(network, Prior):
        theirs = _prior_names(plain, network.config.heads)
        offered = _prior(theirs)
    else:
        theirs = _unet_names(plain, len(network.config.levels), network.config.head_channels, key)
        offered = _unet(theirs, network)
    own = dict(network.named_parameters())
    fits = {name: value for name, (value, _) in offered.items() if name in own and own[name].shape == value.shape}
    if not fits:
        kind = "prior" if isinstance(network, Prior) else "decoder"
        raise UserError(
            f"`{key}` holds nothing that fits this network: it is not an unCLIP {kind}, or its sizes are others "
            "(see mav/models/checkpoints/unclip.py for the sizes that fit Karlo's)."
        )
    for name, value in fits.items():
        own[name].copy_(value)
    used = {source for name in fits for source in offered[name][1]}
    return Carried(tuple(sorted(fits)), tuple(sorted(set(own) - set(fits))), tuple(sorted(set(theirs) - used)))


# ---------------------------------------------------------------------------------------------------------------- prior

PRIOR = {  # Karlo's name -> diffusers'
    r"^time_embed\.0\.": "time_embedding.linear_1.", r"^time_embed\.2\.": "time_embedding.linear_2.",
    r"^clip_img_proj\.": "proj_in.", r"^text_emb_proj\.": "embedding_proj.",
    r"^text_enc_proj\.": "encoder_hidden_states_proj.", r"^prd_emb$": "prd_embedding",
    r"^final_ln\.": "norm_out.", r"^out_proj\.": "proj_to_clip_embeddings.",
    r"^transformer\.resblocks\.": "transformer_blocks.", r"\.ln_1\.": ".norm1.",
    r"\.ln_2\.": ".norm3.", r"\.mlp\.c_fc\.": ".ff.net.0.proj.",
    r"\.mlp\.c_proj\.": ".ff.net.2.", r"\.attn\.c_proj\.": ".attn1.to_out.0.",
}  # fmt: skip
OUR_PRIOR = {  # diffusers' name -> ours
    r"time_embedding\.linear_1\.": "step.0.", r"time_embedding\.linear_2\.": "step.2.",
    r"proj_in\.": "noised.", r"embedding_proj\.": "text.",
    r"norm_out\.": "norm.", r"proj_to_clip_embeddings\.": "output.",
    r"transformer_blocks\.": "blocks.", r"\.norm3\.": ".norm2.",
    r"\.ff\.net\.0\.proj\.": ".widen.", r"\.ff\.net\.2\.": ".narrow.",
    r"\.attn1\.to_out\.0\.": ".attention.output.", r"^positional_embedding$": "position",
    r"^prd_embedding$": "query",
}  # fmt: skip


def _prior_names(state: State, heads: int) -> dict[str, Tensor]:
    """The prior's state under diffusers' names."""
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.c_qkv\.(weight|bias)", name):
            for part, piece in zip("qkv", _by_head(value, heads, 3), strict=True):
                named[f"transformer_blocks.{match[1]}.attn1.to_{part}.{match[2]}"] = piece
        else:
            named[_renamed(name, PRIOR)] = value
    return named


def _prior(theirs: dict[str, Tensor]) -> Offered:
    """The values for our prior, from the state under diffusers' names."""
    offered: Offered = {}
    for name, value in theirs.items():
        if match := re.fullmatch(r"transformer_blocks\.(\d+)\.attn1\.to_q\.(weight|bias)", name):
            parts = tuple(name.replace("to_q", f"to_{part}") for part in "qkv")
            joined = torch.cat([theirs[part] for part in parts])
            offered[f"blocks.{match[1]}.attention.qkv.{match[2]}"] = (joined, parts)
        else:
            whole = name in ("positional_embedding", "prd_embedding")  # stored with leading dimensions of 1
            offered[_renamed(name, OUR_PRIOR)] = (value.squeeze(0).squeeze(0) if whole else value, (name,))
    return offered


# -------------------------------------------------------------------------------------------------------------- decoder

TOP = {  # Karlo's name -> diffusers', for its text projection model those of that model
    r"^time_embed\.0\.": "time_embedding.linear_1.", r"^time_embed\.2\.": "time_embedding.linear_2.",
    r"^input_blocks\.0\.0\.": "conv_in.", r"^out\.0\.": "conv_norm_out.",
    r"^out\.2\.": "conv_out.", r"^clip_emb\.": "clip_image_embeddings_project_to_time_embeddings.",
    r"^clip_tok_proj\.": "clip_extra_context_tokens_proj.",
    r"^cf_param$": "learned_classifier_free_guidance_embeddings", r"in_layers\.0\.": "norm1.",
    r"in_layers\.2\.": "conv1.", r"emb_layers\.1\.": "time_emb_proj.",
    r"out_layers\.0\.": "norm2.", r"out_layers\.3\.": "conv2.",
    r"skip_connection\.": "conv_shortcut.", r"(attentions\.\d+)\.norm\.": r"\1.group_norm.",
    r"proj_out\.": "to_out.0.",
}  # fmt: skip
SPLIT = {"qkv": ("to_q", "to_k", "to_v"), "encoder_kv": ("add_k_proj", "add_v_proj")}
OUR_UNET = {  # ours -> diffusers', outside the blocks
    "input.spatial": "conv_in",
    "output_norm": "conv_norm_out",
    "output.spatial": "conv_out",
    "clip.to_time": "clip_image_embeddings_project_to_time_embeddings",
    "clip.to_tokens": "clip_extra_context_tokens_proj",
    "time.outer": "time_embedding.linear_2",
}
OUR_BLOCK = {  # ours -> diffusers', in a block; {0} is its ResNet, {1} its attention
    "res.norm1": "{0}.norm1", "res.conv1.spatial": "{0}.conv1",
    "res.conv2.spatial": "{0}.conv2", "res.skip": "{0}.conv_shortcut",
    "attention.norm": "{1}.group_norm", "attention.spatial.output": "{1}.to_out.0",
}  # fmt: skip


def _unet_names(state: State, levels: int, head_channels: int, key: str) -> dict[str, Tensor]:
    """The decoder's state under diffusers' names. Raises UserError when its blocks are not so many levels."""
    blocks = {int(match[1]) for name in state if (match := re.match(r"output_blocks\.(\d+)\.", name))}
    if not blocks:
        return dict(state)
    if len(blocks) % levels:
        raise UserError(
            f"`{key}` has {len(blocks)} output blocks, which are not {levels} levels: "
            "give the network as many levels as it has."
        )
    per_level = len(blocks) // levels  # one more than the blocks of a level
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        block = r"^(input|output|middle)_block(?:s\.(\d+))?\.(\d+)\."
        name = re.sub(block, lambda match: _place(match, per_level), name)
        if (match := re.fullmatch(r"(.*)\.(qkv|encoder_kv)\.(weight|bias)", name)) is not None:
            parts, value = SPLIT[match[2]], value.flatten(1) if match[3] == "weight" else value
            heads = len(value) // (len(parts) * head_channels)
            for part, piece in zip(parts, _by_head(value, heads, len(parts)), strict=True):
                named[f"{match[1]}.{part}.{match[3]}"] = piece
        else:
            name = _renamed(name, TOP)
            named[name] = value.flatten(1) if name.endswith("to_out.0.weight") else value
    return named


def _place(match: re.Match[str], per_level: int) -> str:
    """Renames input_blocks.N.M, output_blocks.N.M or middle_block.M to the name that diffusers has for the block."""
    side, m = match[1], int(match[3])
    if side == "middle":
        return ("mid_block.resnets.0.", "mid_block.attentions.0.", "mid_block.resnets.1.")[m]
    n = int(match[2])
    if side == "output":  # the change of resolution comes after the others
        level, block = divmod(n, per_level)
        return f"up_blocks.{level}." + (f"resnets.{block}.", f"attentions.{block}.", "upsamplers.0.")[m]
    if n == 0:
        return match[0]
    level, block = divmod(n - 1, per_level)
    last = block == per_level - 1
    return f"down_blocks.{level}." + ("downsamplers.0." if last else f"{('resnets', 'attentions')[m]}.{block}.")


def _unet(theirs: dict[str, Tensor], network: UNet) -> Offered:
    """The values for our U-Net, from the state under diffusers' names."""
    offered: Offered = {}

    def offer(ours: str, *names: str, made: Callable[..., Tensor] = lambda value: value) -> None:
        """Offers what `made` makes of the file's tensors, if the file has them all."""
        if all(name in theirs for name in names):
            offered[ours] = (made(*(theirs[name] for name in names)), names)

    def joined(*parts: Tensor) -> Tensor:
        return torch.cat(parts)

    # Outside the blocks.
    for kind in ("weight", "bias"):
        for ours, their in OUR_UNET.items():
            offer(f"{ours}.{kind}", f"{their}.{kind}")
    offer("clip.null", "learned_classifier_free_guidance_embeddings")
    offer("time.inner.bias", "time_embedding.linear_1.bias")
    features = network.time.inner.in_features
    offer("time.inner.weight", "time_embedding.linear_1.weight", made=lambda few: _more_frequencies(few, features))

    # The blocks: the middle, then those of each level.
    places = [("middle", "mid_block", 0)]
    for side, their, levels in (("encoder", "down_blocks", network.encoder), ("decoder", "up_blocks", network.decoder)):
        for level, blocks in enumerate(levels):
            count = len(list(blocks.children()))
            places += [(f"{side}.{level}.{block}", f"{their}.{level}", block) for block in range(count)]
    for place, their, block in places:
        res, attention = f"{their}.resnets.{block}", f"{their}.attentions.{block}"
        for kind in ("weight", "bias"):
            for ours, name in OUR_BLOCK.items():
                offer(f"{place}.{ours}.{kind}", f"{name.format(res, attention)}.{kind}")
            for ours, parts in (("qkv", SPLIT["qkv"]), ("context", SPLIT["encoder_kv"])):
                names = [f"{attention}.{part}.{kind}" for part in parts]
                offer(f"{place}.attention.spatial.{ours}.{kind}", *names, made=joined)
        names = [f"{res}.{layer}.{kind}" for layer in ("time_emb_proj", "norm2") for kind in ("weight", "bias")]
        offer(f"{place}.res.modulation.weight", *names, made=lambda *layers: _folded(*layers)[0])
        offer(f"{place}.res.modulation.bias", *names, made=lambda *layers: _folded(*layers)[1])
    return offered


def _folded(weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """(n g + b)(1 + s) + t, for s and t linear in the condition, as n (1 + s') + t' with s' and t' linear in it."""
    (ws, wt), (bs, bt) = weight.chunk(2), bias.chunk(2)
    folded_weight = torch.cat([scale[:, None] * ws, wt + shift[:, None] * ws])
    return folded_weight, torch.cat([scale * (1 + bs) - 1, bt + shift * (1 + bs)])


def _more_frequencies(weight: Tensor, features: int) -> Tensor:
    """Turns a layer over few sinusoids into one over k times as many, of which every k-th is one of the few.

    The others get zero weights. A weight that does not divide stays as it is, and then does not fit.
    """
    few = weight.shape[1] // 2
    step = features // (2 * few)
    if features != 2 * few * step:
        return weight
    wide = weight.new_zeros(len(weight), 2, features // 2)
    wide[:, :, ::step] = weight.unflatten(1, (2, few))
    return wide.flatten(1)


# ----------------------------------------------------------------------------------------------------------------- both


def _by_head(value: Tensor, heads: int, parts: int) -> list[Tensor]:
    """Splits rows stored head by head, each with its `parts` (query, key, value), into one tensor for each part."""
    return list(rearrange(value, "(heads parts c) ... -> parts (heads c) ...", heads=heads, parts=parts))


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for pattern, new in table.items():
        name = re.sub(pattern, new, name)
    return name
