"""Intervals of few videos, and of numbers at the end of what they can be."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import t

from mav.evaluation.card import judge
from mav.evaluation.intervals import bootstrapped, estimate, mean_of, share_of
from mav.evaluation.metrics import inception_score
from mav.evaluation.protocols import load_protocol
from mav.evaluation.score import Scorer
from mav.evaluation.sets import BenchmarkSet


class Held:
    """Rows in memory, in the place of stored features."""

    def __init__(self, rows):
        self.rows, self.readable = rows, len(rows)

    def load(self, name):
        return np.arange(len(self.rows)), self.rows

    def stream(self, name):
        yield self.load(name)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_mean_of_few_has_students_interval_and_holds_the_truth_as_often_as_it_says(count):
    values = np.random.default_rng(0).normal(0.3, 1, (400, count))
    found = [mean_of(each) for each in values]
    low, high = t.interval(0.95, count - 1, values[0].mean(), values[0].std(ddof=1) / np.sqrt(count))
    assert (found[0]["low"], found[0]["high"]) == pytest.approx((low, high))
    assert found[0]["interval"] == f"Student's, of {count} videos"
    assert 0.92 < np.mean([each["low"] <= 0.3 <= each["high"] for each in found]) < 0.98


def test_a_mean_s_interval_ends_where_values_do_and_holds_the_mean():
    found = mean_of(np.array([0.0, 0.9]), within=(0, 1))
    assert (found["low"], found["high"]) == (0, 1)
    assert mean_of(np.array([1.1, 1.3]), within=(0, 1))["high"] == pytest.approx(1.2), "some heads leave their range"


@pytest.mark.parametrize(("name", "distance", "value", "ends"), [
    ("precision", 0, 1, (0.676, 1)), ("precision", 100, 0, (0, 0.324)), ("recall", 100, 0, (0, 0.324)),
    ("coverage", 100, 0, (0, 0.324)), ("density", 100, 0, None),
])  # fmt: skip
def test_neighbours_at_the_end_of_their_scale_are_not_certain(name, distance, value, ends):
    real, ours = np.random.default_rng(0).standard_normal((2, 8, 3))
    sides = Held(ours / 100 + distance), Held(real)
    found = Scorer(load_protocol("suite").only([name]), None, BenchmarkSet(()), *sides).metrics()[name]
    assert found["value"] == value
    if ends:
        assert (found["low"], found["high"]) == pytest.approx(ends, abs=1e-3), "Wilson's of all or none of eight"
    else:
        assert found["interval"].startswith("none: ")


def test_what_rests_on_equal_numbers_has_no_interval():
    none = {"low": None, "high": None, "interval": "none: all that it rests on is equal"}
    assert mean_of(np.full(5, 0.1)) == {"value": pytest.approx(0.1), **none}
    assert mean_of(np.array([0.25])) == {"value": 0.25, **none}
    assert estimate(2, 2, 2, "of draws", real=1.0) == {"value": 2, "real": 1.0, **none}
    equal = np.full((4, 2), 0.5)
    assert bootstrapped(lambda rows: inception_score(equal[rows]), 4, 20, 0) == {"value": 1.0, **none}
    assert share_of(np.ones(4))["low"] == pytest.approx(0.5101, abs=1e-4)


def test_a_card_takes_a_value_without_interval_as_it_is():
    clean, gone = {"value": 1.0, "low": 0.8, "high": 1.2}, {"strength": 1, "value": 0.0, "low": None, "high": None}
    assert judge(clean, [gone], lower=False)["seen_from"] == 1
    assert judge(clean, [gone | {"value": 0.9}], lower=False)["seen_from"] is None


@pytest.mark.parametrize(
    ("name", "covariance"), [("fvd", "unbiased"), ("fd_dinov2", "unbiased"), ("fvd_videomae", "biased")]
)
@pytest.mark.parametrize("count", [20, 6])
def test_each_frechet_distance_divides_as_its_own_code_does_and_says_so(name, covariance, count):
    """cd-fvd's, on VideoMAE, has n; the code of FVD, FID and FD on DINOv2 has n - 1."""
    draws = np.random.default_rng(0)
    ours, real = draws.standard_normal((count, 8)), draws.standard_normal((24, 8)) + 0.5
    protocol = load_protocol("suite").only([name])
    found = Scorer(protocol, None, BenchmarkSet(()), Held(ours), Held(real)).metrics()[name]

    def distance(x, y):
        a, b = (np.cov(side, rowvar=False, bias=covariance == "biased") for side in (x, y))
        gap = x.mean(axis=0) - y.mean(axis=0)
        return gap @ gap + np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b)).real

    assert found["value"] == pytest.approx(distance(ours, real), rel=1e-6)
    assert found["real_halves"] == pytest.approx(distance(real[::2], real[1::2]), rel=1e-6)
    assert found["covariance"] == covariance
