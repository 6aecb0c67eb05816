"""The networks against library references or plain loops, with made-up weights under the real names."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_up_weights import shake
from safetensors.torch import save_file
from torch import nn

from mav.errors import UserError
from mav.evaluation.networks import c3d, fold, i3d, inception
from mav.evaluation.networks.weights import PUBLISHED, find, load_network, rename

I3D_PARAMETERS = 12_697_264  # of the published RGB Kinetics-400 network, batch norm scales and shifts included


# ----------------------------------------------------------------------------------------------------------------- I3D


def tensorflow_same(x, weight, stride):
    """SAME convolution by hand: output o takes input o * stride - before, with all the odd padding after."""
    size, kernel = x.shape[-1], weight.shape[-1]
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    padded = F.pad(x, [total // 2, total - total // 2] * 3)
    y = torch.zeros(x.shape[0], weight.shape[0], out, out, out)
    for t in range(out):
        for i in range(out):
            for j in range(out):
                window = padded[:, :, t * stride :, i * stride :, j * stride :][:, :, :kernel, :kernel, :kernel]
                y[:, :, t, i, j] = torch.einsum("bcxyz,ocxyz->bo", window, weight)
    return y


@pytest.mark.parametrize(("size", "kernel", "stride"), [(6, 7, 2), (7, 7, 2), (5, 3, 1), (4, 1, 1)])
def test_i3d_units_pad_as_tensorflow_does(size, kernel, stride):
    unit = shake(i3d.Unit(2, 3, kernel, stride))
    x = torch.randn(1, 2, size, size, size, generator=torch.Generator().manual_seed(1))
    expected = F.relu(unit.bn(tensorflow_same(x, unit.conv3d.weight, stride)))
    assert torch.allclose(unit(x), expected, atol=1e-5)
    fold(unit)
    assert torch.allclose(unit(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))],
)
def test_i3d_pools_equal_the_pool_over_all_three_axes(kernel, stride):
    x = torch.rand(2, 3, 8, 7, 6)
    padded = i3d._same(x, kernel, stride)
    assert torch.equal(i3d.Pool(kernel, stride)(x), F.max_pool3d(padded, kernel, stride))
    assert i3d.Pool(kernel, stride)(x).shape[2:] == tuple(
        -(-side // s) for side, s in zip(x.shape[2:], stride, strict=True)
    )


def test_i3d_is_of_the_published_size_and_folding_changes_nothing():
    network = shake(i3d.I3D())
    assert sum(p.numel() for p in network.parameters()) == I3D_PARAMETERS
    x = torch.rand(1, 3, 16, 224, 224) * 2 - 1
    with torch.inference_mode():
        before = network(x)
        after = fold(network).to(memory_format=torch.channels_last_3d)(x.to(memory_format=torch.channels_last_3d))
    assert before.shape == (1, 400)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-4 * before.abs().max().item())


def test_i3d_input_is_bilinear_without_antialiasing():
    video = torch.zeros(16, 448, 448, 3, dtype=torch.uint8)
    video[:, ::2, ::2] = (
        255  # a grid that antialiasing would keep at a quarter as well, and that halves sample by pairs
    )
    video[:, 1::4] = 255
    x = i3d.prepare(video)
    expected = (
        F.interpolate(video[:1].permute(0, 3, 1, 2).float(), (224, 224), mode="bilinear", align_corners=False)[0]
        * 2
        / 255
        - 1
    )
    assert x.shape == (1, 3, 16, 224, 224)
    assert torch.allclose(x[0, :, 0], expected, atol=1e-6)
    wide = torch.zeros(9, 900, 900, 3, dtype=torch.uint8)
    wide[:, ::4] = 255
    assert (
        i3d.prepare(wide).std()
        > F.interpolate(wide[:1].permute(0, 3, 1, 2).float(), (224, 224), mode="bilinear", antialias=True).std() / 127.5
    )


# ----------------------------------------------------------------------------------------------------------------- C3D


def test_c3d_equals_its_layers_by_hand():
    network = shake(c3d.C3D())
    x = torch.rand(1, 3, 16, 112, 112) * 255
    h = x - network.mean
    for name in ("conv1a", "conv2a", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b"):
        layer = network.get_submodule(name)
        h = F.relu(F.conv3d(h, layer.weight, layer.bias, padding=1))
        if name == "conv1a":
            h = F.max_pool3d(h, (1, 2, 2))
        elif name in ("conv2a", "conv3b", "conv4b"):
            h = F.max_pool3d(h, 2)
        elif name == "conv5b":
            h = F.max_pool3d(F.pad(h, (0, 1, 0, 1)), 2)  # covers the border
    h = F.relu(network.fc7(F.relu(network.fc6(h.flatten(1)))))
    with torch.inference_mode():
        probabilities = network(x)
    assert torch.allclose(probabilities, network.fc8(h).softmax(1), atol=1e-6)
    assert probabilities.shape == (1, 101)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)


def test_c3d_input_is_bgr_of_the_evaluators_size_and_window():
    """Frames of 128 x 171 pixels, rows 8 to 119, columns 29 to 140, here worked out one by one."""
    y, x = np.mgrid[:128, :171]
    plane = np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8)
    seen = c3d.prepare(torch.from_numpy(np.repeat(plane[None], 16, axis=0)))
    assert seen.shape == (1, 3, 16, 112, 112)
    assert np.array_equal(seen[0, :, 7].numpy(), plane[8:120, 29:141, ::-1].transpose(2, 0, 1))
    # The corners of a frame of another size lie on those of the resized one.
    video = np.random.default_rng(0).integers(0, 256, (16, 60, 80, 3), dtype=np.uint8)
    seen = c3d.prepare(torch.from_numpy(video))
    for row, column in ((0, 0), (50, 30), (111, 111)):
        at = (row + 8) * 59 / 127, (column + 29) * 79 / 170
        (top, down), (left, right) = (divmod(place, 1) for place in at)
        corners = video[3, int(top) : int(top) + 2, int(left) : int(left) + 2].astype(float)
        expected = np.einsum("yxc,y,x->c", corners, [1 - down, down], [1 - right, right])
        assert seen[0, :, 3, row, column].numpy() == pytest.approx(expected[::-1], abs=1e-2)
    with pytest.raises(ValueError, match="16 frames, not 8"):
        c3d.prepare(torch.from_numpy(video[:8]))


def test_c3d_of_known_weights_has_a_known_answer():
    """A golden value of the whole path: size, window, order of colours, mean, pools and softmax."""
    network, generator = c3d.C3D(), torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("weight"):
            scale = (2 / value[0].numel()) ** 0.5 * (0.02 if name == "fc8.weight" else 1)
            value.copy_(torch.randn(value.shape, generator=generator) * scale)
        else:
            value.fill_(100.0 if name == "mean" else 0.0)
    t, y, x = np.mgrid[:16, :48, :64]
    video = np.stack([x * 4 % 256, y * 5 % 256, (x + y + 9 * t) % 256], axis=-1).astype(np.uint8)
    with torch.inference_mode():
        found = network(c3d.prepare(torch.from_numpy(video)))[0]
    # A window one pixel to the left gives 0.1497, 0.0885, 0.0824, 0.0498.
    assert found[[87, 67, 89, 31]].tolist() == pytest.approx([0.1443, 0.0885, 0.0820, 0.0514], abs=5e-4)


# ----------------------------------------------------------------------------------------------------------- Inception


def reference_inception():
    """pytorch-fid's network as clean-fid ships it, without its download."""
    from cleanfid import inception_pytorch as reference

    network = reference._inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    network.Mixed_5b, network.Mixed_5c, network.Mixed_5d = (
        reference.FIDInceptionA(192, 32), reference.FIDInceptionA(256, 64), reference.FIDInceptionA(288, 64),
    )  # fmt: skip
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        setattr(network, name, reference.FIDInceptionC(768, channels_7x7=width))
    network.Mixed_7b, network.Mixed_7c = reference.FIDInceptionE_1(1280), reference.FIDInceptionE_2(2048)
    network.fc = nn.Identity()
    network.dropout = nn.Identity()
    return network.eval()


