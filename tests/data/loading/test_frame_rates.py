import numpy as np
import pytest

from mav.data.loading.frame_rates import draw_fps, frame_indices, frame_times, too_short
from mav.recipes import FpsCurriculum


def test_indices_have_the_rate_asked_for():
    indices, rate = frame_indices(frame_times(24.0, 240), 16, 4.0, 0.0)
    assert rate == 4.0
    assert indices.tolist() == list(range(0, 96, 6))


@pytest.mark.parametrize("native", [15.0, 24000 / 1001, 30.0, 59.94])
@pytest.mark.parametrize("fps", [1.0, 3.3, 8.0, 30.0, 100.0])
def test_indices_stay_inside_grow_and_keep_time(native, fps):
    for u in (0.0, 0.37, 0.999999):
        indices, rate = frame_indices(frame_times(native, 60), 8, fps, u)
        assert indices[0] >= 0
        assert indices[-1] < 60
        assert (np.diff(indices) >= 1).all()
        assert rate <= native
        assert np.abs((indices - indices[0]) / native - np.arange(8) / rate).max() <= 1.01 / native


def test_short_clips_are_clamped_to_the_slowest_rate_they_allow():
    indices, rate = frame_indices(frame_times(24.0, 16), 16, 1.0, 0.5)
    assert rate == 24.0
    assert indices.tolist() == list(range(16))
    indices, rate = frame_indices(frame_times(24.0, 48), 8, 1.0, 0.9)
    assert indices[0] == 0
    assert indices[-1] == 47
    assert rate == pytest.approx(24 * 7 / 47)


def test_too_few_frames_raise():
    with pytest.raises(ValueError, match="16 frames"):
        frame_indices(frame_times(24.0, 15), 16, 24.0, 0.0)


def test_u_moves_the_sample_over_the_clip():
    starts = [frame_indices(frame_times(24.0, 240), 16, 8.0, u)[0][0] for u in np.linspace(0, 0.999, 50)]
    assert starts[0] == 0
    assert starts[-1] == 240 - 1 - 45
    assert starts == sorted(starts)


def test_curriculum_slides_from_high_to_low_rates():
    curriculum = FpsCurriculum(low=1.0, high=30.0)
    rng = np.random.default_rng(0)
    means = [np.mean([draw_fps(curriculum, progress, rng) for _ in range(2000)]) for progress in (0.0, 0.5, 1.0)]
    expected = [1 + 29 * a / (a + b) for a, b in ((4.0, 1.5), (2.75, 2.75), (1.5, 4.0))]
    assert np.allclose(means, expected, atol=0.5)
    draws = [draw_fps(curriculum, 2.0, rng) for _ in range(500)]
    assert 1.0 <= min(draws) <= max(draws) <= 30.0


def test_indices_follow_the_clock_not_the_count():
    """Ten frames a second, then a pause, then a hundred: ticks fall where the time is, not where the frames are."""
    times = np.concatenate([np.arange(20) / 10, 4.0 + np.arange(200) / 100])
    indices, rate = frame_indices(times, 8, 2.0, 0.0)
    assert rate == 2.0
    assert np.abs(times[indices] - np.arange(8) / 2)[[0, 1, 2, 3]].max() <= 0.05
    assert times[indices][-1] == pytest.approx(4.0, abs=0.51)
    nearest = [int(np.abs(times - tick).argmin()) for tick in np.arange(8) / 2]
    assert indices.tolist() == nearest


def test_which_clips_are_too_short():
    times = frame_times(24.0, 48)
    assert too_short(times, 16, 1.0)
    assert not too_short(times, 16, 8.0)
    assert not too_short(times, 48, 24.0)
    assert too_short(frame_times(24.0, 1), 2, 24.0)
