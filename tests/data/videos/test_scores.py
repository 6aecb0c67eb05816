"""Scores of clips whose truth is drawn, taken from the frames as `video-shards` encodes them."""

import numpy as np
import pytest

from mav.data.images.hashes import mirrored
from mav.data.videos.scores import SCORES, ClipScorer
from mav.data.videos.scores.cuts import find_cuts
from mav.data.videos.scores.motion import flow_method, pair_motion
from mav.data.videos.scores.overlays import blank_score, border_score, overlay_score
from mav.data.videos.transcode import convert
from mav.data.videos.video_io import encode_mp4
from mav.recipes import VideoSelect, VideoShards, World
from mav.world.cast import ShapeCast
from mav.world.drawing import PALETTE, SHAPES, draw_clip, random_scene
from mav.world.planted import KINDS, plant

WORLD = World(size=64, clip_frames=48, clip_fps=24)
CAST, RULE, SELECT = ShapeCast(WORLD), VideoShards(short_side=64), VideoSelect()
TEXTURE = np.random.default_rng(0).integers(0, 256, (4, 8, 12), np.uint8)


def drawn(seed: int) -> np.ndarray:
    scene = random_scene(np.random.default_rng(seed), tuple(PALETTE), SHAPES)
    return draw_clip(scene, WORLD.size, WORLD.clip_frames, WORLD.clip_fps)


