"""The oracle is calibrated: what it reads from drawings is what was drawn."""

import dataclasses

import cv2
import numpy as np
import pytest

from mav.world.drawing import GROUNDS, PALETTE, SHAPES, draw, draw_clip, draw_ground, random_scene
from mav.world.oracle import NOTHING, read_frame, read_video
from mav.world.verdict import Material, oracle_verdict


def scenes(count, seed=1):
    rng = np.random.default_rng(seed)
    return [random_scene(rng, tuple(PALETTE), SHAPES) for _ in range(count)]


def small_and_back(frame):
    return cv2.resize(
        cv2.resize(frame, (16, 16), interpolation=cv2.INTER_AREA), (64, 64), interpolation=cv2.INTER_LINEAR
    )


@pytest.mark.parametrize(
    ("name", "render", "floor"),
    [
        ("clean", lambda s: draw(s, 64), 0.99),
        ("through 16", lambda s: small_and_back(draw(s, 64)), 0.97),
        ("at 16", lambda s: draw(s, 16), 0.97),
        ("at 256", lambda s: draw(s, 256), 0.99),
        ("pale", lambda s: (draw(s, 64) * 0.6 + 50).astype(np.uint8), 0.97),
    ],
)
def test_calibrated(name, render, floor):
    drawn = scenes(120)
    readings = [read_frame(render(scene)) for scene in drawn]
    assert np.mean([r.colour == s.colour for r, s in zip(readings, drawn, strict=True)]) >= floor
    assert np.mean([r.shape == s.shape for r, s in zip(readings, drawn, strict=True)]) >= floor
    errors = [
        np.hypot(r.centre[0] - s.centre[0], r.centre[1] - s.centre[1])
        for r, s in zip(readings, drawn, strict=True)
        if r.centre
    ]
    assert np.median(errors) < 0.03


def test_grounds_and_noise_hold_no_object():
    rng = np.random.default_rng(0)
    assert all(read_frame(draw_ground(kind, 3, 64).astype(np.uint8)) is NOTHING for kind in GROUNDS)
    assert read_frame(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) is NOTHING
    assert read_frame(np.zeros((16, 16, 3), np.uint8)) is NOTHING


def test_frames_too_small_or_not_frames_are_refused():
    with pytest.raises(ValueError, match="at least 16"):
        read_frame(np.zeros((8, 8, 3), np.uint8))


def test_displacement_is_the_scenes_velocity():
    scene = scenes(1, seed=5)[0]
    reading = read_video(draw_clip(scene, 64, 8, 24), {"colour": scene.colour, "shape": scene.shape})
    assert reading.right("colour")
    assert reading.right("shape")
    assert reading.unreadable == 0
    assert np.median(reading.steps) == pytest.approx(np.hypot(*scene.velocity) / 24, rel=0.25)


def moving(count, seed):
    """Scenes whose object moves fast enough to be followed, and stays inside for a second."""
    drawn = [scene for scene in scenes(20 * count, seed) if 0.25 < np.hypot(*scene.velocity) < 0.6]
    return [dataclasses.replace(scene, radius=0.16, centre=tuple(0.5 - 0.5 * v for v in scene.velocity))
            for scene in drawn[:count]]  # fmt: skip


def verdict_on(videos, drawn, **more):
    truths = [{"colour": scene.colour, "shape": scene.shape} for scene in drawn]
    training = [draw_clip(scene, 64, 15, 16) for scene in moving(8, seed=8)]
    return oracle_verdict(Material(videos, truths, training, skip=2, **more), draws=50)


