"""CLIP: sizes, tokens, preprocessing, storage, heads, and that training teaches it colour and shape."""

import itertools

import numpy as np
import pytest
import torch

from mav.errors import UserError
from mav.models.clip import ClipModel
from mav.models.heads import Head, area_under_curve
from mav.recipes import ClipConfig, ClipSection
from mav.storage import Folder
from mav.world.drawing import PALETTE, SHAPES, draw, random_scene

TINY = ClipConfig(embedding_dim=16, vision_width=4, text_width=16, text_heads=2, text_layers=1)


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return ClipModel(TINY).eval()


def pixels(count, height, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (16, 16), (45, 97), (33, 32)])
def test_any_picture_becomes_a_unit_vector(clip, height, width):
    embedding = clip.encode_image(pixels(3, height, width))
    assert embedding.shape == (3, clip.dim) == (3, 16)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(3), atol=1e-5)


def test_an_embedding_does_not_depend_on_its_batch(clip):
    images = pixels(4, 64, 64)
    assert torch.allclose(clip.encode_image(images)[:1], clip.encode_image(images[:1]), atol=1e-5)


def test_downscaling_is_antialiased(clip):
    checks = (torch.arange(64)[:, None] + torch.arange(64)[None]) % 2 * 255
    grey = torch.full((1, 3, 64, 64), 127, dtype=torch.uint8)
    fine = checks.to(torch.uint8).expand(1, 3, 64, 64)
    assert float((clip.encode_image(fine).detach() * clip.encode_image(grey)).sum()) > 0.999


def test_tokens_are_clips_own_and_fit_uint16(clip):
    tokens = clip.tokenize(["a red circle", "word " * 50, ""])
    assert tokens.shape == (3, 16)
    assert tokens.dtype == torch.int64
    assert tokens[0].tolist()[:6] == [49406, 320, 736, 7117, 49407, 0]
    assert tokens[1, -1] == 49407  # cut, and still ended
    assert int(tokens.max()) <= 65535
    assert clip.tokenize([]).shape == (0, 16)
    assert clip.encode_text(tokens).norm(dim=1).sub(1).abs().max() < 1e-5


def test_equal_captions_share_their_target(clip):
    images, tokens = pixels(4, 32, 32), clip.tokenize(["a red circle"] * 4)
    # With one caption only, nothing can be distinguished: for any weights the loss is at least log 4, the entropy of
    # the shared target.
    assert float(clip.contrastive_loss(images, tokens)) >= np.log(4) - 1e-4


def test_saved_and_loaded_it_is_the_same(clip, tmp_path):
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.nn.functional.normalize(torch.randn(200, 16, generator=generator), dim=1)
    clip.fit_heads(embeddings, (embeddings[:, 0] > 0).double(), torch.full((200,), float("nan")))
    clip.save(Folder(str(tmp_path / "a")))
    loaded = ClipModel.load(Folder(str(tmp_path / "a")))
    # As loaded: without gradients PyTorch's attention takes another path, whose last bit differs on some CPUs.
    clip.requires_grad_(False)
    images, tokens = pixels(2, 64, 64), clip.tokenize(["a blue cross", "a square"])
    assert torch.equal(loaded.encode_image(images), clip.encode_image(images))
    assert torch.equal(loaded.encode_text(tokens), clip.encode_text(tokens))
    assert torch.equal(loaded.scores(embeddings)["punsafe"], clip.scores(embeddings)["punsafe"])
    assert not any(p.requires_grad for p in loaded.parameters())
    loaded.save(Folder(str(tmp_path / "b")))
    for name in Folder(str(tmp_path / "a")).names():
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_loading_nothing_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="run the `clip` stage"):
        ClipModel.load(Folder(str(tmp_path)))


def test_heads_find_a_linear_score_and_report_it_on_held_out_rows(clip):
    generator = torch.Generator().manual_seed(2)
    embeddings = torch.nn.functional.normalize(torch.randn(600, 16, generator=generator), dim=1)
    unsafe = (embeddings[:, 3] > 0.1).double()
    unsafe[::3] = float("nan")
    statistics = clip.fit_heads(embeddings, unsafe, torch.full((600,), float("nan")))
    assert statistics["punsafe"]["rows"] == 400
    assert statistics["punsafe"]["held_out"] == 80
    assert statistics["punsafe"]["auc"] > 0.98
    assert statistics["punsafe"]["accuracy"] > 0.9
    assert set(clip.scores(embeddings)) == {"punsafe"}  # nothing was known of watermarks, so there is no head
    assert clip.scores(embeddings[:5])["punsafe"].shape == (5,)


def test_heads_are_calibrated_when_all_rows_are_alike(clip):
    embeddings = torch.nn.functional.normalize(torch.randn(50, 16, generator=torch.Generator().manual_seed(3)), dim=1)
    statistics = clip.fit_heads(embeddings, torch.zeros(50), torch.zeros(50))
    assert statistics["pwatermark"]["auc"] is None
    assert statistics["pwatermark"]["accuracy"] == 1.0
    assert float(clip.scores(embeddings)["pwatermark"].max()) < 0.05


