"""Precision, recall, density and coverage against their formulas written out, and where their values are known."""

import numpy as np
import pytest

from mav.evaluation import neighbours
from mav.evaluation.neighbours import coverage, density, precision
from mav.evaluation.score import NEIGHBOURS


def written_out(name, real, generated):
    """The formulas of both papers, one pair of rows after the other."""

    def balls(rows, k):
        return [sorted(np.linalg.norm(rows - row, axis=1))[k] for row in rows]  # the nearest is the row itself

    def distance(a, b):
        return np.linalg.norm(a - b)

    if name in ("precision", "recall"):
        judged, centres = (generated, real) if name == "precision" else (real, generated)
        reach = balls(centres, 3)
        return np.mean([any(distance(x, c) <= r for c, r in zip(centres, reach, strict=True)) for x in judged])
    reach = balls(real, 5)
    within = [[distance(x, c) < r for x in generated] for c, r in zip(real, reach, strict=True)]
    return np.sum(within) / 5 / len(generated) if name == "density" else np.mean([any(row) for row in within])


@pytest.mark.parametrize("name", NEIGHBOURS)
@pytest.mark.parametrize("block", [7, 1024])
@pytest.mark.parametrize("far", [0, 1e5])
def test_blocks_give_the_formula(monkeypatch, name, block, far):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(40, 5)) + far, rng.normal(0.8, 0.7, (31, 5)) + far
    found = NEIGHBOURS[name][0](real, generated).mean()
    assert found == pytest.approx(written_out(name, real, generated), abs=1e-12)
    assert 0.05 < found < 2
    assert found != 1


def test_known_cases():
    """Two kinds of real clips: a generator of one kind is precise and covers half; one of noise elsewhere does none."""
    rng = np.random.default_rng(1)
    real = np.concatenate([rng.normal(-50, 1, (40, 3)), rng.normal(50, 1, (40, 3))])
    one_kind, elsewhere = real[:40] + rng.normal(0, 0.01, (40, 3)), rng.normal((0, 500, 0), 1, (40, 3))
    means = {name: measure(real, one_kind).mean() for name, (measure, _) in NEIGHBOURS.items()}
    assert 0.9 < means.pop("density") < 1.2
    assert means == {"precision": 1, "recall": 0.5, "coverage": 0.5}
    assert [measure(real, elsewhere).mean() for measure, _ in NEIGHBOURS.values()] == [0, 0, 0, 0]
    assert [measure(real, real).mean() for measure, _ in NEIGHBOURS.values()] == [1, 1, 1, 1]


def test_an_equal_row_is_at_distance_zero():
    """Clips that repeat have balls of no size, in which only their copies lie."""
    row = np.full((1, 50), np.pi)
    repeated = np.concatenate([np.repeat(row, 5, axis=0), np.random.default_rng(2).normal(size=(3, 50))])
    near = np.concatenate([row, row * (1 + 1e-5)])
    assert precision(repeated[:5], near).tolist() == [1, 0]


def test_what_cannot_be_measured_says_why():
    x = np.arange(12.0).reshape(6, 2)
    with pytest.raises(ValueError, match="at least 4 videos on their side and 2 on the other, not 3 and 6"):
        precision(x[:3], x)
    with pytest.raises(ValueError, match="at least 6 videos"):
        density(x[:5], x)
    with pytest.raises(ValueError, match="not 6 and 1"):
        coverage(x, x[:1])
    with pytest.raises(ValueError, match="1 features are not finite"):
        coverage(x, np.array([[np.nan, 0.0], [1, 2]]))
