"""Open unCLIP weights as a start, on synthetic state dicts of Karlo's and diffusers' names: copies are exact."""

import pytest
import torch
import torch.nn.functional as F

from mav.errors import UserError
from mav.models.checkpoints.unclip import start_from
from mav.models.prior import Prior
from mav.models.pseudo3d import sinusoid
from mav.models.unet import UNet
from mav.recipes import Level, PriorConfig, UNetConfig

CHANNELS, BLOCKS, HEAD, DIM, CONTEXT = (32, 64), 2, 16, 24, 40
TIME = 4 * CHANNELS[0]


def layer(state, name, outputs, inputs, *kernel):
    state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(outputs, inputs, *kernel), torch.randn(outputs)


def norm(state, name, channels):
    state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(channels), torch.randn(channels)


def res(state, name, inputs, outputs):
    norm(state, f"{name}.in_layers.0", inputs)
    layer(state, f"{name}.in_layers.2", outputs, inputs, 3, 3)
    layer(state, f"{name}.emb_layers.1", 2 * outputs, TIME)
    norm(state, f"{name}.out_layers.0", outputs)
    layer(state, f"{name}.out_layers.3", outputs, outputs, 3, 3)
    if inputs != outputs:
        layer(state, f"{name}.skip_connection", outputs, inputs, 1, 1)


def attention(state, name, channels):
    norm(state, f"{name}.norm", channels)
    layer(state, f"{name}.qkv", 3 * channels, channels, 1)
    layer(state, f"{name}.encoder_kv", 2 * channels, CONTEXT, 1)
    layer(state, f"{name}.proj_out", channels, channels, 1)


def karlo_decoder():
    """Names and relative sizes of Karlo's decoder, with two levels of two blocks instead of four of three."""
    torch.manual_seed(0)
    state = {"model.cf_param": torch.randn(DIM)}
    layer(state, "model.time_embed.0", TIME, CHANNELS[0])
    layer(state, "model.time_embed.2", TIME, TIME)
    layer(state, "model.clip_emb", TIME, DIM)
    layer(state, "model.clip_tok_proj", 4 * CONTEXT, DIM)
    layer(state, "model.text_seq_proj.0", CONTEXT, DIM)
    norm(state, "model.text_seq_proj.1", CONTEXT)
    layer(state, "model.text_feat_proj", TIME, DIM)
    layer(state, "model.input_blocks.0.0", CHANNELS[0], 3, 3, 3)
    skips, n, channels = [CHANNELS[0]], 1, CHANNELS[0]
    for level, width in enumerate(CHANNELS):
        for _ in range(BLOCKS):
            res(state, f"model.input_blocks.{n}.0", channels, width)
            if level:
                attention(state, f"model.input_blocks.{n}.1", width)
            channels, n = width, n + 1
            skips.append(channels)
        if level < len(CHANNELS) - 1:
            res(state, f"model.input_blocks.{n}.0", channels, channels)
            n += 1
            skips.append(channels)
    res(state, "model.middle_block.0", channels, channels)
    attention(state, "model.middle_block.1", channels)
    res(state, "model.middle_block.2", channels, channels)
    n = 0
    for level in reversed(range(len(CHANNELS))):
        for block in range(BLOCKS + 1):
            res(state, f"model.output_blocks.{n}.0", channels + skips.pop(), CHANNELS[level])
            channels = CHANNELS[level]
            if level:
                attention(state, f"model.output_blocks.{n}.1", channels)
            if level and block == BLOCKS:
                res(state, f"model.output_blocks.{n}.2", channels, channels)
            n += 1
    norm(state, "model.out.0", channels)
    layer(state, "model.out.2", 6, channels, 3, 3)
    return state


def karlo_prior(width=32, depth=2, context=5):
    torch.manual_seed(0)
    state = {
        "model.positional_embedding": torch.randn(1, context + 4, width),
        "model.prd_emb": torch.randn(1, 1, width),
    }
    layer(state, "model.time_embed.0", width, width)
    layer(state, "model.time_embed.2", width, width)
    for name in ("clip_img_proj", "text_emb_proj", "text_enc_proj"):
        layer(state, f"model.{name}", width, DIM)
    for n in range(depth):
        block = f"model.transformer.resblocks.{n}"
        norm(state, f"{block}.ln_1", width)
        norm(state, f"{block}.ln_2", width)
        layer(state, f"{block}.attn.c_qkv", 3 * width, width)
        layer(state, f"{block}.attn.c_proj", width, width)
        layer(state, f"{block}.mlp.c_fc", 4 * width, width)
        layer(state, f"{block}.mlp.c_proj", width, 4 * width)
    norm(state, "model.final_ln", width)
    layer(state, "model.out_proj", DIM, width)
    return state


def our_decoder():
    levels = (Level(channels=CHANNELS[0], blocks=BLOCKS), Level(channels=CHANNELS[1], blocks=BLOCKS, attention=True))
    torch.manual_seed(1)
    return UNet(UNetConfig(levels=levels, embedding_dim=DIM, head_channels=HEAD, out_channels=6))


