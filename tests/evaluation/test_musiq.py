"""MUSIQ against a slow account of the published network, with made-up weights under the published names."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_up_weights import shake
from safetensors.torch import save_file

from mav.evaluation.features import Networks
from mav.evaluation.networks import musiq


def published() -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of pyiqa's file, from its public code: `MUSIQ(num_class=1)`."""
    shapes = {"conv_root.weight": (64, 3, 7, 7), "embedding.weight": (384, 256 * 8 * 8), "embedding.bias": (384,)}
    for number, (out, channels, kernel) in enumerate(((64, 64, 1), (64, 64, 3), (256, 64, 1)), 1):
        shapes[f"block1.conv{number}.weight"] = (out, channels, kernel, kernel)
        shapes |= {f"block1.gn{number}.{part}": (out,) for part in ("weight", "bias")}
    shapes["block1.conv_proj.weight"] = (256, 64, 1, 1)
    shapes |= {f"{norm}.{part}": (size,) for norm, size in (("gn_root", 64), ("block1.gn_proj", 256))
               for part in ("weight", "bias")}  # fmt: skip
    shapes |= {
        "transformer_encoder.cls": (1, 1, 384),
        "transformer_encoder.posembed_input.position_emb": (1, 100, 384),
        "transformer_encoder.scaleembed_input.scale_emb": (3, 384),
        "head.weight": (1, 384),
        "head.bias": (1,),
    }
    linear = {f"attention.{name}": (384, 384) for name in ("query", "key", "value", "out")}
    linear |= {"mlp.fc1": (1152, 384), "mlp.fc2": (384, 1152)}
    norms = ["transformer_encoder.encoder_norm"]
    for number in range(14):
        block = f"transformer_encoder.transformer.encoderblock_{number}"
        norms += [f"{block}.norm1", f"{block}.norm2"]
        for name, shape in linear.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    return shapes | {f"{norm}.{part}": (384,) for norm in norms for part in ("weight", "bias")}


def test_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        network = musiq.Musiq()
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == published()


def bicubic(count: int, out: int) -> torch.Tensor:
    """Returns the weights (out, count) of Keys' cubic with a = -0.75 between pixel centres, edges repeated."""
    weights = torch.zeros(out, count, dtype=torch.float64)
    for i in range(out):
        place = (i + 0.5) * count / out - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            d = abs(place - tap)
            near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            weights[i, min(max(tap, 0), count - 1)] += near if d <= 1 else far
    return weights


