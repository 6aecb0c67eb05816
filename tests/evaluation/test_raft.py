"""RAFT against a slow account of its authors' network, with made-up weights under the names of their file."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mav.errors import UserError
from mav.evaluation.features import Networks
from mav.evaluation.networks import raft, weights

FILE = "raft-things.pth"


def published() -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of the authors' file, from their public code: `RAFT` that is not small, in DataParallel."""
    convolutions: dict[str, tuple[int, ...]] = {}
    norms: dict[str, int] = {}
    for root in ("fnet", "cnet"):
        convolutions |= {f"{root}.conv1": (64, 3, 7, 7), f"{root}.conv2": (256, 128, 1, 1)}
        norms[f"{root}.norm1"] = 64
        for layer, (before, out) in enumerate(((64, 64), (64, 96), (96, 128)), 1):
            for block, channels in enumerate((before, out)):
                name = f"{root}.layer{layer}.{block}"
                convolutions |= {f"{name}.conv1": (out, channels, 3, 3), f"{name}.conv2": (out, out, 3, 3)}
                norms |= {f"{name}.norm1": out, f"{name}.norm2": out}
                if layer > 1 and block == 0:
                    convolutions[f"{name}.downsample.0"] = (out, channels, 1, 1)
                    norms |= {f"{name}.norm3": out, f"{name}.downsample.1": out}
    update = "update_block"
    convolutions |= {
        f"{update}.encoder.convc1": (256, 324, 1, 1), f"{update}.encoder.convc2": (192, 256, 3, 3),
        f"{update}.encoder.convf1": (128, 2, 7, 7), f"{update}.encoder.convf2": (64, 128, 3, 3),
        f"{update}.encoder.conv": (126, 256, 3, 3), f"{update}.flow_head.conv1": (256, 128, 3, 3),
        f"{update}.flow_head.conv2": (2, 256, 3, 3), f"{update}.mask.0": (256, 128, 3, 3),
        f"{update}.mask.2": (576, 256, 1, 1),
    }  # fmt: skip
    for gate in "zrq":
        convolutions |= {f"{update}.gru.conv{gate}1": (128, 384, 1, 5), f"{update}.gru.conv{gate}2": (128, 384, 5, 1)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in convolutions.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, width in norms.items():
        if name.startswith("cnet"):  # the other one's have no parameters
            shapes |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
            shapes[f"{name}.num_batches_tracked"] = ()
    return shapes


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Made-up weights of a size that keeps signals alive, in the authors' file; the digest is not the published one."""
    monkeypatch.setitem(weights.PUBLISHED["raft"].files, FILE, "")
    generator, made = torch.Generator().manual_seed(0), {}
    for name, shape in published().items():
        noise = torch.rand(shape, generator=generator)
        if name.endswith(("running_var", "num_batches_tracked")) or (".norm" in name and name.endswith("weight")):
            made[name] = 0.5 + noise
        else:
            made[name] = (2 * noise - 1) * (3 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.4 * noise - 0.2
    for name in made:
        if ".downsample.1." in name:  # one module under two names
            made[name] = made[name.replace("downsample.1", "norm3")]
    made["update_block.flow_head.conv2.weight"] *= 4  # so that the flow is of some pixels
    torch.save({f"module.{name}": value for name, value in made.items()}, tmp_path / FILE)
    return {name: value.double() for name, value in made.items()}


def flow_of(state, first, second, updates):
    """Returns the flow (2, H, W) between pictures (3, H, W) in [-1, 1], as the paper and the authors' code say it."""

    def conv(name, x, stride=1):
        kernel = state[f"{name}.weight"]
        padding = tuple(side // 2 for side in kernel.shape[2:])
        return F.conv2d(x[None], kernel, state[f"{name}.bias"], stride, padding)[0]

    def norm(name, x):
        if name.startswith("fnet"):
            flat = x.flatten(1)
            return (
                (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
            ).view_as(x)
        mean, var, scale, offset = (state[f"{name}.{part}"][:, None, None]
                                    for part in ("running_mean", "running_var", "weight", "bias"))  # fmt: skip
        return (x - mean) / (var + 1e-5).sqrt() * scale + offset

    def encoder(root, x):
        x = norm(f"{root}.norm1", conv(f"{root}.conv1", x, 2)).clamp(min=0)
        for layer, stride in ((1, 1), (2, 2), (3, 2)):
            for block in range(2):
                name, step = f"{root}.layer{layer}.{block}", stride if block == 0 else 1
                y = norm(f"{name}.norm1", conv(f"{name}.conv1", x, step)).clamp(min=0)
                y = norm(f"{name}.norm2", conv(f"{name}.conv2", y)).clamp(min=0)
                if step != 1:
                    x = norm(f"{name}.norm3", conv(f"{name}.downsample.0", x, step))
                x = (x + y).clamp(min=0)
        return conv(f"{root}.conv2", x)

    def at(volume, x, y):
        """Returns volume (N, h, w) at the places (N,), bilinearly, 0 outside."""
        found = torch.zeros(len(volume), dtype=torch.float64)
        for dx in (0, 1):
            for dy in (0, 1):
                column, row = x.floor().long() + dx, y.floor().long() + dy
                share = (1 - (x - column).abs()) * (1 - (y - row).abs())
                inside = (column >= 0) & (row >= 0) & (column < volume.shape[2]) & (row < volume.shape[1])
                held = volume[
                    torch.arange(len(volume)), row.clamp(0, volume.shape[1] - 1), column.clamp(0, volume.shape[2] - 1)
                ]
                found += share * inside * held
        return found

    one, two = encoder("fnet", first), encoder("fnet", second)
    height, width = one.shape[1:]
    volumes = [(one.flatten(1).T @ two.flatten(1)).view(-1, height, width) / 256**0.5]
    for _ in range(3):
        volumes.append(F.avg_pool2d(volumes[-1][None], 2)[0])
    hidden, context = encoder("cnet", first).split(128)
    hidden, context = hidden.tanh(), context.clamp(min=0)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    start = torch.stack([columns, rows]).double()
    flow, root = torch.zeros_like(start), "update_block"
    for _ in range(updates):
        x, y = (start + flow).flatten(1)
        looked = [at(volume, x / 2**level + i - 4, y / 2**level + j - 4)  # the first offset is of x
                  for level, volume in enumerate(volumes) for i in range(9) for j in range(9)]  # fmt: skip
        seen = torch.stack(looked).view(-1, height, width)
        for name in ("convc1", "convc2"):
            seen = conv(f"{root}.encoder.{name}", seen).clamp(min=0)
        moved = flow
        for name in ("convf1", "convf2"):
            moved = conv(f"{root}.encoder.{name}", moved).clamp(min=0)
        motion = conv(f"{root}.encoder.conv", torch.cat([seen, moved])).clamp(min=0)
        given = torch.cat([context, motion, flow])
        for number in (1, 2):
            both = torch.cat([hidden, given])
            z, r = (conv(f"{root}.gru.conv{gate}{number}", both).sigmoid() for gate in "zr")
            new = conv(f"{root}.gru.convq{number}", torch.cat([r * hidden, given])).tanh()
            hidden = (1 - z) * hidden + z * new
        flow = flow + conv(f"{root}.flow_head.conv2", conv(f"{root}.flow_head.conv1", hidden).clamp(min=0))
    shares = conv(f"{root}.mask.2", conv(f"{root}.mask.0", hidden).clamp(min=0)) / 4
    shares = shares.view(9, 8, 8, height, width).softmax(0)
    around, whole = F.pad(flow, (1, 1, 1, 1)), torch.zeros(2, height, 8, width, 8, dtype=torch.float64)
    for k in range(9):
        neighbour = around[:, k // 3 : k // 3 + height, k % 3 : k % 3 + width]
        whole += 8 * torch.einsum("ijyx,cyx->cyixj", shares[k], neighbour)
    return whole.reshape(2, 8 * height, 8 * width)


def video(height=130, width=139, count=3):
    """Coarse noise that moves right."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 11, 3), np.uint8)
    ground = coarse.repeat(8, 0).repeat(8, 1)
    return np.stack([ground[:height, 80 - 5 * number :][:, :width] for number in range(count)])


def test_the_flow_is_the_slow_accounts(state, tmp_path, monkeypatch):
    monkeypatch.setattr(raft, "UPDATES", 3)
    network, _ = weights.load_network("raft", str(tmp_path))
    first, second = (raft.prepare(frame) for frame in video(count=2))
    assert first.shape == (1, 3, 136, 144)
    assert torch.equal(first[0, :, :, 0], first[0, :, :, 2]), "5 columns are repeated: 2 before, 3 after"
    assert torch.equal(first[0, :, :, -1], first[0, :, :, -4])
    found = raft.optical_flow(network, first, second)
    expected = flow_of(state, first[0].double(), second[0].double(), 3).permute(1, 2, 0).numpy()
    assert np.abs(expected).mean() > 1
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    other = flow_of(state, second[0].double(), first[0].double(), 3).permute(1, 2, 0).numpy()
    assert np.abs(found - other).max() > 0.1 * np.abs(expected).max(), "the order of the frames counts"


def test_torchvisions_names_are_accepted_too_and_none_is_left_over(state, tmp_path):
    from safetensors.torch import save_file

    given = {raft.torchvision_name(name) for name in state if ".norm3." not in name}
    assert given == set(raft.network().state_dict())
    network, _ = weights.load_network("raft", str(tmp_path))
    (tmp_path / "other").mkdir()
    save_file(network.state_dict(), tmp_path / "other" / "raft.safetensors")
    again, _ = weights.load_network("raft", str(tmp_path / "other"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("flow", "moves"), [(7.0, 1), (5.9, 0)])
def test_a_video_moves_when_its_flow_is_vbenchs_six_pixels(state, tmp_path, monkeypatch, flow, moves):
    given = []

    def constant(network, first, second):
        given.append(first.shape)
        return np.full((*first.shape[2:], 2), flow / 2**0.5, np.float32)

    monkeypatch.setattr(raft, "optical_flow", constant)
    row = Networks(("whole raft",), str(tmp_path)).rows(video(256, 300, count=16), 8.0)["whole raft"]
    assert row.tolist() == [moves]
    assert set(given) == {(1, 3, 256, 304)}
    assert len(given) == (4 if moves else 12), "four pairs of fifteen are enough, and twelve that are still leave none"


def test_weights_that_are_wrong_are_told(state, tmp_path, monkeypatch):
    monkeypatch.setattr(raft, "UPDATES", 1)
    bad = {
        f"module.{name}": torch.full_like(value, torch.nan) if "flow_head" in name else value
        for name, value in state.items()
    }
    torch.save(bad, tmp_path / FILE)
    with pytest.raises(UserError, match=r"flow_head.* is not finite: give raft"):
        Networks(("whole raft",), str(tmp_path)).rows(video(), 8.0)


@pytest.mark.parametrize(
    ("height", "width", "padded"),
    [
        (32, 32, (128, 128)),
        (1, 300, (128, 904)),
        (300, 2, (904, 128)),
        (512, 910, (512, 912)),
        (512, 4000, (136, 1024)),
    ],
)
def test_frames_of_any_shape_become_some_that_raft_takes(height, width, padded):
    assert raft.prepare(raft.scaled(np.zeros((height, width, 3), np.uint8))).shape[2:] == padded