def small(texture: int, frames: int, light: float = 1.0) -> np.ndarray:
    """Frames of one still picture of 16 pixels, uint8 (F, 16, 24, 3)."""
    luma = TEXTURE[texture].repeat(2, 0).repeat(2, 1) * light
    return np.stack([luma.astype(np.uint8), *[np.full(luma.shape, 128, np.uint8)] * 2], axis=-1)[None].repeat(frames, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_clip_has_the_scores_of_its_kind_and_a_good_one_has_not(kind: str) -> None:
    clip = plant(kind, WORLD, CAST, np.random.default_rng(1))
    bad, good = (convert(encode_mp4(f, WORLD.clip_fps), RULE).scores for f in (clip.frames, drawn(len(kind))))
    assert set(bad) == set(good) == set(SCORES)

    def has(scores: dict, reason: str) -> bool:
        speed = max(scores["motion_global"], scores["motion_local"])
        if reason in ("still", "too_fast", "shaky"):
            return bool({"still": speed < SELECT.still, "too_fast": speed > SELECT.too_fast,
                         "shaky": scores["shake"] > SELECT.shaky}[reason])  # fmt: skip
        return bool(scores[reason] > getattr(SELECT, reason))

    every = ("cut", "blank", "border", "overlay", "repeated", "still", "too_fast", "shaky")
    assert [reason for reason in every if has(bad, reason)] == [reason for reason in every if reason in clip.reasons]
    assert [reason for reason in every if has(good, reason)] == []
    changes = zip(bad["cut_before"], bad["cut_after"], bad["cut_scores"], strict=True)
    strong = [(before, after) for before, after, score in changes if score > SELECT.cut]
    assert len(strong) == len(clip.changes)
    for (before, after), (first, last) in zip(strong, clip.changes, strict=True):
        assert first - 12 <= before <= first + 1, "what is blended belongs to no shot"
        assert last - 1 <= after <= last + 12
        assert first < last or (before, after) == (first - 1, first)


def test_a_cut_is_where_it_is_and_a_flash_is_none() -> None:
    assert [cut.frame for cut in find_cuts(np.concatenate([small(0, 9), small(1, 12), small(2, 2)]))] == [9, 21]
    assert find_cuts(np.concatenate([small(0, 9), small(1, 2), small(0, 9)])) == []
    assert find_cuts(small(0, 1)) == []


def test_fades_through_black_are_where_it_is_black_and_a_change_of_light_is_none() -> None:
    light = np.clip(np.abs(np.arange(33) - 16) / 12, 0, 1)
    frames = np.concatenate([small(int(i > 16), 1, share) for i, share in enumerate(light)])
    assert [cut.frame for cut in find_cuts(frames)] == [pytest.approx(16, abs=1)]
    assert find_cuts(np.concatenate([small(0, 1, 1 - 0.3 * i / 32) for i in range(33)])) == []


def test_neighbouring_dissolves_are_two_and_a_flicker_within_one_is_none() -> None:
    share = np.clip((np.arange(90)[:, None] - [20, 60]) / 10, 0, 1)[..., None, None, None]
    first, second, third = (small(number, 1)[0].astype(float) for number in range(3))
    frames = first + (second - first) * share[:, 0] + (third - second) * share[:, 1]
    frames[26] += 9  # a flicker, which is no cut beside what changes around it
    found = find_cuts(np.clip(frames, 0, 255).astype(np.uint8))
    assert [cut.score > SELECT.cut for cut in found] == [True, True]
    for cut, start in zip(found, (20, 60), strict=True):
        assert start - 8 <= cut.before <= start + 1, "both shots end before what is blended, and not much before"
        assert start + 9 <= cut.after <= start + 18


def test_a_dissolve_is_found_behind_something_that_moves_and_what_moves_is_none() -> None:
    def crossed(share: np.ndarray) -> np.ndarray:
        before, after = small(0, 1)[0] * 0.3, small(1, 1)[0] * 0.3 + 20
        frames = before + (after - before) * share[:, None, None, None]
        for number, frame in enumerate(frames):
            left = number * 2 % 24
            frame[4:12, left : left + 8, 0] = 250
        return frames.astype(np.uint8)

    rest, ends = np.zeros(48), np.clip((np.arange(48) - 18) / 12, 0, 1)
    found = {name: [cut.frame for cut in find_cuts(crossed(share)) if cut.score > SELECT.cut]
             for name, share in (("dissolve", ends), ("rest", rest))}  # fmt: skip
    assert found == {"dissolve": [pytest.approx(24, abs=3)], "rest": []}


def test_motion_is_measured_in_shorter_sides_at_any_size() -> None:
    ground = np.kron(np.random.default_rng(0).integers(0, 256, (24, 40)), np.ones((4, 4))).astype(np.uint8)
    for size, step in ((96, 3), (24, 1)):
        picture = ground[:: 96 // size, :: 96 // size]
        right, down, things = pair_motion(flow_method(), picture, np.roll(picture, (step, 0), (1, 0)))
        assert right == pytest.approx(step / size, abs=0.02)
        assert abs(down) < 0.02
        assert things < 0.1
    strip = np.zeros((2, 4000), np.uint8)
    assert pair_motion(flow_method(), strip, strip) == (0.0, 0.0, 0.0)


def test_an_overlay_stands_still_over_motion_and_a_resting_ground_is_none() -> None:
    random = np.random.default_rng(0)
    moving = np.stack([np.roll(TEXTURE[0].repeat(8, 0).repeat(8, 1) // 2, 5 * i, axis=1) for i in range(30)])
    assert overlay_score(moving) < 0.1
    logo = moving.copy()
    logo[:, 4:12, 4:40:4] = 250
    assert overlay_score(logo) > 1
    still = moving[:1].repeat(30, 0)
    still[:, 20:30, 20:30] = random.integers(0, 256, (30, 10, 10))
    assert overlay_score(still) < 0.5


def test_borders_are_even_and_dark_or_bright_at_all_times() -> None:
    frames = np.stack([TEXTURE[i % 4].repeat(8, 0).repeat(8, 1) // 2 + 60 for i in range(8)])
    assert border_score(frames) == 0
    barred = frames.copy()
    barred[:, :8] = barred[:, -8:] = 16
    assert border_score(barred) == pytest.approx(0.25)
    barred[3, :8] = 120
    assert border_score(barred) == pytest.approx(0.125), "one that comes and goes belongs to the picture"
    assert border_score(np.full((3, 8, 8), 16, np.uint8)) == 0, "it is blank, and has no border"
    black = np.full((4, 8, 8, 3), 16, np.uint8)
    assert blank_score(black) == 1.0
    black[0, :4, :, 1] = 90
    assert blank_score(black) == 0.75


def test_scores_are_the_same_whatever_the_threads_and_for_kept_bytes_nearly() -> None:
    import cv2

    data = encode_mp4(drawn(3), WORLD.clip_fps)
    once = convert(data, RULE).scores
    threads = cv2.getNumThreads()
    cv2.setNumThreads(4)
    try:
        assert convert(data, RULE).scores == once
    finally:
        cv2.setNumThreads(threads)
    kept = convert(data, VideoShards(short_side=64, reencode=False)).scores
    assert kept["motion_local"] == pytest.approx(once["motion_local"], abs=0.1)


def test_the_hash_is_of_the_frame_in_the_middle_and_survives_another_encoding_and_a_mirror() -> None:
    frames, other = drawn(8), drawn(9)

    def differ(one: np.ndarray, two: np.ndarray, turned: bool = False, **rule: int) -> int:
        first = convert(encode_mp4(one, WORLD.clip_fps), RULE).scores["hash"]
        again = convert(encode_mp4(two, WORLD.clip_fps), VideoShards(**{"short_side": 64, **rule})).scores["hash"]
        return (int(mirrored(np.array([first], np.uint64))[0]) if turned else first) ^ again

    assert differ(frames, frames, crf=30).bit_count() < 3
    assert differ(frames, frames, short_side=96).bit_count() < 3
    assert differ(frames, np.ascontiguousarray(frames[:, :, ::-1]), turned=True).bit_count() < 3
    around = np.where((np.abs(np.arange(48) - 24) < 4)[:, None, None, None], frames, other)
    assert differ(frames, around).bit_count() < 3, "only the middle counts"
    assert differ(frames, other).bit_count() > 6


def test_the_middle_frame_is_the_one_that_is_shown_when_half_of_the_time_is_over() -> None:
    scorer = ClipScorer()
    for number in range(4):
        luma = small(number, 1)[0, :, :, 0].repeat(4, 0).repeat(4, 1)
        scorer.add(np.pad(luma, ((0, 32), (0, 0))))
    times = [0.0, 0.25, 0.5, 0.75], [0.0, 1.0, 2.0, 9.0], [0.0, 3.0, 4.0, 5.0]
    even, third, first = (scorer.scores(4.0, each)["hash"] for each in times)
    assert scorer.scores(4.0)["hash"] == even == third
    assert len({first, third, 0}) == 3


def test_a_long_clip_is_held_in_few_pictures() -> None:
    scorer = ClipScorer()
    for number in range(400):
        scorer.add(np.full((96, 64), number % 200, np.uint8))
    assert len(scorer._spread) < 48
