"""What is measured without a network: against plain loops, and on pictures whose numbers are known."""

import numpy as np
import pytest

from mav.evaluation.corruptions import Corruption
from mav.evaluation.networks.pixels import NAMES, measure


def scene(speed=0.0, frames=16, side=96, noise=0.0, drift=0.0):
    """A textured square over a textured ground, `speed` pixels further in every frame."""
    rng = np.random.default_rng(7)
    ground = rng.integers(60, 200, (side // 4, side // 4, 3)).repeat(4, 0).repeat(4, 1).astype(float)
    square = rng.integers(0, 255, (12, 12, 3)).repeat(3, 0).repeat(3, 1)
    made = []
    for number in range(frames):
        frame, left = ground + drift * number, round(8 + speed * number) % (side - 36)
        frame[20:56, left : left + 36] = square
        made.append(np.clip(frame + noise * rng.standard_normal(frame.shape), 0, 255).astype(np.uint8))
    return np.stack(made)


def numbers(frames, fps=0.0):
    return dict(zip(NAMES, measure(frames, fps).tolist(), strict=True))


def test_a_still_picture_neither_flickers_nor_moves():
    found = numbers(scene())
    assert found == {"temporal_flickering": 1, "motion_smoothness": 1, "dynamic_degree": 0, "strobing": 0}


def test_flickering_is_the_mean_change_and_smoothness_the_mean_error_of_every_second_frame():
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    changes = [abs(frames[i].astype(int) - frames[i + 1]).mean() for i in range(4)]
    assert numbers(frames)["temporal_flickering"] == pytest.approx(1 - np.mean(changes) / 255, abs=1e-6)
    moving = numbers(scene(2.0))["motion_smoothness"]
    assert 0.98 < moving < 1
    jumping = scene(2.0)
    jumping[1::2] = jumping[1::2][::-1]  # the odd frames are no longer between their neighbours
    assert numbers(jumping)["motion_smoothness"] < moving - 0.01
    swapped = scene(2.0)
    swapped[-1] = 255 - swapped[-1]  # an even count ends in an odd frame without a neighbour, which is left out
    assert numbers(swapped)["motion_smoothness"] == pytest.approx(moving, abs=1e-6)


@pytest.mark.parametrize(
    ("speed", "fps", "moves"),
    # At 24 frames a second, every third one is taken; at 4, twice the speed a frame is asked for.
    [(1.0, 0, 0), (5.0, 0, 1), (1.5, 8, 0), (1.5, 24, 1), (4.0, 8, 1), (4.0, 4, 0), (7.0, 4, 1)],
)
def test_dynamic_degree_asks_for_speed_at_eight_frames_a_second(speed, fps, moves):
    assert numbers(scene(speed, frames=24), fps)["dynamic_degree"] == moves


@pytest.mark.parametrize("strength", [0.05, 0.4])
def test_strobing_is_how_much_darker_every_second_frame_is(strength):
    still = scene()
    strobed = Corruption("strobing", strength)(still, 0)
    expected = strength * still.mean() / 255
    assert numbers(strobed)["strobing"] == pytest.approx(expected, rel=0.1)


def test_strobing_sees_neither_motion_nor_noise_nor_a_drift_of_brightness():
    faint = numbers(Corruption("strobing", 0.05)(scene(), 0))["strobing"]
    for other in (scene(3.0), scene(noise=16.0), scene(drift=3.0), scene(3.0)[::-1], scene(0, frames=3)):
        assert numbers(other)["strobing"] < faint / 4
    # Where every third frame is darker, it says less than it would of every second one.
    third = scene()
    third[::3] = third[::3] * 0.6
    assert numbers(third)["strobing"] < numbers(Corruption("strobing", 0.4)(scene(), 0))["strobing"] / 4


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="3 frames are needed, not 2"):
        measure(scene(frames=2))