def test_true_videos_get_full_marks_and_shuffled_frames_jump():
    drawn = moving(6, seed=7)
    jumping = [np.stack([draw(other, 32) for other in scenes(8, seed=20 + i)]) for i in range(6)]
    rates = {rate: [draw_clip(scene, 64, 4, rate) for scene in drawn] for rate in (4.0, 16.0)}
    verdict = verdict_on([draw_clip(scene, 64, 15, 16) for scene in drawn], drawn, time_off=jumping, rates=rates)
    assert verdict["colour"] == verdict["shape"] == verdict["persistence"] == 1.0
    assert 0.5 < verdict["speed_ratio"] < 2
    assert verdict["direction_cosine"] > 0.9
    assert verdict["direction_cosine_clips"] > 0.9
    assert verdict["reversals"] < 0.05
    assert abs(verdict["area_change"]) < 0.03
    assert abs(verdict["saturation_change"]) < 0.03
    assert verdict["frame_rate_obeyed"] == pytest.approx(1, abs=0.2)
    assert verdict["motion_ratio_time_off"] > 2 * verdict["speed_ratio"]
    assert verdict["chance_colour"] == pytest.approx(1 / len({scene.colour for scene in drawn}))
    assert set(verdict["shape_by_name"]) == {scene.shape for scene in drawn}
    low, high = verdict["intervals"]["speed_ratio"]
    assert low <= verdict["speed_ratio"] <= high
    assert verdict["count"] == 6


def test_strobing_is_seen():
    """Every second frame shows a smaller, paler object somewhere else."""
    drawn, videos = moving(6, seed=7), []
    for scene in drawn:
        elsewhere = dataclasses.replace(scene, radius=0.12, centre=(scene.centre[0] + 0.12, scene.centre[1]))
        given, filled = draw_clip(scene, 64, 15, 16), draw_clip(elsewhere, 64, 15, 16)
        videos.append(np.where((np.arange(15) % 2 == 0)[:, None, None, None], given, (0.7 * filled).astype(np.uint8)))
    verdict = verdict_on(videos, drawn)
    assert verdict["reversals"] > 0.5
    assert verdict["direction_cosine"] < 0
    assert verdict["area_change"] < -0.2
    assert verdict["saturation_change"] < -0.2


def test_frozen_videos_and_an_ignored_frame_rate_are_seen():
    drawn = moving(6, seed=7)
    still = [np.repeat(draw_clip(scene, 64, 1, 16), 15, axis=0) for scene in drawn]
    same = {rate: [draw_clip(scene, 64, 4, 8.0) for scene in drawn] for rate in (4.0, 16.0)}
    verdict = verdict_on(still, drawn, rates=same)
    assert verdict["speed_ratio"] == 0
    assert verdict["frame_rate_obeyed"] == pytest.approx(0.25, abs=0.05)


def test_reversing_videos_are_seen():
    drawn = moving(6, seed=7)
    there_and_back = [draw_clip(scene, 64, 15, 16)[[0, 3] * 7 + [0]] for scene in drawn]
    verdict = verdict_on(there_and_back, drawn)
    assert verdict["reversals"] == 1
    assert verdict["direction_cosine"] < -0.9


def test_dissolving_videos_are_seen():
    drawn = moving(6, seed=7)
    empty = [np.repeat(draw_ground("smooth", 3, 64).astype(np.uint8)[None], 15, axis=0) for _ in drawn]
    videos = [np.concatenate([draw_clip(scene, 64, 15, 16)[:6], e[:9]]) for scene, e in zip(drawn, empty, strict=True)]
    verdict = verdict_on(videos, drawn)
    assert verdict["persistence"] < 0.5
    assert verdict["colour"] == 0, "six of fifteen frames are not more than half"


def test_nothing_is_dropped():
    scene = scenes(1)[0]
    truth = {"colour": scene.colour, "shape": scene.shape}
    empty = np.zeros((8, 32, 32, 3), np.uint8)
    half = draw_clip(scene, 32, 8, 8)
    half[:4] = 0  # exactly half is not more than half
    verdict = oracle_verdict(Material([empty, half, draw_clip(scene, 32, 8, 8)], [truth] * 3, [empty]), draws=20)
    assert verdict["colour"] == pytest.approx(1 / 3)
    assert [v["frames_without_object"] for v in verdict["videos"]] == [8, 4, 0]
    assert verdict["speed_ratio"] is None  # the training clips show nothing to follow
    assert verdict["motion_ratio_time_off"] is None
    assert verdict["frame_rate_obeyed"] is None
    with pytest.raises(ValueError, match="truths"):
        oracle_verdict(Material([empty], []))
