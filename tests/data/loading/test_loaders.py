"""What the sources hand to training: aligned batches, frame rates, and what happens to samples that cannot be used."""

import itertools

import numpy as np
import pytest
import torch
from small_sources import N, clips, scene, write_tar

import mav.data.loading.loaders as loaders
from mav.data.loading.loaders import CaptionedImages, ImageSource, fit
from mav.data.shards import json_bytes
from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.recipes import FpsCurriculum
from mav.storage import Folder
from mav.world.drawing import draw


def blank(folder, *keys):
    """Pictures of the first tar become zeros."""
    places = loaders.index_tar(folder, "00000-00000.tar")
    with open(folder.path("00000-00000.tar"), "r+b") as file:
        for key in keys:
            file.seek(places[key]["jpg"][0])
            file.write(bytes(places[key]["jpg"][1]))


def test_image_batches_are_aligned_with_their_embeddings(images):
    source = ImageSource(*images, size=12, seed=0)
    batch = source.batch(0, N)
    assert len(source) == N
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "pixels": ((N, 3, 12, 12), torch.uint8), "image_embedding": ((N, 3), torch.float32),
        "text_embedding": ((N, 3), torch.float32), "tokens": ((N, 4), torch.int64)}  # fmt: skip
    order = batch["tokens"][:, 0].tolist()
    assert sorted(order) == list(range(N))
    for i, pixels, embedding in zip(order, batch["pixels"], batch["image_embedding"], strict=True):
        assert embedding[0] == i
        expected = fit(draw(scene(i), 24)[None], 12)[0]
        assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - expected).mean() < 8


def test_unreadable_samples_give_way_and_are_counted(images):
    folder, embeds = images
    whole = ImageSource(folder, embeds, size=12, seed=0).batch(0, N)["tokens"][:, 0].tolist()
    blank(folder, "000000000000002")
    source = ImageSource(folder, embeds, size=12, seed=0, corrupted_share=0.2)
    got = source.batch(0, N)
    place = whole.index(2)
    expected = [t if t != 2 else whole[(place + 1) % N] for t in whole]
    assert got["tokens"][:, 0].tolist() == expected
    assert len(source.unreadable) == 1


def test_more_corrupted_samples_than_the_recipe_allows_stop_the_run(images):
    folder, embeds = images
    blank(folder, "000000000000000", "000000000000001")
    source = ImageSource(folder, embeds, size=12, seed=0, corrupted_share=0.3)
    source.batch(0, N)
    assert source.counts == {"samples": N, "corrupted": 2}
    with pytest.raises(UserError, match=r"2 of the 7 samples.*corrupted_share"):
        ImageSource(folder, embeds, size=12, seed=0, corrupted_share=0.2).batch(0, N)


def test_an_empty_batch_is_an_error(shards):
    with pytest.raises(ValueError, match="a batch of 0"):
        clips(shards).batch(0, 0)


def test_nothing_readable_and_nothing_at_all_are_user_errors(images, shards, tmp_path):
    folder, _ = images
    with pytest.raises(UserError, match=r"None of the 5 samples.*too_short"):
        clips(shards, frames=25).batch(0, 1)
    with pytest.raises(UserError, match="nothing to train on"):
        ImageSource(folder, Folder(str(tmp_path / "empty")), size=8, seed=0)
    with pytest.raises(UserError, match="no shards"):
        clips(Folder(str(tmp_path / "empty")))


def test_corrupted_files_are_named(images, shards):
    folder, embeds = images
    shards.write_bytes("00000.tar", shards.read_bytes("00000.tar")[:9000])
    with pytest.raises(UserError, match=r"00000\.tar"):
        clips(shards)
    embeds.write_bytes("00000-00001.text.npy", b"\x93NUMPY")
    with pytest.raises(UserError, match=r"00000-00001\.text\.npy"):
        ImageSource(folder, embeds, size=8, seed=0).batch(0, N)
    embeds.remove("00000-00001.text.npy")
    with pytest.raises(UserError, match=r"00000-00001\.text\.npy"):
        ImageSource(folder, embeds, size=8, seed=0).batch(0, N)


def test_captioned_images(images):
    folder, _ = images

    def tokenize(captions):
        return torch.tensor([[int(c.split()[1])] * 3 for c in captions])

    source = CaptionedImages(folder, 12, 0, tokenize)
    batch = source.batch(0, N + 1)
    assert sorted(batch["tokens"][:, 0].tolist()) == list(range(N + 1))
    assert batch["pixels"].shape == (N + 1, 3, 12, 12)
    assert batch["punsafe"].tolist() == [0.5] * (N + 1)
    assert batch["pwatermark"].isnan().all()
    assert batch["pwatermark"].dtype == torch.float32


