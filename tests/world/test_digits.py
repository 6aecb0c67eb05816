"""A world of handwritten digits: who is drawn where, what is said of it, and that it is read back."""

import dataclasses
import itertools
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mav.data.videos.video_io import read_frames
from mav.errors import UserError
from mav.recipes import World
from mav.storage import Folder
from mav.world.digits import DIGITS, READER_FOLDER, DigitCast, digit_scene, split_digits
from mav.world.drawing import GROUNDS, draw, draw_clip, draw_ground
from mav.world.idx_files import Digits, read_digits, write_digits
from mav.world.oracle import NOTHING
from mav.world.reading_digits import reader_of
from mav.world.verdict import Material, oracle_verdict
from mav.world.world import draw_world
from tests.world.printed_digits import printed_digits, write_printed


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = Folder(str(tmp_path_factory.mktemp("digits")))
    write_printed(folder, 40)
    return folder


@pytest.fixture(scope="module")
def parts(files):
    return split_digits(read_digits(files), 0)


@pytest.fixture(scope="module")
def reader(parts, tmp_path_factory):
    world = Folder(str(tmp_path_factory.mktemp("reader")))
    write_digits(world.child(READER_FOLDER), parts.reader)
    return reader_of(world)


def pictures(digits: Digits) -> set[bytes]:
    return {image.tobytes() for image in digits.images}


def test_the_parts_share_no_picture_and_each_has_every_digit(files, parts):
    each = [parts.training, parts.evaluation, parts.reader]
    assert all(set(part.labels) == set(range(10)) for part in each)
    assert all(not pictures(a) & pictures(b) for a, b in itertools.combinations(each, 2))
    assert sum(map(len, each)) == len(read_digits(files))
    again, other = split_digits(read_digits(files), 0), split_digits(read_digits(files), 1)
    assert np.array_equal(again.training.images, parts.training.images)
    assert not np.array_equal(other.training.images, parts.training.images)


def test_a_picture_that_is_in_the_files_twice_is_in_one_part(files, tmp_path):
    twice = read_digits(files)
    write_digits(Folder(str(tmp_path)), Digits(np.tile(twice.images, (2, 1, 1)), np.tile(twice.labels, 2)))
    parts = split_digits(read_digits(Folder(str(tmp_path))), 0)
    assert not pictures(parts.training) & pictures(parts.reader)
    assert len(parts.training) + len(parts.evaluation) + len(parts.reader) == len(twice)


def test_too_few_pictures_of_a_digit_are_refused():
    digits = printed_digits(10)
    with pytest.raises(UserError, match=r"9 different pictures of the digit zero.*bring more"):
        split_digits(digits.take(np.arange(1, len(digits))), 0)


@pytest.mark.parametrize("size", [32, 61, 128])
def test_a_digit_is_drawn_as_large_as_its_scene_says_wherever_it_is(parts, size):
    for seed in range(10):
        scene = digit_scene(np.random.default_rng(seed), parts.training)
        picture = draw(scene, size).mean(axis=2)
        inside = picture > np.median(picture) + 20
        down, across = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        assert (max(len(down), len(across)) / size) == pytest.approx(2 * scene.radius, abs=0.06)
        middle = (across.mean() + 0.5) / size, (down.mean() + 0.5) / size
        assert np.hypot(*np.subtract(middle, scene.centre)) < 0.04
        assert picture.max() > 200


@pytest.fixture(scope="module")
def world(files, tmp_path_factory):
    folder = Folder(str(tmp_path_factory.mktemp("world")))
    section = World(kind="digits", files=files.url, images=80, clips=4, clip_frames=12, size=32, evaluation_clips=11,
                    port=0)  # fmt: skip
    return folder, section, draw_world(section, 3, folder)


def test_same_files_same_bytes(world, tmp_path):
    folder, section, counts = world
    again = Folder(str(tmp_path))
    assert draw_world(section, 3, again) == counts
    assert [(n, folder.sha256(n)) for n in folder.names()] == [(n, again.sha256(n)) for n in again.names()]


