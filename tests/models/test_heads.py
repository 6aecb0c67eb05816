"""Scorers from published files: LAION's NSFW heads as .pth and AutoKeras zips, the watermark classifier of timm."""

import dataclasses
import hashlib
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mav.errors import UserError
from mav.models.checkpoints.tensor_bundle import read_bundle
from mav.models.clip import ClipModel
from mav.models.heads import Head, WatermarkClassifier, read_head, read_linear_head
from mav.recipes import ClipConfig, ClipSection
from mav.storage import Folder

TINY = ClipConfig(embedding_dim=16, vision_width=4, text_width=16, text_heads=2, text_layers=1)


@pytest.fixture
def heads(real_data):
    return real_data / "heads"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A checkpoint in the published form, of random weights: timm's names, the three layers' places."""
    from timm import create_model

    torch.manual_seed(0)
    model = create_model("efficientnet_b3a", pretrained=False, num_classes=2)
    first, second, third = torch.nn.Linear(1536, 625), torch.nn.Linear(625, 256), torch.nn.Linear(256, 2)
    model.classifier = torch.nn.Sequential(
        first, torch.nn.ReLU(), torch.nn.Dropout(0.3), second, torch.nn.ReLU(), third
    )
    path = str(tmp_path_factory.mktemp("heads") / "watermark_model_v1.pt")
    torch.save(model.state_dict(), path)
    return path


def test_the_watermark_classifier_is_timms_network_on_squashed_pictures(checkpoint):
    from PIL import Image
    from timm import create_model
    from torchvision import transforms

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((400, 300), Image.Resampling.BICUBIC)
    ours = read_head(checkpoint, 16, "clip.watermark_head")
    assert isinstance(ours, WatermarkClassifier)
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]
    theirs = create_model("efficientnet_b3", pretrained=False, num_classes=2)
    theirs.classifier = ours.model.classifier
    theirs.load_state_dict(torch.load(checkpoint, weights_only=True))
    prepared = transforms.Compose(
        [
            transforms.Resize((256, 256)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )(picture)
    with torch.no_grad():
        expected = torch.softmax(theirs.eval()(prepared[None]), 1)[0, 0]
        found = ours(pixels)
    assert found.shape == (1,)
    assert abs(float(found) - float(expected)) < 2e-3


def test_a_clip_with_it_is_stored_and_comes_back(checkpoint, tmp_path):
    clip = ClipModel(TINY).eval()
    clip.heads["pwatermark"] = read_head(checkpoint, 16, "clip.watermark_head")
    clip.sources["clip.watermark_head"] = "0" * 64
    clip.save(Folder(str(tmp_path)))
    again = ClipModel.load(Folder(str(tmp_path)))
    assert again.pixel_heads == ["pwatermark"]
    assert again.sources == clip.sources
    pixels = torch.full((2, 3, 40, 50), 99, dtype=torch.uint8)
    assert torch.equal(again.pixel_scores(pixels)["pwatermark"], clip.pixel_scores(pixels)["pwatermark"])
    assert again.scores(torch.zeros(2, 16)) == {}


def test_what_is_no_head_says_where_heads_are(tmp_path):
    torch.save({"conv_stem.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="LAION-5B-WatermarkDetection"):
        read_head(str(tmp_path / "other.pt"), 16, "clip.watermark_head")
    for name in ("empty.zip", "nonsense.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            if name.startswith("nonsense"):
                archive.writestr("a/variables/variables.index", b"x" * 100)
                archive.writestr("a/variables/variables.data-00000-of-00001", b"")
        with pytest.raises(UserError, match="CLIP-based-NSFW-Detector"):
            read_head(str(tmp_path / name), 16, "clip.nsfw_head")


@pytest.mark.parametrize(
    ("archive", "pth", "dim"),
    [
        ("clip_autokeras_nsfw_b32.zip", "clip_ViT-B-32_openai_binary_nsfw_head.pth", 512),
        ("clip_autokeras_binary_nsfw_vitl14.zip", "clip_ViT-L-14_openai_binary_nsfw_head.pth", 768),
    ],
)
def test_real_autokeras_heads_are_read_without_tensorflow(heads, archive, pth, dim):
    """They hold the weights of LAION's own conversions to PyTorch, and give the same scores."""
    head = read_head(str(heads / archive), dim, "clip.nsfw_head")
    converted = read_head(str(heads / pth), dim, "clip.nsfw_head")
    embeddings = torch.nn.functional.normalize(torch.randn(64, dim, generator=torch.Generator().manual_seed(0)), dim=1)
    assert torch.allclose(head(embeddings), converted(embeddings), atol=1e-5)
    shapes = [{name: tuple(value.shape) for name, value in each.state_dict().items()} for each in (head, converted)]
    assert shapes[0] == shapes[1]