def test_clip_batches_move_at_the_rate_they_say(shards):
    source = clips(shards, total_samples=4)
    batch = source.batch(0, 12)
    assert batch["pixels"].shape == (12, 8, 3, 16, 16)
    assert batch["pixels"].dtype == torch.uint8
    assert batch["fps"].dtype == torch.float32
    assert (batch["fps"] >= 24 * 7 / 23 - 1e-3).all()
    assert (batch["fps"] <= 24).all()
    assert source.counts["samples"] == 12
    assert source.counts["clamped"] > 0
    moved = (batch["pixels"][:, 0].float() - batch["pixels"][:, -1].float()).abs().mean(dim=(1, 2, 3))
    assert (moved > 0.5).all()


def test_progress_slides_the_rates(shards):
    source = clips(shards, frames=4, total_samples=400, fps=FpsCurriculum(low=4, high=24))
    rates = source.batch(0, 400)["fps"]
    assert rates[:100].mean() > rates[-100:].mean() + 3


def test_clips_too_short_for_the_rate_are_passed_over_when_the_recipe_says_so(tmp_path):
    """Two clips of one second, three of four: at one frame a second only the long ones can show four frames."""
    folder = Folder(str(tmp_path / "mixed"))
    samples = {}
    for i, frames in enumerate((24, 96, 96, 24, 96)):
        pixels = np.full((frames, 32, 32, 3), 40 * i + 20, np.uint8)
        samples[f"{i:010d}"] = {"mp4": encode_mp4(pixels, 24), "json": json_bytes({"fps": 24.0, "frames": frames})}
    write_tar(folder, "00000.tar", samples)
    slow = {"low": 1.0, "high": 1.01, "start": (1.0, 1.0), "end": (1.0, 1.0)}
    clamped, skipped = (
        clips(folder, frames=4, fps=FpsCurriculum(short_clips=policy, **slow)) for policy in ("clamp", "skip")
    )
    seen = [
        {round((float(v.float().mean()) - 20) / 40) for v in source.batch(0, 10)["pixels"]}
        for source in (clamped, skipped)
    ]
    assert seen == [{0, 1, 2, 3, 4}, {1, 2, 4}]
    assert clamped.counts == {"samples": 10, "clamped": 4}
    assert skipped.counts == {"samples": 10, "too_short": skipped.counts["too_short"]}
    assert skipped.counts["too_short"] >= 4
    assert not skipped.unreadable
    assert [skipped.batch(n, 1)["fps"] for n in range(10)] == list(skipped.batch(0, 10)["fps"])


@pytest.mark.parametrize("held_out", [0, 1])
def test_when_all_clips_are_too_short_it_says_how_long_they_are(tmp_path, held_out):
    folder, pixels = Folder(str(tmp_path / "short")), np.zeros((5, 32, 32, 3), np.uint8)
    clip = {"mp4": encode_mp4(pixels, 24), "json": json_bytes({"fps": 24.0, "frames": 5})}
    write_tar(folder, "00000.tar", {f"{i:010d}": clip for i in range(3)})
    source = clips(folder, frames=8)
    sentence = "a sample takes 8 frames and the longest clip has 5, so lower `cascade.frames`"
    with pytest.raises(UserError, match=sentence):
        source.hold_out(held_out, 4) if held_out else source.batch(0, 1)


def test_clips_of_uneven_time_and_clips_within_a_video(tmp_path):
    """Frame i has level 10 i. One clip runs at ten, then at five frames a second; the other begins at frame 6."""
    folder = Folder(str(tmp_path / "times"))
    pixels = np.stack([np.full((32, 32, 3), 10 * i, np.uint8) for i in range(20)])
    times = [0.1 * i if i < 10 else 0.9 + 0.2 * (i - 9) for i in range(20)]
    metadata = {"0": {"fps": 6.6, "frames": 20, "times": times}, "1": {"fps": 10.0, "frames": 12, "first": 6}}
    write_tar(
        folder,
        "00000.tar",
        {key: {"mp4": encode_mp4(pixels, 10), "json": json_bytes(value)} for key, value in metadata.items()},
    )
    source = clips(folder, frames=4, fps=FpsCurriculum(low=5, high=5.001))
    for sample, rate in zip(*source.batch(0, 40).values(), strict=True):
        numbers = [round(float(frame.float().mean()) / 10) for frame in sample]
        uneven = [abs(times[b] - times[a] - 0.2) < 0.11 for a, b in itertools.pairwise(numbers)]
        within = numbers[0] >= 6 and numbers[-1] < 18 and np.diff(numbers).tolist() == [2, 2, 2]
        assert rate == pytest.approx(5, abs=0.01)
        assert all(uneven) or within, numbers


def test_a_clip_that_cannot_be_decoded_takes_no_memory(shards, monkeypatch):
    source = clips(shards)
    room = source._room
    monkeypatch.setattr(loaders, "read_squares", lambda *_: (_ for _ in ()).throw(ValueError("broken")))
    with pytest.raises(ValueError, match="broken"):
        source.read(0, 0)
    assert source._room == room
    monkeypatch.undo()
    source.read(0, 0)
    assert source._room < room
