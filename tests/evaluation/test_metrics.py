"""Metrics against other routes to the same number."""

import numpy as np
import pytest
import scipy.linalg

from mav.evaluation.metrics import Moments, bootstrap, clipsim, frechet, frechet_features, inception_score, psnr


def features(n, d, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, (n, d)) @ rng.normal(0, 1, (d, d)) / np.sqrt(d)


def by_sqrtm(x, y):
    a, b = np.cov(x.T), np.cov(y.T)
    gap = x.mean(0) - y.mean(0)
    return float(gap @ gap + np.trace(a) + np.trace(b) - 2 * np.trace(scipy.linalg.sqrtm(a @ b)).real)


def test_frechet_equals_the_square_root_of_the_product():
    x, y = features(300, 12, 0), features(200, 12, 1, 0.3)
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(by_sqrtm(x, y), rel=1e-6)
    assert frechet(Moments.of(x), Moments.of(x)) == pytest.approx(0, abs=1e-8)


def test_few_videos_take_the_nuclear_norm_to_the_same_value():
    x, y = features(14, 40, 2), features(11, 40, 3, 0.2)
    assert frechet_features(x, y) == pytest.approx(frechet(Moments.of(x), Moments.of(y)), rel=1e-6)


def test_moments_merge_exactly():
    x = features(101, 7, 4) + 1000.0
    merged = Moments.of(x[:0]).merge(Moments.of(x[:30])).merge(Moments.of(x[30:31])).merge(Moments.of(x[31:]))
    assert merged.count == 101
    assert np.allclose(merged.mean, x.mean(0), rtol=1e-13)
    assert np.allclose(merged.covariance, np.cov(x.T), rtol=1e-9)


def test_bad_features_are_named():
    with pytest.raises(ValueError, match="finite"):
        Moments.of(np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="at least 2"):
        frechet_features(np.zeros((1, 4)), np.zeros((5, 4)))


def test_inception_score_has_its_known_ends():
    assert inception_score(np.eye(10)) == pytest.approx(10)
    assert inception_score(np.full((8, 10), 0.1)) == pytest.approx(1)
    one_class = np.zeros((6, 3))
    one_class[:, 1] = 1  # two classes of zero mean probability
    assert inception_score(one_class) == pytest.approx(1)
    assert inception_score(np.repeat(np.eye(4), 2, axis=0), splits=2) == pytest.approx(2)


def test_clipsim_is_the_mean_cosine():
    frames = np.zeros((2, 3, 4))
    frames[0, :, 0] = 1
    frames[1, 0, 1] = frames[1, 1:, 2] = 1
    text = np.eye(4)[:2]
    assert clipsim(frames, text).tolist() == pytest.approx([1, 1 / 3])


def test_psnr():
    a = np.full((4, 4), 100, np.uint8)
    assert psnr(a, a) == 99
    assert psnr(a, a + 10) == pytest.approx(20 * np.log10(25.5))


def test_intervals_hold_the_estimate_and_the_truth_about_as_often_as_they_say():
    hits = 0
    for seed in range(60):
        values = np.random.default_rng(seed).normal(0.3, 1, 80)
        low, high = bootstrap(lambda rows, values=values: float(values[rows].mean()), 80, 200, seed)
        assert low <= values.mean() <= high
        hits += low <= 0.3 <= high
    assert 50 <= hits <= 60
    x, y = features(30, 8, 6), features(40, 8, 7, 0.5)
    low, high = bootstrap(lambda rows: frechet_features(x[rows], y), 30, 100)
    assert low <= frechet_features(x, y) <= high
    assert bootstrap(lambda rows: float(rows.mean()), 5, 50) == bootstrap(lambda rows: float(rows.mean()), 5, 50)
