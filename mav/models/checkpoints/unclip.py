"""Open unCLIP weights as a start for P and D: a table of names from Karlo's checkpoints, as published or as diffusers stores them.

What has the same meaning and the same shape is carried over; the rest keeps its fresh start, and `Carried` says which it is. Three
things are carried through a change of form, each exactly: heads of attention are stored in another order; our second norm has no scale and
shift of its own, so theirs are folded into the modulation that follows; their noise step enters with a quarter of our frequencies, every
fourth of ours. What cannot be carried: Karlo's prior and decoder read CLIP's text sequence, ours BPE tokens or none; our attention
normalises queries and keys, which theirs does not; resolutions change in blocks of theirs that we have no place for. So the result is
a start for training, not the model itself.

A network whose shapes fit: `train_decoder.network` with levels of 320, 640, 960, 1280 channels, 3 blocks each, attention in all but the
first, embedding_dim 768; `train_prior.network` with width 2048, depth 20, heads 32, embedding_dim 768, text_context 77.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mav.errors import UserError
from mav.models.prior import Prior
from mav.models.unet import UNet

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Carried:
    """What became of the two sides' parameters, by name."""

    carried: tuple[str, ...]  # ours that now hold theirs
    fresh: tuple[str, ...]  # ours that kept their own start
    unused: tuple[str, ...]  # theirs that have no place here

    def __str__(self) -> str:
        fresh, unused = (f"{len(names)} ({_some(names)})" for names in (self.fresh, self.unused))
        return f"{len(self.carried)} parameters carried over; starting fresh: {fresh}; of the file not used: {unused}"


@torch.no_grad()
def start_from(network: UNet | Prior, state: State, key: str) -> Carried:
    """Loads into the network what fits of an unCLIP checkpoint, Karlo's own or diffusers'. `key`: the recipe's, for messages.

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
        raise UserError(
            f"`{key}` holds nothing that fits this network: it is not an unCLIP {'prior' if isinstance(network, Prior) else 'decoder'}, "
            "or its sizes are others (see mav/models/unclip.py for the sizes that fit Karlo's)."
        )
    for name, value in fits.items():
        own[name].copy_(value)
    used = {source for name in fits for source in offered[name][1]}
    return Carried(tuple(sorted(fits)), tuple(sorted(set(own) - set(fits))), tuple(sorted(set(theirs) - used)))


Offered = dict[str, tuple[Tensor, tuple[str, ...]]]  # our name -> the value, and the names it was made of

# ------------------------------------------------------------------------------------------------------------------ prior

PRIOR = {  # Karlo's name -> diffusers'
    r"^time_embed\.0\.": "time_embedding.linear_1.",
    r"^time_embed\.2\.": "time_embedding.linear_2.",
    r"^clip_img_proj\.": "proj_in.",
    r"^text_emb_proj\.": "embedding_proj.",
    r"^text_enc_proj\.": "encoder_hidden_states_proj.",
    r"^prd_emb$": "prd_embedding",
    r"^final_ln\.": "norm_out.",
    r"^out_proj\.": "proj_to_clip_embeddings.",
    r"^transformer\.resblocks\.": "transformer_blocks.",
    r"\.ln_1\.": ".norm1.",
    r"\.ln_2\.": ".norm3.",
    r"\.mlp\.c_fc\.": ".ff.net.0.proj.",
    r"\.mlp\.c_proj\.": ".ff.net.2.",
    r"\.attn\.c_proj\.": ".attn1.to_out.0.",
}
OUR_PRIOR = {  # diffusers' name -> ours
    "time_embedding.linear_1.": "step.0.",
    "time_embedding.linear_2.": "step.2.",
    "proj_in.": "noised.",
    "embedding_proj.": "text.",
    "norm_out.": "norm.",
    "proj_to_clip_embeddings.": "output.",
    "transformer_blocks.": "blocks.",
    ".norm3.": ".norm2.",
    ".ff.net.0.proj.": ".widen.",
    ".ff.net.2.": ".narrow.",
    ".attn1.to_out.0.": ".attention.output.",
}


def _prior_names(state: State, heads: int) -> dict[str, Tensor]:
    """Karlo's prior under diffusers' names; diffusers' own as it is."""
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.c_qkv\.(weight|bias)", name):
            for part, piece in zip("qkv", _by_head(value, heads, 3), strict=True):
                named[f"transformer_blocks.{match[1]}.attn1.to_{part}.{match[2]}"] = piece
        else:
            named[_renamed(name, PRIOR)] = value
    return named