def score(state: dict[str, torch.Tensor], picture: torch.Tensor) -> float:
    """Returns the published score of (3, H, W) in [-1, 1], patch by patch, with filled and masked patches."""

    def conv(name, x, stride=1):
        kernel = state[f"{name}.weight"]
        flat = kernel.flatten(1)
        kernel = ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)).view_as(kernel)
        total = max((math.ceil(x.shape[-1] / stride) - 1) * stride + kernel.shape[-1] - x.shape[-1], 0)
        return F.conv2d(F.pad(x[None], [total // 2, total - total // 2] * 2), kernel, stride=stride)[0]

    def group_norm(name, x, eps):
        groups = x.reshape(32, -1)
        groups = (groups - groups.mean(1, keepdim=True)) / (groups.var(1, keepdim=True, correction=0) + eps).sqrt()
        return groups.view_as(x) * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def layer_norm(name, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def token(patch):
        x = group_norm("gn_root", conv("conv_root", patch, 2), 1e-6).clamp(min=0)
        x = F.max_pool2d(F.pad(x, [0, 1, 0, 1])[None], 3, 2)[0]
        y = group_norm("block1.gn1", conv("block1.conv1", x), 1e-4).clamp(min=0)
        y = group_norm("block1.gn2", conv("block1.conv2", y), 1e-4).clamp(min=0)
        y = group_norm("block1.gn3", conv("block1.conv3", y), 1e-4)
        y = (y + group_norm("block1.gn_proj", conv("block1.conv_proj", x), 1e-4)).clamp(min=0)
        return linear("embedding", y.permute(1, 2, 0).flatten())

    root = "transformer_encoder"
    positions = state[f"{root}.posembed_input.position_emb"][0]
    scales = state[f"{root}.scaleembed_input.scale_emb"]
    tokens, real = [state[f"{root}.cls"][0, 0]], [True]
    for number, longer in enumerate((224, 384, None)):
        height, width = picture.shape[1:]
        x = picture
        if longer:
            height, width = (round(side * (longer / max(picture.shape[1:]))) for side in (height, width))
            x = bicubic(picture.shape[1], height) @ picture @ bicubic(picture.shape[2], width).T
        rows, columns = math.ceil(height / 32), math.ceil(width / 32)
        top, left = (rows * 32 - height) // 2, (columns * 32 - width) // 2
        canvas = torch.zeros(3, rows * 32, columns * 32, dtype=torch.float64)
        canvas[:, top : top + height, left : left + width] = x
        for row in range(rows):
            for column in range(columns):
                patch = canvas[:, row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
                place = row * 10 // rows * 10 + column * 10 // columns
                tokens.append(token(patch) + positions[place] + scales[number])
                real.append(True)
        filled = math.ceil(longer / 32) ** 2 - rows * columns if longer else 0
        tokens += [token(torch.zeros(3, 32, 32, dtype=torch.float64)) + positions[0] + scales[0]] * filled
        real += [False] * filled
    x, seen = torch.stack(tokens), torch.tensor(real)
    for number in range(musiq.BLOCKS):
        block = f"{root}.transformer.encoderblock_{number}"
        normed, parts = layer_norm(f"{block}.norm1", x), []
        for head in range(6):
            q, k, v = (linear(f"{block}.attention.{name}", normed)[:, head * 64 : head * 64 + 64]
                       for name in ("query", "key", "value"))  # fmt: skip
            weights = (q @ k.T / 8).masked_fill(~(seen[:, None] & seen), -1e3).softmax(-1)
            parts.append(weights @ v)
        x = x + linear(f"{block}.attention.out", torch.cat(parts, dim=1))
        hidden = linear(f"{block}.mlp.fc1", layer_norm(f"{block}.norm2", x))
        x = x + linear(f"{block}.mlp.fc2", hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)
    return linear("head", layer_norm(f"{root}.encoder_norm", x)[0]).item()


def test_a_videos_score_is_the_mean_of_its_frames_by_the_slow_account_over_a_hundred(tmp_path, monkeypatch):
    monkeypatch.setattr(musiq, "BLOCKS", 2)
    monkeypatch.setattr(musiq, "PATCHES_AT_ONCE", 50)  # parts of a frame and parts across frames
    network = shake(musiq.Musiq())
    network.transformer_encoder.posembed_input["position_emb"].data *= 10  # so that places count as much as pixels
    save_file(network.state_dict(), tmp_path / "musiq.safetensors")
    state = {name: value.double() for name, value in network.state_dict().items()}
    frames = np.random.default_rng(0).integers(0, 256, (2, 45, 75, 3), dtype=np.uint8)
    frames[1] = np.linspace(0, 255, 75)[:, None]  # noise, then a ramp
    pictures = torch.from_numpy(frames).double().permute(0, 3, 1, 2) / 255 * 2 - 1
    expected = [score(state, picture) for picture in pictures]
    assert np.std(expected) > 0.01 * abs(np.mean(expected)), "the score depends on the picture"
    row = Networks(("whole musiq",), str(tmp_path)).rows(frames, 8)["whole musiq"]
    assert row[1] == pytest.approx(np.mean(expected) / 100, rel=1e-5)


@pytest.mark.parametrize(("height", "width", "sizes"), [
    (480, 640, [(168, 224), (288, 384), (480, 640)]), (100, 90, [(224, 202), (384, 346), (100, 90)]),
])  # fmt: skip
def test_a_picture_is_seen_at_three_sizes_and_every_pixel_lies_in_one_patch(height, width, sizes):
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    seen = musiq.pyramid(x)
    assert [tuple(picture.shape[-2:]) for picture in seen] == sizes
    assert torch.equal(seen[2], x)
    for picture in seen:
        patches, places = musiq.cut(picture)
        rows, columns = (math.ceil(side / 32) for side in picture.shape[-2:])
        assert patches.shape == (2, rows * columns, 3, 32, 32)
        assert patches.double().sum().item() == pytest.approx(picture.double().sum().item())
        wanted = [row * 10 // rows * 10 + column * 10 // columns for row in range(rows) for column in range(columns)]
        assert places.tolist() == wanted


def test_frames_are_made_smaller_as_vbench_does_it():
    """Its default: the longer side at most 512 pixels, the other one rounded down, bilinear without antialiasing."""
    assert musiq.prepare(torch.zeros(2, 720, 1280, 3, dtype=torch.uint8)).shape == (2, 3, 288, 512)
    assert musiq.prepare(torch.zeros(1, 1000, 515, 3, dtype=torch.uint8)).shape == (1, 3, 512, 263)
    video = torch.zeros(1, 1024, 8, 3, dtype=torch.uint8)
    video[:, 3::4] = 255  # at half the size, pairs are averaged: 0 and 127.5 in turn; antialiasing would level them
    assert musiq.prepare(video)[0, 0, :4, 0].tolist() == pytest.approx([-1, 0, -1, 0], abs=1e-6)
    small = torch.arange(0, 256, 51, dtype=torch.uint8).view(1, 1, 6, 1).expand(1, 2, 6, 3)
    assert musiq.prepare(small)[0, 0, 0].tolist() == pytest.approx([-1, -0.6, -0.2, 0.2, 0.6, 1])
