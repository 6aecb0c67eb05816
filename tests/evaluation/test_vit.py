"""The vision transformers of DINO and DINOv2 against timm's, with made-up weights under the published names."""

import pytest
import torch
from made_up_weights import shake

from mav.evaluation.networks import vit


@pytest.mark.parametrize("scaled", [False, True])
def test_vision_transformers_agree_with_timms_on_equal_weights(scaled):
    from timm.models.vision_transformer import VisionTransformer

    ours = shake(vit.VisionTransformer(vit.Sizes(16, 48, 2, 3, 14, scaled)))
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
    network = vit.VisionTransformer(vit.Sizes(16, 4, 0, 1, 14, scaled=False)).eval()
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