def test_inception_equals_pytorch_fids():
    ours, theirs = shake(inception.Inception()), reference_inception()
    theirs.load_state_dict({n: v for n, v in ours.state_dict().items() if not n.startswith("fc.")})
    x = torch.rand(2, 3, 299, 299) * 2 - 1
    with torch.inference_mode():
        expected = theirs(x)
        assert torch.allclose(ours(x), expected, atol=1e-4 * expected.abs().max().item())
        assert torch.allclose(fold(ours)(x), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    assert expected.shape == (2, 2048)
    assert expected.std() > 0


@pytest.mark.parametrize("side", [64, 299, 512])
def test_clean_resize_is_clean_fids_to_a_grey_level(side):
    from cleanfid.resize import build_resizer

    frame = np.random.default_rng(side).integers(0, 256, (side, side + 20, 3), dtype=np.uint8)
    assert np.abs(inception.clean_resize(frame) - build_resizer("clean")(frame)).max() <= 1


# ------------------------------------------------------------------------------------------------------------- weights


def hassonys(name):
    """Our I3D names in kinetics_i3d_pytorch's spelling."""
    units = {
        "b0": "branch_0",
        "b1a": "branch_1.0",
        "b1b": "branch_1.1",
        "b2a": "branch_2.0",
        "b2b": "branch_2.1",
        "b3b": "branch_3.1",
    }
    parts = [units.get(part, part) for part in name.split(".")]
    name = ".".join(parts).replace("bn.", "batch3d.").replace("logits.conv3d", "conv3d_0c_1x1.conv3d")
    return name[0].lower() + name[1:]


SPELLINGS = {"VideoGPT's": lambda n: n, "kinetics_i3d_pytorch's": hassonys, "wrapped": lambda n: f"module.{n}"}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_i3d_knows_every_documented_spelling(spelling):
    with torch.device("meta"):
        names = i3d.I3D().state_dict()
    assert set(rename("i3d", {spelling(name): value for name, value in names.items()})) == set(names)


@pytest.fixture
def any_i3d(monkeypatch):
    """The name of a published file stands for any bytes."""
    monkeypatch.setitem(PUBLISHED, "i3d", dataclasses.replace(PUBLISHED["i3d"], files={"i3d_pretrained_400.pt": ""}))


def test_i3d_loads_what_was_stored_under_other_names(tmp_path, any_i3d):
    network = shake(i3d.I3D())
    torch.save(
        {hassonys(name): value for name, value in network.state_dict().items()}, tmp_path / "i3d_pretrained_400.pt"
    )
    loaded, digest = load_network("i3d", str(tmp_path))
    assert digest == hashlib.sha256((tmp_path / "i3d_pretrained_400.pt").read_bytes()).hexdigest()
    x = torch.rand(1, 3, 9, 224, 224)
    with torch.inference_mode():
        expected = network(x)
        assert torch.allclose(loaded(x), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_c3d_knows_chainers_names_and_its_mean_cube():
    with torch.device("meta"):
        state = {name: value for name, value in c3d.C3D().state_dict().items() if name != "mean"}
    chainers = {name.replace(".weight", "/W").replace(".bias", "/b"): torch.zeros(1) for name in state}
    assert set(rename("c3d", chainers)) == set(state)
    cube = np.random.default_rng(0).uniform(80, 120, (1, 3, 16, 128, 171)).astype(np.float32)
    mean = rename("c3d", chainers, {"mean": torch.from_numpy(cube)})["mean"]
    assert np.allclose(mean.numpy(), cube[0, :, :, 8:120, 29:141])
    stored = rename("c3d", {"mean/b": 128 - mean[None]})
    assert torch.allclose(stored["mean"], mean, atol=1e-4)


@pytest.mark.slow
def test_c3d_loads_from_chainers_file(tmp_path, monkeypatch):
    network = shake(c3d.C3D())
    arrays = {
        n.replace(".weight", "/W").replace(".bias", "/b"): v.numpy()
        for n, v in network.state_dict().items()
        if n != "mean"
    }
    np.savez(tmp_path / "conv3d_deepnetA_ucf.npz", **arrays)
    with pytest.raises(UserError, match=r"no 'mean'.*mean2\.npz"):
        load_network("c3d", str(tmp_path))
    np.savez(tmp_path / "mean2.npz", mean=np.full((1, 3, 16, 128, 171), 97, np.float32))
    with pytest.raises(UserError, match=r"mean2\.npz has sha256 .* published file f981f1e195822705"):
        load_network("c3d", str(tmp_path))
    monkeypatch.setitem(PUBLISHED, "c3d", dataclasses.replace(PUBLISHED["c3d"], extra_sha256=""))
    loaded, _ = load_network("c3d", str(tmp_path))
    assert torch.equal(loaded.fc8.bias, network.fc8.bias)
    assert loaded.mean.unique().tolist() == [97]


def test_what_is_wrong_with_weights_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"ssv2-probe\.pth\.tar, or vjepa\.safetensors, there"):
        find("vjepa", str(tmp_path))
    with pytest.raises(UserError, match=r"I3D.*i3d_torchscript\.pt.*Apache-2\.0.*nothing is downloaded"):
        find("i3d", str(tmp_path))
    (tmp_path / "i3d_torchscript.pt").write_bytes(b"not it")
    with pytest.raises(UserError, match=r"sha256 .* published file bec6519f66ea534e"):
        find("i3d", str(tmp_path))
    (tmp_path / "i3d_torchscript.pt").unlink()
    (tmp_path / "i3d.safetensors").write_bytes(b"nor this")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_network("i3d", str(tmp_path))
    save_file({"Mixed_3b.b0.conv3d.weight": torch.zeros(1)}, tmp_path / "i3d.safetensors")
    with pytest.raises(UserError, match="names are missing"):
        load_network("i3d", str(tmp_path))
    assert all(known.licence and known.source for known in PUBLISHED.values())
