"""The oracle is calibrated: what it reads from drawings is what was drawn."""

import cv2
import numpy as np
import pytest

from mav.world.drawing import GROUNDS, PALETTE, SHAPES, draw, draw_clip, draw_ground, random_scene
from mav.world.oracle import NOTHING, read_frame, read_video
from mav.world.verdict import oracle_verdict


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
    assert reading.colour_right
    assert reading.shape_right
    assert reading.unreadable == 0
    assert np.median(reading.steps) == pytest.approx(np.hypot(*scene.velocity) / 24, rel=0.25)


def test_verdict_on_drawn_videos_is_full_marks_and_shuffled_frames_jump():
    drawn = scenes(6, seed=7)
    clips = [draw_clip(scene, 32, 8, 8) for scene in drawn]
    truths = [{"colour": scene.colour, "shape": scene.shape} for scene in drawn]
    others = [draw_clip(scene, 32, 8, 8) for scene in scenes(6, seed=8)]
    jumping = [np.stack([draw(other, 32) for other in scenes(8, seed=20 + i)]) for i in range(6)]
    verdict = oracle_verdict(clips, truths, others, jumping, draws=50)
    assert verdict["colour"] == verdict["shape"] == 1.0
    assert 0.5 < verdict["motion_ratio"] < 2
    assert verdict["motion_ratio_time_off"] > 2 * verdict["motion_ratio"]
    assert verdict["chance_colour"] == 1 / len({t["colour"] for t in truths})
    low, high = verdict["intervals"]["motion_ratio"]
    assert low <= verdict["motion_ratio"] <= high
    assert verdict["count"] == 6


def test_nothing_is_dropped():
    scene = scenes(1)[0]
    truth = {"colour": scene.colour, "shape": scene.shape}
    empty = np.zeros((8, 32, 32, 3), np.uint8)
    half = draw_clip(scene, 32, 8, 8)
    half[:4] = 0  # exactly half is not more than half
    verdict = oracle_verdict([empty, half, draw_clip(scene, 32, 8, 8)], [truth] * 3, [empty], draws=20)
    assert verdict["colour"] == pytest.approx(1 / 3)
    assert [v["frames_without_object"] for v in verdict["videos"]] == [8, 4, 0]
    assert verdict["motion_ratio"] is None  # the training clips show nothing to follow
    assert verdict["motion_ratio_time_off"] is None
    with pytest.raises(ValueError, match="truths"):
        oracle_verdict([empty], [], [empty])
