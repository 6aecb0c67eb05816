"""The metrics against other ways to compute the same number."""

import math

import numpy as np
import pytest
import scipy.linalg

from mav.evaluation.intervals import GROUPS, FrechetTo, jackknife
from mav.evaluation.metrics import (
    Moments,
    bootstrap,
    clipsim,
    frechet,
    frechet_features,
    inception_score,
    jedi,
    kernel_distance,
    psnr,
    ssim,
)


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


def test_moments_are_those_of_torchmetrics():
    """FID's own sums in torchmetrics, fed the same features."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Same(torch.nn.Module):
        num_features = 24

        def forward(self, x):
            return x.flatten(1)[:, :24].double()

    x, y = features(90, 24, 8), features(70, 24, 9, 0.4)
    fid = FrechetInceptionDistance(feature=Same(), input_img_size=(3, 4, 4), normalize=True).set_dtype(torch.float64)
    for rows, real in ((x, False), (y, True)):
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            padded = np.zeros((len(part), 48))
            padded[:, :24] = part / 255  # normalize=True scales to bytes
            fid.inception.forward = lambda images, part=part: torch.from_numpy(part)
            fid.update(torch.from_numpy(padded.reshape(-1, 3, 4, 4)), real=real)
    ours = {True: Moments.of(y), False: Moments.of(x[:40]).merge(Moments.of(x[40:]))}
    for real, total, squares, count in (
        (True, fid.real_features_sum, fid.real_features_cov_sum, fid.real_features_num_samples),
        (False, fid.fake_features_sum, fid.fake_features_cov_sum, fid.fake_features_num_samples),
    ):
        mean = (total / count).numpy()
        covariance = ((squares - count * (total / count).outer(total / count)) / (count - 1)).numpy()
        assert ours[real].count == int(count)
        assert np.allclose(ours[real].mean, mean, rtol=1e-5, atol=1e-9)
        assert np.allclose(ours[real].covariance, covariance, rtol=1e-5, atol=1e-9)
    assert frechet(ours[True], ours[False]) == pytest.approx(float(fid.compute()), rel=1e-5)


def test_kernel_distance_is_torchmetrics_on_one_subset():
    import torch
    from torchmetrics.image.kid import poly_mmd

    x, y = features(60, 10, 10), features(60, 10, 11, 0.3)
    theirs = float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
    assert kernel_distance(x, y)[0] == pytest.approx(theirs, rel=1e-9)
    assert kernel_distance(x, y, block=7)[0] == pytest.approx(theirs, rel=1e-9)
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(x[:1], y)


def test_jedi_is_a_hundred_times_the_biased_mmd_of_degree_two():
    """Against the definition, pair by pair in float64, and the value that its authors' code gives for these rows."""
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((9, 5)), 0.3 + rng.standard_normal((14, 5))

    def mean(a, b):
        return math.fsum((math.fsum(p * q for p, q in zip(r, s, strict=True)) / 5) ** 2 for r in a for s in b)

    direct = mean(x, x) / 81 + mean(y, y) / 196 - 2 * mean(x, y) / 126
    assert jedi(x, y)[0] == pytest.approx(100 * direct, rel=1e-12)
    a, b = np.arange(1, 10).reshape(3, 3), np.array([[7, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]])
    assert jedi(a, b)[0] == pytest.approx(100 * 270.7, abs=6)
    alone = [math.fsum((r @ r / 5) ** 2 for r in rows) for rows in (x, y)]
    unbiased = (mean(x, x) - alone[0]) / 72 + (mean(y, y) - alone[1]) / 182 - 2 * mean(x, y) / 126
    assert jedi(x, y, biased=False)[0] == pytest.approx(100 * unbiased, rel=1e-12)


