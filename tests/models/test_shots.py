"""TransNetV2 beside a slow account of its published description, and the file in which its weights come."""

import av
import numpy as np
import pytest
import torch

from mav.data.videos.scores import SCORES
from mav.data.videos.scores.learned import changes_of, small_colours
from mav.data.videos.transcode import convert
from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.models.shots import TransNetV2, read_shot_network
from mav.recipes import VideoShards

KEY = "video_shards.shot_weights"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights by the published names."""
    generator, made, before = torch.Generator().manual_seed(0), {}, 3

    def draw(name: str, *shape: int) -> None:
        scale = max(int(np.prod(shape[1:])), 1) ** -0.5
        made[name] = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    for stage, width in enumerate((16, 32, 64)):
        for block in range(2):
            name = f"SDDCNN.{stage}.DDCNN.{block}"
            for step in (1, 2, 4, 8):
                draw(f"{name}.Conv3D_{step}.layers.0.weight", 2 * width, before, 1, 3, 3)
                draw(f"{name}.Conv3D_{step}.layers.1.weight", width, 2 * width, 3, 1, 1)
            for part in ("weight", "bias", "running_mean"):
                draw(f"{name}.bn.{part}", 4 * width)
            made[f"{name}.bn.running_var"] = torch.rand(4 * width, generator=generator, dtype=torch.float64) + 0.1
            before = 4 * width
    for name, width, size in (
        ("frame_sim_layer.projection", 448, 128), ("frame_sim_layer.fc", 101, 128), ("color_hist_layer.fc", 101, 128),
        ("fc1", 4864, 1024), ("cls_layer1", 1024, 1), ("cls_layer2", 1024, 1),
    ):  # fmt: skip
        draw(f"{name}.weight", size, width)
        draw(f"{name}.bias", size)
    return made


def by_hand(state: dict[str, torch.Tensor], frames: np.ndarray) -> np.ndarray:
    """The logits of one window, float64, in sums over shifted frames and a loop over pairs of frames."""
    w = {name: value.numpy() for name, value in state.items()}
    x, means = frames / 255.0, []  # channels last

    def shifted(x: np.ndarray, axis: int, by: int) -> np.ndarray:
        padded = np.pad(x, [(abs(by), abs(by)) if i == axis else (0, 0) for i in range(4)])
        return padded.take(np.arange(x.shape[axis]) + abs(by) + by, axis)

    def block(x: np.ndarray, name: str) -> np.ndarray:
        parts = []
        for step in (1, 2, 4, 8):
            space, time = (w[f"{name}.Conv3D_{step}.layers.{i}.weight"] for i in (0, 1))
            y = sum(
                shifted(shifted(x, 1, i - 1), 2, j - 1) @ space[:, :, 0, i, j].T for i in range(3) for j in range(3)
            )
            parts.append(sum(shifted(y, 0, step * (i - 1)) @ time[:, :, i, 0, 0].T for i in range(3)))
        mean, var, scale, bias = (w[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return (np.concatenate(parts, -1) - mean) / np.sqrt(var + 1e-3) * scale + bias

    for stage in range(3):
        first = np.maximum(block(x, f"SDDCNN.{stage}.DDCNN.0"), 0)
        x = np.maximum(block(first, f"SDDCNN.{stage}.DDCNN.1"), 0) + first
        height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
        x = x[:, :height, :width].reshape(len(x), height // 2, 2, width // 2, 2, -1).mean(axis=(2, 4))
        means.append(x.mean(axis=(1, 2)))

    def layer(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    bins = [np.bincount(((f >> 5) @ [64, 8, 1]).ravel(), minlength=512) for f in frames.astype(int)]
    both = []
    for vectors, name in (
        (np.array(bins, float), "color_hist_layer.fc"),
        (layer(np.concatenate(means, 1), "frame_sim_layer.projection"), "frame_sim_layer.fc"),
    ):
        near = np.zeros((len(vectors), 101))
        for a, one in enumerate(vectors):
            for b, other in enumerate(vectors):
                if abs(b - a) <= 50:
                    near[a, b - a + 50] = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        both.append(np.maximum(layer(near, name), 0))
    flat = np.concatenate([*both, x.reshape(len(x), -1)], 1)
    return layer(np.maximum(layer(flat, "fc1"), 0), "cls_layer1")[:, 0]


def test_the_network_is_the_published_one(state) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (60, 27, 48, 3), np.uint8)
    expected = by_hand(state, frames)
    found = TransNetV2.from_state(state).double()(torch.from_numpy(frames)[None])[0]
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)  # cosines of colours are of single precision


def test_windows_join_without_a_seam(state) -> None:
    network = TransNetV2.from_state(state)
    network.forward = lambda frames: frames[..., 0, 0, 0].float()  # each frame's own number
    frames = torch.arange(120, dtype=torch.uint8)[:, None, None, None].expand(-1, 27, 48, 3)
    assert torch.equal(network.probabilities(frames), torch.arange(120.0).sigmoid())


def test_changes_are_runs_and_weak_ones_stay_for_a_lower_threshold() -> None:
    chance = np.array([0, 0.9, 0, 0, 0.2, 0.6, 0.8, 0.3, 0, 0.3, 0, 0, 0.9])
    found = [(cut.before, cut.after, cut.score) for cut in changes_of(chance)]
    assert found == [(1, 2, 0.9), (5, 7, 0.8), (9, 10, 0.3)], "nothing changes after the last frame"


def test_a_file_of_something_else_or_of_nothing_is_named(state, tmp_path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf"`{KEY}` .* is no state dict of TransNetV2: .*convert_weights"):
        read_shot_network(str(tmp_path / "other.pth"))
    with pytest.raises(UserError, match=rf"`{KEY}` .*none\.pth"):
        read_shot_network(str(tmp_path / "none.pth"))
    torch.save(state, tmp_path / "good.pth")
    assert read_shot_network(str(tmp_path / "good.pth")).head.weight.shape == (1, 1024)


@pytest.mark.parametrize("reencode", [True, False])
def test_a_clip_has_its_cuts_by_the_network_and_all_else_as_ever(state, tmp_path, reencode: bool) -> None:
    torch.save(state, tmp_path / "shots.pth")
    draws = np.random.default_rng(0)
    shots = [draws.integers(0, 256, (1, 4, 4, 3), np.uint8).repeat(16, 1).repeat(16, 2).repeat(12, 0) for _ in range(3)]
    data, rule = encode_mp4(np.concatenate(shots), 24), VideoShards(short_side=64, reencode=reencode)
    plain = convert(data, rule).scores
    learned = convert(
        data, VideoShards(short_side=64, reencode=reencode, shot_weights=str(tmp_path / "shots.pth"))
    ).scores
    by_network = {"cut", "cut_before", "cut_after", "cut_scores"}
    assert set(plain) == set(learned) == set(SCORES)
    assert {name for name in SCORES if plain[name] != learned[name]} <= by_network
    assert learned["cut_before"] != plain["cut_before"], "the weights are random numbers, so their cuts are elsewhere"
    assert all(0.1 <= score <= 1 for score in learned["cut_scores"])
    assert learned["cut"] == max(learned["cut_scores"], default=0.0)
    assert len(learned["cut_before"]) == len(learned["cut_after"]) == len(learned["cut_scores"])


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (90, 140, 60)])
def test_the_network_reads_the_colours_that_were_encoded(colour: tuple[int, int, int]) -> None:
    frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), colour, np.uint8), format="rgb24")
    planes = frame.reformat(format="yuv420p").to_ndarray()
    assert np.abs(small_colours(planes).astype(int) - colour).max() <= 3