def test_captions_sets_and_prompts_name_the_digit_that_is_there(world):
    folder, section, _ = world
    truth = folder.read_json("truth.json")
    assert truth["colours"] == []
    assert truth["shapes"] == list(DIGITS)
    tables = [pq.read_table(folder.path(f"laion/{name}.parquet")) for name in ("joined", "relaion")]
    for url, caption in [row for t in tables for row in zip(*(t.column(i).to_pylist() for i in (0, 1)), strict=True)]:
        known = truth["images"][url.split("/", 3)[3]]
        assert known["colour"] is None
        assert caption is None or known["shape"] in caption.replace(",", "").split()
    classes = folder.read_bytes("ucf101/class_prompts.txt").decode().splitlines()
    assert classes == [f"the digit {name}" for name in DIGITS]
    listed = folder.read_bytes("ucf101/trainlist01.txt").decode().split("\r\n")
    assert listed[-2] == "Zero/v_Zero_g01_c02.mp4 1", "after all ten, the first again"
    captions = folder.read_json("msrvtt/captions.json")["sentences"]
    assert len(captions) == 2 * section.evaluation_clips
    assert all(DIGITS[i // 2 % 10] in s["caption"] for i, s in enumerate(captions))
    prompts = folder.read_json("prompts.json")
    assert len(prompts) >= 24
    assert {p["shape"] for p in prompts} == set(DIGITS)
    assert len({p["prompt"] for p in prompts}) >= 20
    assert all(p["shape"] in p["prompt"] and p["colour"] is None for p in prompts)
    assert len(read_digits(folder.child(READER_FOLDER))) == 160


@pytest.mark.slow
def test_held_out_clips_are_read_as_their_class(world, reader):
    folder, *_ = world
    names = [name for name in folder.names() if name.endswith(".mp4") and name.startswith("ucf101/")]
    right = [
        reader(frame).shape == name.split("/")[1].lower()
        for name in names
        for frame in read_frames(folder.read_bytes(name))[::4]
    ]
    assert np.mean(right) >= 0.9


def moving(parts, count=4):
    """Scenes of evaluation digits that move steadily and stay inside for a second."""
    drawn = []
    for seed in range(count):
        scene = digit_scene(np.random.default_rng([9, seed]), parts.evaluation, seed % 10)
        speed = np.array(scene.velocity) * 0.35 / np.hypot(*scene.velocity)
        drawn.append(dataclasses.replace(scene, radius=0.25, centre=tuple(0.5 - 0.5 * speed), velocity=tuple(speed)))
    return drawn


def verdict_on(videos, drawn, reader, **more):
    truths = [{"colour": None, "shape": scene.shape} for scene in drawn]
    training = [draw_clip(scene, 32, 15, 16) for scene in drawn[:2]]
    return oracle_verdict(Material(videos, truths, training, skip=2, shapes=DIGITS, reader=reader,
                                   reader_error=reader.error, **more), draws=20)  # fmt: skip


def test_true_clips_get_full_marks(parts, reader):
    drawn = moving(parts)
    rates = {rate: [draw_clip(scene, 32, 4, rate) for scene in drawn] for rate in (4.0, 16.0)}
    verdict = verdict_on([draw_clip(scene, 32, 15, 16) for scene in drawn], drawn, reader, rates=rates)
    assert verdict["shape"] == 1
    assert verdict["persistence"] > 0.9
    assert verdict["speed_ratio"] == pytest.approx(1, abs=0.1)
    assert verdict["direction_cosine"] > 0.9
    assert verdict["frame_rate_obeyed"] == pytest.approx(1, abs=0.1)
    assert abs(verdict["area_change"]) < 0.03
    assert abs(verdict["saturation_change"]) < 0.03
    assert verdict["colour"] is verdict["chance_colour"] is verdict["intervals"]["colour"] is None
    assert verdict["videos"][0]["colour"] is None
    assert verdict["chance_shape"] == pytest.approx(0.1)
    assert 0 <= verdict["reader_error"] < 0.2


def test_frozen_dissolving_strobing_and_other_digits_are_seen(parts, reader):
    drawn = moving(parts)
    clips = [draw_clip(scene, 32, 15, 16) for scene in drawn]
    assert verdict_on([np.repeat(clip[:1], 15, axis=0) for clip in clips], drawn, reader)["speed_ratio"] == 0
    empty = np.repeat(draw_ground("plain", 3, 32).astype(np.uint8)[None], 9, axis=0)
    gone = verdict_on([np.concatenate([clip[:6], empty]) for clip in clips], drawn, reader)
    assert gone["shape"] == 0
    assert gone["persistence"] < 0.5
    assert gone["videos"][0]["frames_without_object"] >= 9
    strobing = [np.where((np.arange(15) % 2 == 0)[:, None, None, None], clip, (0.7 * clip).astype(np.uint8))
                for clip in clips]  # fmt: skip
    assert verdict_on(strobing, drawn, reader)["saturation_change"] < -0.2
    others = [clips[(i + 1) % len(clips)] for i in range(len(clips))]
    assert verdict_on(others, drawn, reader)["shape"] == 0
    becoming = [np.concatenate([clip[:5], other[5:]]) for clip, other in zip(clips, others, strict=True)]
    assert verdict_on(becoming, drawn, reader)["persistence"] < 0.5


def test_grounds_noise_and_what_is_too_large_hold_no_digit(reader):
    rng = np.random.default_rng(0)
    assert all(reader(draw_ground(kind, 3, 64).astype(np.uint8)) is NOTHING for kind in (*GROUNDS, "plain"))
    assert reader(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) is NOTHING
    assert reader(np.zeros((16, 16, 3), np.uint8)) is NOTHING
    half = np.full((32, 32, 3), 40, np.uint8)
    half[:, :13] = 240
    assert reader(half) is NOTHING
    with pytest.raises(ValueError, match="at least 16"):
        reader(np.zeros((8, 8, 3), np.uint8))


def test_the_same_digits_train_the_same_reader(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("mav.world.reading_digits.LEAST_STEPS", 1)
    write_digits(Folder(str(tmp_path)).child(READER_FOLDER), parts.reader.take(np.arange(0, 160, 5)))
    torch.manual_seed(1)
    first, after = reader_of(Folder(str(tmp_path))), torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after, "nobody else's draws are moved"
    again = reader_of(Folder(str(tmp_path)))
    assert again.error == first.error
    assert all(a.equal(b) for a, b in zip(again.network.parameters(), first.network.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.skipif("MAV_REAL_DATA" not in os.environ, reason="reads MNIST's digits")
def test_real_digits_are_read_right(tmp_path):
    cast = DigitCast.of(World(kind="digits", files=f"{os.environ['MAV_REAL_DATA']}/mnist"), 0)
    some = cast.parts.reader.take(np.arange(0, len(cast.parts.reader), 3))  # a third, for the time
    write_digits(Folder(str(tmp_path)).child(READER_FOLDER), some)
    reader = reader_of(Folder(str(tmp_path)))
    for size in (32, 64):
        scenes = [cast.held_out(np.random.default_rng(seed), seed) for seed in range(100)]
        assert np.mean([reader(draw(scene, size)).shape == scene.shape for scene in scenes]) >= 0.95
    assert reader.error < 0.06
