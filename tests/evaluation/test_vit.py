"""The vision transformers against timm's and torch's own, with made-up weights under the published names."""

import pytest
import torch
import torch.nn.functional as F
from made_up_weights import shake

from mav.errors import UserError
from mav.evaluation.networks import vit, vjepa, weights


@pytest.mark.parametrize("scaled", [False, True])
def test_vision_transformers_agree_with_timms_on_equal_weights(scaled):
    from timm.models.vision_transformer import VisionTransformer

    ours = shake(vit.VisionTransformer(vit.Sizes(16, 48, 2, 3, 14, scaled, hidden=192)))
    theirs = VisionTransformer(
        patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=0, init_values=1.0 if scaled else None
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "name", "side"), [(vit.DINO, "vit_base_patch16_224", 224), (vit.DINOV2, "vit_large_patch14_dinov2", 518)]
)
def test_vision_transformers_have_the_published_names_and_sizes(sizes, name, side):
    import timm

    with torch.device("meta"):
        ours, theirs = vit.VisionTransformer(sizes), timm.create_model(name, num_classes=0, img_size=side)
    shapes = [{name: tuple(value.shape) for name, value in each.state_dict().items()} for each in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_positions_are_interpolated_to_other_pictures():
    network = vit.VisionTransformer(vit.Sizes(16, 4, 0, 1, 14, scaled=False, hidden=4)).eval()
    ramp = torch.arange(14.0)[:, None].expand(14, 14)
    network.pos_embed.data[0, 1:] = torch.stack([ramp, ramp.T, torch.ones(14, 14), -ramp], dim=-1).flatten(0, 1)
    grid = network._positions(7, 21)[0, 1:].unflatten(0, (7, 21))
    assert torch.allclose(grid[..., 2], torch.ones(7, 21), atol=1e-5)
    down, right = grid[1:-1, 10, 0], grid[3, 2:-2, 1]  # bicubic weights bend the ends
    assert torch.allclose(down.diff(), torch.full((4,), 14 / 7.1), atol=0.02)
    assert torch.allclose(right.diff(), torch.full((16,), 14 / 21.1), atol=0.1)
    assert torch.allclose(grid[..., 3], -grid[..., 0], atol=1e-5)
    video = torch.zeros(2, 40, 80, 3, dtype=torch.uint8)
    assert vit.prepare_dino(video).shape == (2, 3, 224, 448)
    assert vit.prepare_dinov2(video).shape == (2, 3, 224, 224)
    grey = torch.full((1, 30, 30, 3), 128, dtype=torch.uint8)
    assert torch.allclose(
        vit.prepare_dinov2(grey)[0, :, 5, 5], (128 / 255 - torch.tensor(vit.MEAN)) / torch.tensor(vit.STD)
    )


def test_videomae_reads_the_published_file_and_agrees_with_torchs_own_attention(tmp_path, monkeypatch):
    width, heads = 24, 3
    sizes = vit.Sizes(14, width, 2, heads, 16, scaled=False, hidden=40)
    network = shake(vit.VideoMae(sizes))
    # The file as published: no bias of the keys, everything under `module`, and a head that is not read.
    state = network.state_dict()
    for number in range(2):
        bias = state.pop(f"blocks.{number}.attn.qkv.bias")
        state |= {
            f"blocks.{number}.attn.{name}_bias": bias[i * width :][:width].clone() for i, name in ((0, "q"), (2, "v"))
        }
    torch.save(
        {"module": state | {"head.weight": torch.ones(174, width)}}, tmp_path / "vit_g_hybrid_pt_1200e_ssv2_ft.pth"
    )
    monkeypatch.setitem(weights.NETWORKS, "videomae", lambda: vit.VideoMae(sizes))
    loaded, _ = weights.load_network("videomae", str(tmp_path))
    clip = torch.randint(0, 256, (16, 40, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    x = vit.prepare_videomae(clip)
    assert (x.shape, x.min() >= 0, x.max() <= 1) == ((1, 3, 16, 224, 224), True, True)
    # The same in torch's own words.
    patches = (
        x.unfold(2, 2, 2).unfold(3, 14, 14).unfold(4, 14, 14).permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3)
    )
    kernel, offset = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    places, channels = torch.arange(2048)[:, None].double(), torch.arange(width)
    angles = places / 10_000 ** (2 * (channels // 2) / width)
    tokens = patches @ kernel.flatten(1).T + offset + torch.where(channels % 2 == 0, angles.sin(), angles.cos()).float()
    for number in range(2):
        own = {name.removeprefix(f"blocks.{number}."): value for name, value in state.items()}
        attention = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        attention.in_proj_weight.data = own["attn.qkv.weight"]
        attention.in_proj_bias.data = torch.cat([own["attn.q_bias"], torch.zeros(width), own["attn.v_bias"]])
        attention.out_proj.weight.data, attention.out_proj.bias.data = own["attn.proj.weight"], own["attn.proj.bias"]
        normed = F.layer_norm(tokens, (width,), own["norm1.weight"], own["norm1.bias"], 1e-6)
        tokens = tokens + attention(normed, normed, normed, need_weights=False)[0]
        normed = F.layer_norm(tokens, (width,), own["norm2.weight"], own["norm2.bias"], 1e-6)
        hidden = F.gelu(normed @ own["mlp.fc1.weight"].T + own["mlp.fc1.bias"])
        tokens = tokens + hidden @ own["mlp.fc2.weight"].T + own["mlp.fc2.bias"]
    expected = F.layer_norm(tokens.mean(1), (width,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)
    with torch.inference_mode():
        assert torch.allclose(loaded(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="16 frames, not 8"):
        vit.prepare_videomae(clip[:8])
    with torch.device("meta"):
        assert len(vit.VideoMae().blocks[39].mlp.fc1.weight) == int(1408 * 48 / 11)


def test_vjepa_reads_both_published_files_and_agrees_with_torchs_own_attention(tmp_path, monkeypatch):
    width, heads = 24, 3
    sizes = vit.Sizes(16, width, 2, heads, 14, scaled=False, hidden=40)
    network = shake(vjepa.VJepa(sizes))
    # The files as published: prefixes of wrappers, beside what training left, and layers that are not read.
    state = network.state_dict()
    encoder = {f"module.backbone.{name}": value for name, value in state.items() if not name.startswith("pooler.")}
    probe = {f"module.{name}": value for name, value in state.items() if name.startswith("pooler.")}
    unused = {"module.linear.weight": torch.ones(174, width)}
    unused["module.pooler.cross_attention_block.xattn.proj.weight"] = torch.ones(width, width)
    wrong = {name: torch.zeros_like(value) for name, value in encoder.items()}
    torch.save({"encoder": wrong, "target_encoder": encoder, "epoch": 300}, tmp_path / "vith16.pth.tar")
    monkeypatch.setitem(weights.NETWORKS, "vjepa", lambda: vjepa.VJepa(sizes))
    with pytest.raises(UserError, match=r"vith16\.pth\.tar with ssv2-probe\.pth\.tar"):
        weights.find("vjepa", str(tmp_path))
    torch.save({"classifier": probe | unused, "epoch": 20}, tmp_path / "ssv2-probe.pth.tar")
    loaded, digest = weights.load_network("vjepa", str(tmp_path))
    torch.save({"classifier": probe, "epoch": 20}, tmp_path / "ssv2-probe.pth.tar")
    assert weights.find("vjepa", str(tmp_path))[1] != digest, "the digest is of both files"
    # The same in torch's own words.
    clip = torch.randint(0, 256, (16, 40, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    x = vjepa.prepare(clip)
    assert x.shape == (1, 3, 16, 224, 224)
    kernel, offset = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    tokens = F.conv3d(x, kernel, offset, (2, 16, 16)).flatten(2).transpose(1, 2) + state["pos_embed"]

    def after(name, tokens, own, norm, eps):
        normed = F.layer_norm(tokens, (width,), own[f"{norm}.weight"], own[f"{norm}.bias"], eps)
        hidden = F.gelu(normed @ own[f"{name}.fc1.weight"].T + own[f"{name}.fc1.bias"])
        return tokens + hidden @ own[f"{name}.fc2.weight"].T + own[f"{name}.fc2.bias"]

    with torch.no_grad():
        for number in range(2):
            own = {name.removeprefix(f"blocks.{number}."): value for name, value in state.items()}
            attention = torch.nn.MultiheadAttention(width, heads, batch_first=True)
            attention.in_proj_weight.data, attention.in_proj_bias.data = own["attn.qkv.weight"], own["attn.qkv.bias"]
            attention.out_proj.weight.data, attention.out_proj.bias.data = (
                own["attn.proj.weight"],
                own["attn.proj.bias"],
            )
            normed = F.layer_norm(tokens, (width,), own["norm1.weight"], own["norm1.bias"], 1e-6)
            tokens = tokens + attention(normed, normed, normed, need_weights=False)[0]
            tokens = after("mlp", tokens, own, "norm2", 1e-6)
        tokens = F.layer_norm(tokens, (width,), state["norm.weight"], state["norm.bias"], 1e-6)
        own = {name.removeprefix("pooler.cross_attention_block."): value for name, value in state.items()}
        normed = F.layer_norm(tokens, (width,), own["norm1.weight"], own["norm1.bias"], 1e-5)
        lookup = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        lookup.in_proj_weight.data = torch.cat([own["xattn.q.weight"], own["xattn.kv.weight"]])
        lookup.in_proj_bias.data = torch.cat([own["xattn.q.bias"], own["xattn.kv.bias"]])
        lookup.out_proj.weight.data, lookup.out_proj.bias.data = torch.eye(width), torch.zeros(width)
        query = state["pooler.query_tokens"]
        query = query + lookup(query, normed, normed, need_weights=False)[0]
        expected = after("mlp", query, own, "norm2", 1e-5)[:, 0]
        assert torch.allclose(loaded(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="16 frames, not 8"):
        vjepa.prepare(clip[:8])
    with torch.device("meta"):
        whole = vjepa.VJepa()
    assert (len(whole.blocks), tuple(whole.pos_embed.shape)) == (32, (1, 1568, 1280))
