"""The statistics of ratings against references and golden values."""

import json
import math
from collections import Counter

import choix
import numpy as np
import pytest

from mav.evaluation.intervals import wilson
from mav.study.agreement import bradley_terry, connected, fleiss_kappa, krippendorff_alpha, sign_test


def test_agreement_has_the_known_values_of_fetv(real_data):
    """Three raters of 3,017 videos and texts; the values of their published analysis, to four digits."""
    units: dict[str, dict[tuple[str, str], list[float]]] = {}
    for path in sorted((real_data / "human_ratings" / "fetv").glob("human*.jsonl")):
        rater_model = path.stem.partition("_")[2]
        for line in path.read_text().splitlines():
            for item, row in json.loads(line).items():
                for question in ("static_quality", "temporal_quality", "alignment"):
                    if row.get(question) is not None:
                        units.setdefault(question, {}).setdefault((rater_model, item), []).append(float(row[question]))
    rated = {question: list(table.values()) for question, table in units.items()}
    found = {q: (krippendorff_alpha(table), fleiss_kappa(table)) for q, table in rated.items()}
    published = ((0.3350, 0.3349), (0.3357, 0.3356), (0.3083, 0.3082))
    for question, values in zip(("static_quality", "temporal_quality", "alignment"), published, strict=True):
        assert len(units[question]) == 3017
        assert found[question] == pytest.approx(values, abs=5e-5)


def test_agreement_at_its_ends():
    assert krippendorff_alpha([[1, 1, 1], [2, 2]]) == 1
    assert fleiss_kappa([[1, 1, 1], [2, 2, 2]]) == 1
    assert math.isnan(fleiss_kappa([[1, 1], [1, 1]]))
    assert math.isnan(krippendorff_alpha([[1], [2]]))
    # Krippendorff's own example of 2011 with missing ratings.
    table = [
        [int(rating) for rating in item]
        for item in ["111", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11", "3"]
    ]
    assert krippendorff_alpha(table) == pytest.approx(0.743, abs=5e-4)


def test_intervals_and_the_sign_test_equal_scipys():
    from scipy.stats import binomtest

    for wins, count in ((0, 5), (7, 9), (31, 40), (5, 5)):
        interval = binomtest(wins, count).proportion_ci(method="wilson")
        assert wilson(wins, count) == pytest.approx((interval.low, interval.high), abs=1e-6)
        assert sign_test(wins, count - wins) == pytest.approx(binomtest(wins, count).pvalue, rel=1e-9)
    assert wilson(0, 0) == (0, 1)


def test_bradley_terry_is_choixs():
    rng = np.random.default_rng(0)
    strengths = np.array([1.2, 0.4, -0.1, -1.5])
    data = []
    for _ in range(400):
        a, b = rng.permutation(4)[:2]
        data.append((a, b) if rng.random() < 1 / (1 + np.exp(strengths[b] - strengths[a])) else (b, a))
    wins = Counter((f"s{a}", f"s{b}") for a, b in data)
    theirs = choix.opt_pairwise(4, data, alpha=0.0, method="Newton-CG", tol=1e-12)
    ours = bradley_terry(wins)
    assert np.allclose([ours[f"s{i}"] for i in range(4)], theirs - theirs.mean(), atol=1e-6)


def test_unconnected_comparisons_are_refused():
    assert connected({("a", "b"): 1, ("b", "a"): 1})
    assert not connected({("a", "b"): 3})  # one always wins
    assert not connected({("a", "b"): 1, ("b", "a"): 1, ("c", "d"): 1, ("d", "c"): 1})
    with pytest.raises(ValueError, match="do not connect"):
        bradley_terry({("a", "b"): 3})