def test_a_cut_or_flipped_real_archive_is_refused(heads):
    with zipfile.ZipFile(heads / "clip_autokeras_nsfw_b32.zip") as archive:
        index = archive.read("clip_autokeras_nsfw_b32/variables/variables.index")
        data = archive.read("clip_autokeras_nsfw_b32/variables/variables.data-00000-of-00001")
    assert read_bundle(index, data)
    with pytest.raises(ValueError, match="cut"):
        read_bundle(index, data[:1000])
    with pytest.raises(ValueError, match="not the index"):
        read_bundle(index[:-10], data)


def test_the_digest_of_a_heads_file_is_recorded(heads):
    path = str(heads / "clip_ViT-B-32_openai_binary_nsfw_head.pth")
    section = ClipSection(network=dataclasses.replace(TINY, embedding_dim=512), nsfw_head=path)
    clip = ClipModel.create(section)
    assert isinstance(clip.heads["punsafe"], Head)
    with open(path, "rb") as file:
        assert clip.sources == {"clip.nsfw_head": hashlib.file_digest(file, "sha256").hexdigest()}


def test_a_linear_head_is_read_whatever_its_file_and_several_linear_layers_are_one(tmp_path) -> None:
    layers = [torch.nn.Linear(a, b).double() for a, b in ((16, 8), (8, 5), (5, 4), (4, 3), (3, 1))]
    state = {
        f"layers.{place}.{name}": value
        for place, layer in zip((0, 2, 4, 6, 7), layers, strict=True)
        for name, value in layer.state_dict().items()
    }
    x = torch.randn(6, 16, dtype=torch.double)
    one = torch.nn.Linear(16, 1)
    torch.save(one.state_dict(), tmp_path / "one.pth")
    save_file(one.state_dict(), tmp_path / "one.safetensors")
    torch.save({"state_dict": state}, tmp_path / "five.ckpt")
    for name, expected in (
        ("one.pth", one.double()(x)),
        ("one.safetensors", one.double()(x)),
        ("five.ckpt", torch.nn.Sequential(*layers)(x)),
    ):
        weight, bias = read_linear_head(str(tmp_path / name))
        assert np.allclose(x.numpy() @ weight + bias, expected[:, 0].detach().numpy(), atol=1e-6)


def test_laions_aesthetic_heads_load_and_what_is_no_linear_head_is_named(heads, tmp_path) -> None:
    for name, dim in (("sa_0_4_vit_b_32_linear.pth", 512), ("sa_0_4_vit_l_14_linear.pth", 768)):
        weight, bias = read_linear_head(str(heads / name))
        state = torch.load(heads / name, weights_only=True)
        assert weight.shape == (dim,)
        assert (float(state["bias"]), state["weight"][0, 5].item()) == (bias, weight[5])
    wrong = {
        "two outputs": torch.nn.Linear(16, 2).state_dict(), "no bias": {"weight": torch.zeros(1, 16)},
        "not finite": {"weight": torch.full((1, 16), torch.nan), "bias": torch.zeros(1)},
        "no matrix": {"weight": torch.zeros(16), "bias": torch.zeros(1)},
        "activations": {f"layers.{n}.{k}": v for n in (0, 3) for k, v in torch.nn.Linear(1, 1).state_dict().items()},
        "do not fit": {"layers.0.weight": torch.zeros(4, 16), "layers.0.bias": torch.zeros(4)}
        | {f"layers.{n}.{k}": torch.zeros(1, 3) for n in (2, 4, 6, 7) for k in ("weight", "bias")},
    }  # fmt: skip
    for name, state in wrong.items():
        torch.save(state, tmp_path / name)
    files = [*map(str, (tmp_path / name for name in wrong)), str(heads / "clip_ViT-B-32_openai_binary_nsfw_head.pth")]
    for path in files:
        with pytest.raises(
            UserError, match=r"`image_select\.aesthetic_head` .* is no linear head .*aesthetic-predictor"
        ):
            read_linear_head(path)
