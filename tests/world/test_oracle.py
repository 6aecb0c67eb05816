"""The oracle is calibrated: what it reads from drawings is what was drawn."""

import dataclasses
import itertools
import math

import cv2
import numpy as np
import pytest

from mav.world.drawing import GROUNDS, PALETTE, SHAPES, Thing, draw, draw_clip, draw_ground, random_scene, truth_of
from mav.world.oracle import NOTHING, read_frame, read_objects, read_video
from mav.world.verdict import Material, oracle_verdict

ASKED = [("red", "circle"), ("blue", "cross")]
BOTH = pytest.mark.parametrize("objects", [1, 2])


def scenes(count, seed=1, objects=1):
    rng = np.random.default_rng(seed)
    return [random_scene(rng, tuple(PALETTE), SHAPES, objects) for _ in range(count)]


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


def moving(count, seed, objects=1):
    """Scenes whose objects move fast enough to be followed, and for a second meet neither a border nor each other."""
    drawn = [scene for scene in scenes(20 * count, seed, objects) if 0.25 < np.hypot(*scene.velocity) < 0.6]
    if objects == 1:
        return [dataclasses.replace(scene, radius=0.16, centre=tuple(0.5 - 0.5 * v for v in scene.velocity))
                for scene in drawn[:count]]  # fmt: skip
    lanes = itertools.cycle((0.27, 0.73))

    def lane(thing):
        speed = 0.3 + 0.2 * thing.velocity[0]
        return {"radius": 0.16, "centre": (0.5 - 0.5 * speed, next(lanes)), "velocity": (speed, 0.0)}

    return [changed(scene, lane) for scene in drawn[:count]]


def changed(scene, changes):
    """The scene with changes to each of its objects."""
    second = scene.second and dataclasses.replace(scene.second, **changes(scene.second))
    return dataclasses.replace(scene, **changes(scene), second=second)


def verdict_on(videos, drawn, objects, **more):
    truths = [truth_of(scene.kinds) for scene in drawn]
    training = [draw_clip(scene, 64, 15, 16) for scene in moving(4, 8, objects)]
    return oracle_verdict(Material(videos, truths, training, skip=2, objects=objects, **more), draws=50)


@BOTH
def test_true_videos_get_full_marks_and_shuffled_frames_jump(objects):
    drawn = moving(6, 7, objects)
    jumping = [np.stack([draw(other, 32) for other in scenes(8, 20 + i, objects)]) for i in range(6)]
    rates = {rate: [draw_clip(scene, 64, 4, rate) for scene in drawn] for rate in (4.0, 16.0)}
    verdict = verdict_on(
        [draw_clip(scene, 64, 15, 16) for scene in drawn], drawn, objects, time_off=jumping, rates=rates
    )
    assert verdict["colour"] == verdict["shape"] == verdict["persistence"] == 1.0
    assert 0.5 < verdict["speed_ratio"] < 2
    assert verdict["direction_cosine"] > 0.9
    assert verdict["direction_cosine_clips"] > 0.9
    assert verdict["reversals"] < 0.05
    assert abs(verdict["area_change"]) < 0.03
    assert abs(verdict["saturation_change"]) < 0.03
    assert verdict["frame_rate_obeyed"] == pytest.approx(1, abs=0.2)
    assert verdict["motion_ratio_time_off"] > 2 * verdict["speed_ratio"]
    colours, shapes = map(set, zip(*(kind for scene in drawn for kind in scene.kinds), strict=True))
    assert verdict["chance_colour"] == pytest.approx(1 / math.comb(len(colours), objects))
    assert verdict["shape_by_name"] == dict.fromkeys(sorted(shapes), 1.0)
    low, high = verdict["intervals"]["speed_ratio"]
    assert low <= verdict["speed_ratio"] <= high
    assert verdict["count"] == 6


@BOTH
def test_strobing_is_seen(objects):
    """Every second frame shows smaller, paler objects somewhere else."""
    drawn, videos = moving(6, 7, objects), []
    for scene in drawn:
        elsewhere = changed(scene, lambda thing: {"radius": 0.12, "centre": (thing.centre[0] + 0.12, thing.centre[1])})
        given, filled = draw_clip(scene, 64, 15, 16), draw_clip(elsewhere, 64, 15, 16)
        videos.append(np.where((np.arange(15) % 2 == 0)[:, None, None, None], given, (0.7 * filled).astype(np.uint8)))
    verdict = verdict_on(videos, drawn, objects)
    assert verdict["reversals"] > 0.5
    assert verdict["direction_cosine"] < 0
    assert verdict["area_change"] < -0.2
    assert verdict["saturation_change"] < -0.2