def _prior(theirs: dict[str, Tensor]) -> Offered:
    offered: Offered = {}
    for name, value in theirs.items():
        if name in ("positional_embedding", "prd_embedding"):
            offered["position" if name == "positional_embedding" else "query"] = (value.squeeze(0).squeeze(0), (name,))
        elif match := re.fullmatch(r"transformer_blocks\.(\d+)\.attn1\.to_q\.(weight|bias)", name):
            parts = tuple(name.replace("to_q", f"to_{part}") for part in "qkv")
            offered[f"blocks.{match[1]}.attention.qkv.{match[2]}"] = (
                torch.cat([theirs[part] for part in parts]),
                parts,
            )
        else:
            ours = name
            for old, new in OUR_PRIOR.items():
                ours = ours.replace(old, new)
            offered[ours] = (value, (name,))
    return offered


# ---------------------------------------------------------------------------------------------------------------- decoder

TOP = {  # Karlo's name -> diffusers'; what diffusers keeps in its text projection model goes by that model's names
    r"^time_embed\.0\.": "time_embedding.linear_1.",
    r"^time_embed\.2\.": "time_embedding.linear_2.",
    r"^input_blocks\.0\.0\.": "conv_in.",
    r"^out\.0\.": "conv_norm_out.",
    r"^out\.2\.": "conv_out.",
    r"^clip_emb\.": "clip_image_embeddings_project_to_time_embeddings.",
    r"^clip_tok_proj\.": "clip_extra_context_tokens_proj.",
    r"^cf_param$": "learned_classifier_free_guidance_embeddings",
    r"in_layers\.0\.": "norm1.",
    r"in_layers\.2\.": "conv1.",
    r"emb_layers\.1\.": "time_emb_proj.",
    r"out_layers\.0\.": "norm2.",
    r"out_layers\.3\.": "conv2.",
    r"skip_connection\.": "conv_shortcut.",
    r"(attentions\.\d+)\.norm\.": r"\1.group_norm.",
    r"proj_out\.": "to_out.0.",
}
SPLIT = {"qkv": ("to_q", "to_k", "to_v"), "encoder_kv": ("add_k_proj", "add_v_proj")}