def test_kernel_distance_is_unbiased_and_knows_its_error():
    rng = np.random.default_rng(0)
    draws = [kernel_distance(rng.normal(size=(20, 4)), rng.normal(size=(25, 4))) for _ in range(400)]
    found = np.array([value for value, _ in draws])
    assert abs(found.mean()) < 3 * found.std() / 20  # the biased estimator would sit far above zero
    assert (found < 0).any()
    apart = [kernel_distance(rng.normal(size=(60, 4)), rng.normal(0.7, 1, (500, 4))) for _ in range(60)]
    value, error = np.array(apart).T
    assert error.mean() == pytest.approx(value.std(), rel=0.4)


def test_ssim_is_torchmetrics():
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    rng = np.random.default_rng(3)
    a = np.repeat(np.repeat(rng.integers(0, 256, (2, 8, 8, 3)), 5, 1), 5, 2).astype(np.uint8)
    b = np.clip(a + rng.normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    frames = (torch.from_numpy(v).permute(0, 3, 1, 2).double() for v in (a, b))
    _, everywhere = structural_similarity_index_measure(*frames, data_range=255.0, return_full_image=True)
    assert ssim(a, b) == pytest.approx(float(everywhere[..., 5:-5, 5:-5].mean()), abs=1e-6)
    assert ssim(a, a) == pytest.approx(1)
    with pytest.raises(ValueError, match="more than 10 pixels"):
        ssim(a[:, :8, :8], b[:, :8, :8])


@pytest.mark.parametrize(("n", "d"), [(60, 9), (12, 40)])
@pytest.mark.parametrize("biased", [False, True])
def test_the_quick_frechet_equals_the_plain_one_on_every_resample(n, d, biased):
    x, y = features(n, d, 12), features(3 * d, d, 13, 0.3)
    quick = FrechetTo(x, Moments.of(y), biased)
    rng = np.random.default_rng(0)
    for rows in (np.arange(n), rng.integers(0, n, n), rng.permutation(n)[: n // 2]):
        plain = frechet(Moments.of(x[rows]), Moments.of(y), biased)
        assert quick(np.bincount(rows, minlength=n)) == pytest.approx(plain, rel=1e-6)
    value, low, high = quick.interval(50)
    assert low <= value <= high
    with pytest.raises(ValueError, match="at least 2"):
        quick(np.eye(n)[0])


def test_frames_of_a_video_are_resampled_together():
    x, y = features(40, 6, 14).reshape(10, 4, 6), features(50, 6, 15)
    quick = FrechetTo(x, Moments.of(y))
    rows = np.array([0, 0, 3, 9, 5, 5, 5, 1, 2, 7])
    assert quick(np.bincount(rows, minlength=10)) == pytest.approx(
        frechet_features(x[rows].reshape(-1, 6), y), rel=1e-6
    )


def test_extrapolation_takes_most_of_the_bias_away():
    y = features(4000, 16, 16)
    rng = np.random.default_rng(17)
    x = y[rng.permutation(4000)[:160]] + 0.0  # of the same distribution: endless videos would score nearly zero
    quick = FrechetTo(x, Moments.of(y))
    plain, endless = quick(np.ones(160)), quick.endless()
    assert abs(endless) < plain / 3
    assert FrechetTo(x[:9], Moments.of(y)).endless() is None, "of so few videos no line is drawn"


def test_the_jackknife_agrees_with_the_bootstrap():
    x, y = features(400, 8, 18), features(500, 8, 19, 0.5)
    reference = Moments.of(y)
    value, low, high = jackknife((Moments.of(part) for part in np.array_split(x, 50)), reference)
    whole, boot_low, boot_high = FrechetTo(x, reference).interval(200)
    assert value == pytest.approx(whole, rel=1e-9)
    assert high - low == pytest.approx(boot_high - boot_low, rel=0.5)
    assert Moments.of(x).without(Moments.of(x[:150])).mean == pytest.approx(x[150:].mean(0))
    assert np.allclose(Moments.of(x).without(Moments.of(x[:150])).covariance, np.cov(x[150:].T))
    assert GROUPS == 20