@BOTH
def test_frozen_videos_and_an_ignored_frame_rate_are_seen(objects):
    drawn = moving(6, 7, objects)
    still = [np.repeat(draw_clip(scene, 64, 1, 16), 15, axis=0) for scene in drawn]
    same = {rate: [draw_clip(scene, 64, 4, 8.0) for scene in drawn] for rate in (4.0, 16.0)}
    verdict = verdict_on(still, drawn, objects, rates=same)
    assert verdict["speed_ratio"] == 0
    assert verdict["frame_rate_obeyed"] == pytest.approx(0.25, abs=0.05)


@BOTH
def test_reversing_videos_are_seen(objects):
    drawn = moving(6, 7, objects)
    there_and_back = [draw_clip(scene, 64, 15, 16)[[0, 3] * 7 + [0]] for scene in drawn]
    verdict = verdict_on(there_and_back, drawn, objects)
    assert verdict["reversals"] == 1
    assert verdict["direction_cosine"] < -0.9


@BOTH
def test_dissolving_videos_are_seen(objects):
    drawn = moving(6, 7, objects)
    empty = [np.repeat(draw_ground("smooth", 3, 64).astype(np.uint8)[None], 15, axis=0) for _ in drawn]
    videos = [np.concatenate([draw_clip(scene, 64, 15, 16)[:6], e[:9]]) for scene, e in zip(drawn, empty, strict=True)]
    verdict = verdict_on(videos, drawn, objects)
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


@pytest.mark.parametrize("size", [32, 128])
def test_two_objects_that_meet_are_read_through_and_never_as_a_third(size):
    """In clips of two seconds, in about one frame of six one object covers a part of the other."""
    drawn = scenes(8, 12, objects=2)
    readings = [read_video(draw_clip(scene, size, 16, 8), truth_of(scene.kinds), SHAPES, 2) for scene in drawn]
    assert all(reading.right("colour") and reading.right("shape") for reading in readings)
    frames = [(scene, number / 8, frame) for scene, reading in zip(drawn, readings, strict=True)
              for number, frame in enumerate(reading.frames)]  # fmt: skip
    assert all(set(frame) <= {colour for colour, _ in scene.kinds} for scene, _, frame in frames)
    assert any(reading.covered for *_, frame in frames for reading in frame.values())
    errors = [np.hypot(*np.subtract(frame[thing.colour].centre, thing.centre_at(seconds)))
              for scene, seconds, frame in frames for thing in scene.objects
              if thing.colour in frame and not frame[thing.colour].covered]  # fmt: skip
    assert len(errors) > 0.75 * 2 * len(frames)
    assert np.median(errors) < 0.005
    assert max(errors) < 0.08, "where an object lies on another, neither is placed wrongly"


def test_what_is_not_as_asked_is_found_in_videos_of_two_objects():
    red, blue = (Thing(*kind, (x, 0.5), 0.18, (0.0, 0.3)) for kind, x in zip(ASKED, (0.3, 0.7), strict=True))
    scene = dataclasses.replace(scenes(1)[0], **vars(red), second=blue)
    third = dataclasses.replace(scene, **vars(Thing("green", "square", (0.5, 0.16), 0.16, (0.0, 0.0))), second=None)
    swapped = dataclasses.replace(scene, shape="cross", second=dataclasses.replace(blue, shape="circle"))
    alone = dataclasses.replace(scene, second=None)
    clips = {name: draw_clip(each, 64, 8, 16) for name, each in
             (("right", scene), ("swapped", swapped), ("missing", alone), ("third", third))}  # fmt: skip
    # The third object stands on the ground of the first two, who do not move far enough to meet it.
    green = np.ptp(clips["third"].astype(int), axis=-1, keepdims=True) > 60
    clips["third"] = np.where(green, clips["third"], np.stack([draw(scene, 64)] * 8))
    told = {name: oracle_verdict(Material([clip], [truth_of(ASKED)], objects=2), 20) for name, clip in clips.items()}
    marks = {name: (verdict["colour"], verdict["shape"]) for name, verdict in told.items()}
    assert marks == {"right": (1, 1), "swapped": (1, 0), "missing": (0, 0), "third": (0, 1)}
    assert told["missing"]["shape_by_name"] == {"circle": 1, "cross": 0}
    one = oracle_verdict(Material([clips["right"], clips["missing"]], [truth_of(ASKED[:1])] * 2, objects=2), 20)
    assert (one["colour"], one["shape"]) == (0.5, 1), "a second object that nobody asked for is wrong"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert read_objects(noise) == ()