def _unet_names(state: State, levels: int, head_channels: int, key: str) -> dict[str, Tensor]:
    """Karlo's decoder under diffusers' names; diffusers' own as it is."""
    blocks = {int(match[1]) for name in state if (match := re.match(r"output_blocks\.(\d+)\.", name))}
    if not blocks:
        return dict(state)
    if len(blocks) % levels:
        raise UserError(
            f"`{key}` has {len(blocks)} output blocks, which are not {levels} levels: give the network as many levels as it has."
        )
    per_level = len(blocks) // levels  # of them one more than the level's resolution has
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        name = re.sub(
            r"^(input|output|middle)_block(?:s\.(\d+))?\.(\d+)\.", lambda match: _place(match, per_level), name
        )
        if (match := re.fullmatch(r"(.*)\.(qkv|encoder_kv)\.(weight|bias)", name)) is not None:
            parts = SPLIT[match[2]]
            value = value.flatten(1) if match[3] == "weight" else value
            for part, piece in zip(
                parts, _by_head(value, len(value) // (len(parts) * head_channels), len(parts)), strict=True
            ):
                named[f"{match[1]}.{part}.{match[3]}"] = piece
        else:
            name = _renamed(name, TOP)
            named[name] = value.flatten(1) if name.endswith("to_out.0.weight") else value
    return named


def _place(match: re.Match[str], per_level: int) -> str:
    """input_blocks.N.M, output_blocks.N.M or middle_block.M as a block of a level."""
    side, m = match[1], int(match[3])
    if side == "middle":
        return ("mid_block.resnets.0.", "mid_block.attentions.0.", "mid_block.resnets.1.")[m]
    n = int(match[2])
    if side == "output":  # the change of resolution comes after the others
        level, block = divmod(n, per_level)
        return f"up_blocks.{level}." + (f"resnets.{block}.", f"attentions.{block}.", "upsamplers.0.")[m]
    level, block = divmod(n - 1, per_level)
    if n == 0:
        return match[0]
    return (
        f"down_blocks.{level}.{('resnets', 'attentions')[m]}.{block}."
        if block < per_level - 1
        else f"down_blocks.{level}.downsamplers.0."
    )


def _unet(theirs: dict[str, Tensor], network: UNet) -> Offered:
    offered: Offered = {}

    def offer(ours: str, *names: str, made: Tensor | None = None) -> None:
        if all(name in theirs for name in names):
            offered[ours] = (theirs[names[0]] if made is None else made, names)

    for kind in ("weight", "bias"):
        offer(f"input.spatial.{kind}", f"conv_in.{kind}")
        offer(f"output_norm.{kind}", f"conv_norm_out.{kind}")
        offer(f"output.spatial.{kind}", f"conv_out.{kind}")
        offer(f"clip.to_time.{kind}", f"clip_image_embeddings_project_to_time_embeddings.{kind}")
        offer(f"clip.to_tokens.{kind}", f"clip_extra_context_tokens_proj.{kind}")
        offer(f"time.outer.{kind}", f"time_embedding.linear_2.{kind}")
    offer("clip.null", "learned_classifier_free_guidance_embeddings")
    offer("time.inner.bias", "time_embedding.linear_1.bias")
    if (inner := theirs.get("time_embedding.linear_1.weight")) is not None:
        offer(
            "time.inner.weight",
            "time_embedding.linear_1.weight",
            made=_more_frequencies(inner, network.time.inner.in_features),
        )
    places = [("middle", "mid_block", 0)] + [
        (f"{ours}.{level}.{block}", f"{their}.{level}", block)
        for ours, their, stack in (
            ("encoder", "down_blocks", network.encoder),
            ("decoder", "up_blocks", network.decoder),
        )
        for level, stages in enumerate(stack)
        for block in range(len(list(stages.children())))
    ]
    for ours, their, block in places:
        res, attention = f"{their}.resnets.{block}", f"{their}.attentions.{block}"
        for kind in ("weight", "bias"):
            offer(f"{ours}.res.norm1.{kind}", f"{res}.norm1.{kind}")
            offer(f"{ours}.res.conv1.spatial.{kind}", f"{res}.conv1.{kind}")
            offer(f"{ours}.res.conv2.spatial.{kind}", f"{res}.conv2.{kind}")
            offer(f"{ours}.res.skip.{kind}", f"{res}.conv_shortcut.{kind}")
            offer(f"{ours}.attention.norm.{kind}", f"{attention}.group_norm.{kind}")
            offer(f"{ours}.attention.spatial.output.{kind}", f"{attention}.to_out.0.{kind}")
            for name, parts in (("qkv", SPLIT["qkv"]), ("context", SPLIT["encoder_kv"])):
                names = tuple(f"{attention}.{part}.{kind}" for part in parts)
                if all(part in theirs for part in names):
                    offer(
                        f"{ours}.attention.spatial.{name}.{kind}",
                        *names,
                        made=torch.cat([theirs[part] for part in names]),
                    )
        names = (f"{res}.time_emb_proj.weight", f"{res}.time_emb_proj.bias", f"{res}.norm2.weight", f"{res}.norm2.bias")
        if all(name in theirs for name in names):
            weight, bias = _folded(*(theirs[name] for name in names))
            offer(f"{ours}.res.modulation.weight", *names, made=weight)
            offer(f"{ours}.res.modulation.bias", *names, made=bias)
    return offered


def _folded(weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """(n g + b)(1 + s) + t, for s and t linear in the condition, as n (1 + s') + t' with s' and t' linear in it."""
    (ws, wt), (bs, bt) = weight.chunk(2), bias.chunk(2)
    return torch.cat([scale[:, None] * ws, wt + shift[:, None] * ws]), torch.cat(
        [scale * (1 + bs) - 1, bt + shift * (1 + bs)]
    )


def _more_frequencies(weight: Tensor, features: int) -> Tensor:
    """A layer over few sinusoids as one over more: with k times as many, every k-th frequency is one of the few; the others get zero."""
    few = weight.shape[1] // 2
    step = features // (2 * few)
    if features != 2 * few * step:
        return weight  # of no shape that fits
    wide = weight.new_zeros(len(weight), 2, features // 2)
    wide[:, :, ::step] = weight.unflatten(1, (2, few))
    return wide.flatten(1)


# ------------------------------------------------------------------------------------------------------------------- both


def _by_head(value: Tensor, heads: int, parts: int) -> list[Tensor]:
    """Rows stored head by head, each with its `parts` (query, key, value), as one tensor a part."""
    rows = value.unflatten(0, (heads, parts, -1))
    return [rows[:, part].flatten(0, 1) for part in range(parts)]


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for pattern, new in table.items():
        name = re.sub(pattern, new, name)
    return name


def _some(names: tuple[str, ...], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "") if names else "none"