def test_decoder_from_karlo():
    network, state = our_decoder(), karlo_decoder()
    report = start_from(network, state, "train_decoder.start")
    assert set(report.carried) | set(report.fresh) == {name for name, _ in network.named_parameters()}
    elsewhere = (
        "down.",
        "up.",
        "clip.to_tokens",
        "decoder.1.0.res",
    )  # where resolutions meet, the two change width in different places
    assert all("context" in name or "_norm" in name or name.startswith(elsewhere) for name in report.fresh)
    assert len(report.carried) > 4 * len(report.fresh)
    left = {name.rsplit(".", 1)[0] for name in report.unused if not name.startswith(("text_", "clip_extra"))}
    assert all(
        "add_" in name or name.startswith(("mid_block.resnets.1", "up_blocks")) or "down" in name for name in left
    )

    own = dict(network.named_parameters())
    assert torch.equal(own["decoder.0.1.res.conv1.spatial.weight"], state["model.output_blocks.1.0.in_layers.2.weight"])
    assert torch.equal(own["encoder.1.0.res.skip.weight"], state["model.input_blocks.4.0.skip_connection.weight"])
    assert torch.equal(own["encoder.1.1.res.conv2.spatial.weight"], state["model.input_blocks.5.0.out_layers.3.weight"])
    assert torch.equal(own["middle.attention.norm.bias"], state["model.middle_block.1.norm.bias"])
    assert torch.equal(own["output.spatial.weight"], state["model.out.2.weight"])


def test_what_changes_form_stays_the_same_function():
    network, state = our_decoder(), karlo_decoder()
    start_from(network, state, "")
    t, x, condition = torch.tensor([3.0, 977.0]), torch.randn(2, CHANNELS[0], 8, 8), torch.randn(2, TIME)

    def linear(name, value):
        return F.linear(value, state[f"model.{name}.weight"], state[f"model.{name}.bias"])

    theirs = linear("time_embed.2", F.silu(linear("time_embed.0", sinusoid(t, CHANNELS[0]))))
    torch.testing.assert_close(network.time(t), theirs, rtol=1e-4, atol=1e-3)

    def part(name):
        return state[f"model.input_blocks.1.0.{name}.weight"], state[f"model.input_blocks.1.0.{name}.bias"]

    groups = network.encoder[0][0].res.norm1.num_groups
    h = F.conv2d(F.silu(F.group_norm(x, groups, *part("in_layers.0"))), *part("in_layers.2"), padding=1)
    scale, shift = F.linear(condition, *part("emb_layers.1"))[:, :, None, None].chunk(2, 1)
    h = F.group_norm(h, groups, *part("out_layers.0")) * (1 + scale) + shift
    h = x + F.conv2d(F.silu(h), *part("out_layers.3"), padding=1)
    ours = network.encoder[0][0].res([x.contiguous(memory_format=torch.channels_last)], condition, 0)
    torch.testing.assert_close(ours, h, rtol=1e-3, atol=1e-3 * float(h.abs().max()))

    rows, heads = torch.randn(7, CHANNELS[1]), CHANNELS[1] // HEAD
    name = "model.middle_block.1.qkv"
    q, k, v = F.linear(rows, state[f"{name}.weight"][..., 0], state[f"{name}.bias"]).view(7, heads, 3, HEAD).unbind(2)
    ours = network.middle.attention.spatial.qkv(rows).view(7, 3, heads, HEAD)
    torch.testing.assert_close(ours, torch.stack([q, k, v], dim=1))


def test_diffusers_names_give_the_same_start():
    """The same weights under diffusers' names: made by the table, checked on names written out here."""
    from mav.models.checkpoints.unclip import _prior_names, _unet_names

    for network, state, names in (
        (our_decoder(), karlo_decoder(), lambda s: _unet_names(s, 2, HEAD, "")),
        (
            Prior(PriorConfig(embedding_dim=DIM, width=32, depth=2, heads=2, text_context=5)),
            karlo_prior(),
            lambda s: _prior_names(s, 2),
        ),
    ):
        report = start_from(network, state, "")
        first = {name: p.clone() for name, p in network.named_parameters()}
        diffusers = names({name.removeprefix("model."): value for name, value in state.items()})
        assert {"conv_in.weight", "time_embedding.linear_1.weight"} & set(diffusers)
        assert {"down_blocks.1.attentions.0.to_q.weight", "transformer_blocks.1.attn1.to_q.weight"} & set(diffusers)
        assert {"up_blocks.0.upsamplers.0.conv1.weight", "proj_to_clip_embeddings.bias"} & set(diffusers)
        assert start_from(network, diffusers, "") == report
        assert all(torch.equal(first[name], p) for name, p in network.named_parameters())


def test_prior_from_karlo():
    network, state = Prior(PriorConfig(embedding_dim=DIM, width=32, depth=2, heads=2, text_context=5)), karlo_prior()
    report = start_from(network, state, "train_prior.start")
    assert {name.split(".")[-2] if "scale" in name else name for name in report.fresh} == {
        "null_text", "null_token", "token.weight", "query_norm", "key_norm"
    }  # fmt: skip
    assert report.unused == ("encoder_hidden_states_proj.bias", "encoder_hidden_states_proj.weight")
    rows, block = torch.randn(7, 32), "model.transformer.resblocks.1.attn.c_qkv"
    q, k, v = F.linear(rows, state[f"{block}.weight"], state[f"{block}.bias"]).view(7, 2, 3, 16).unbind(2)
    torch.testing.assert_close(network.blocks[1].attention.qkv(rows).view(7, 3, 2, 16), torch.stack([q, k, v], dim=1))


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"`train_prior.start` holds nothing that fits"):
        start_from(Prior(PriorConfig(embedding_dim=7, width=48, depth=1, heads=2)), karlo_prior(), "train_prior.start")
    levels = tuple(Level(channels=32) for _ in range(4))
    with pytest.raises(UserError, match="as many levels"):
        start_from(UNet(UNetConfig(levels=levels, embedding_dim=DIM)), karlo_decoder(), "train_decoder.start")