def test_area_under_curve():
    score, positive = torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True])
    assert area_under_curve(score, positive) == 0.75
    assert area_under_curve(torch.zeros(4), positive) == 0.5
    assert area_under_curve(score, torch.zeros(4, dtype=torch.bool)) is None


def test_the_published_layout_is_what_its_names_say():
    generator = torch.Generator().manual_seed(4)
    sizes = [8, 4, 3, 1]
    state = {
        "norm.mean": torch.randn(8, generator=generator),
        "norm.variance": torch.rand(8, generator=generator) + 0.5,
    }
    for i, (a, b) in enumerate(itertools.pairwise(sizes), start=1):
        state |= {
            f"linear_{i}.weight": torch.randn(b, a, generator=generator),
            f"linear_{i}.bias": torch.randn(b, generator=generator),
        }
    x = torch.randn(5, 8, generator=generator)
    y = (x - state["norm.mean"]) / state["norm.variance"].sqrt()
    for i in (1, 2, 3):
        y = torch.nn.functional.linear(
            torch.relu(y) if i > 1 else y, state[f"linear_{i}.weight"], state[f"linear_{i}.bias"]
        )
    assert torch.allclose(Head.from_state(state)(x), torch.sigmoid(y[:, 0]), atol=1e-6)


@pytest.mark.parametrize(
    ("file", "sizes"),
    [
        ("clip_ViT-L-14_openai_binary_nsfw_head.pth", [768, 64, 512, 256, 1]),
        ("clip_ViT-B-32_openai_binary_nsfw_head.pth", [512, 32, 32, 1]),
    ],
)
def test_laions_nsfw_heads_load(real_data, file, sizes):
    state = torch.load(real_data / "heads" / file, weights_only=True)
    head = Head.from_state(state)
    assert [head.layers[0].in_features, *(layer.out_features for layer in head.layers)] == sizes
    # Its own training mean is an embedding of the average picture, and the average picture is safe.
    average = torch.nn.functional.normalize(state["norm.mean"][None].float(), dim=1)
    score = head(average)
    assert score.shape == (1,)
    assert 0 <= float(score) < 0.5


def test_a_pretrained_architecture_takes_weights_and_head_from_paths(real_data, tmp_path, monkeypatch):
    import open_clip

    small = {
        "embed_dim": 768,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: small)
    weights = str(tmp_path / "weights.pt")
    torch.save(
        {"state_dict": {f"module.{n}": v for n, v in ClipModel(architecture="small").model.state_dict().items()}},
        weights,
    )
    good = str(real_data / "heads/clip_ViT-L-14_openai_binary_nsfw_head.pth")
    clip = ClipModel.create(ClipSection(pretrained=weights, architecture="small", nsfw_head=good)).eval()
    embedding = clip.encode_image(pixels(2, 40, 60))
    assert set(clip.scores(embedding)) == {"punsafe"}
    clip.save(Folder(str(tmp_path / "saved")))
    again = ClipModel.load(Folder(str(tmp_path / "saved"))).encode_image(pixels(2, 40, 60))
    assert torch.allclose(again, embedding, atol=1e-5)  # without gradients torch takes another route through attention
    wrong = str(real_data / "heads/clip_ViT-B-32_openai_binary_nsfw_head.pth")
    with pytest.raises(UserError, match=r"clip\.nsfw_head.*length 512.*768"):
        ClipModel.create(ClipSection(pretrained=weights, architecture="small", nsfw_head=wrong))


def test_wrong_weights_are_one_sentence(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"clip\.pretrained"):
        ClipModel.create(ClipSection(pretrained=str(path), architecture="ViT-B-32"))
    with pytest.raises(UserError, match=r"clip\.architecture"):
        ClipModel.create(ClipSection(pretrained=str(path)))
    with pytest.raises(UserError, match=r"clip\.architecture.*ViT-L-14"):
        ClipModel.create(ClipSection(pretrained=str(path), architecture="no-such-model"))
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"clip\.watermark_head"):
        ClipModel.create(ClipSection(watermark_head=str(path)))


def test_a_few_steps_teach_colour():
    """The demo's own sizes at a fifth of its training: most held-out pictures find their colour."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    colours = tuple(PALETTE)
    scenes = [random_scene(rng, colours, SHAPES) for _ in range(400)]
    images = torch.from_numpy(np.stack([draw(scene, 32) for scene in scenes])).permute(0, 3, 1, 2)
    clip = ClipModel(ClipConfig()).train()
    tokens = clip.tokenize([scene.caption(i) for i, scene in enumerate(scenes)])
    optimiser = torch.optim.AdamW(clip.parameters(), lr=2e-3, fused=True)
    first = last = 0.0
    for step in range(40):
        rows = torch.from_numpy(rng.permutation(320)[:48])
        loss = clip(images[rows], tokens[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        first, last = (float(loss), float(loss)) if step == 0 else (first, float(loss))
    clip.measure_batch_norms(images[:320])
    assert not clip.training
    with torch.no_grad():
        guess = (
            clip.encode_image(images[320:]) @ clip.encode_text(clip.tokenize([f"a {c} circle" for c in colours])).T
        ).argmax(1)
    right = np.mean([colours[g] == scene.colour for g, scene in zip(guess, scenes[320:], strict=True)])
    assert last < first - 0.5
    assert right > 0.6  # chance is 1/6
