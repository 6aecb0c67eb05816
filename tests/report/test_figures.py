"""The figures: the graph of stages and the curves."""

import math

from mav.report import figures


def test_implied_edges_are_left_out():
    drawing = figures.graph(
        {"a": [], "b": ["a"], "c": ["a", "b"]}, dict.fromkeys("abc", "done"), {"a": 1.0, "b": 100.0, "c": 4000.0}
    )
    assert drawing.count('class="edge"') == 2
    assert drawing.count('class="node done"') == 3
    assert "1 min 40 s" in drawing
    assert "1 h 06 min" in drawing


def test_curves_survive_what_training_can_log():
    assert figures.curve([], "nothing") == ""
    assert figures.curve([(1, 2.0)], "one") == ""
    flat = figures.curve([(1, 0.5), (2, 0.5)], "flat")
    wild = figures.curve([(i, v) for i, v in enumerate([1e3, math.nan, 1.0, math.inf, 1e-3, 0.5])], 'a "quoted" label')
    for drawing in (flat, wild):
        assert "nan" not in drawing
        assert "inf" not in drawing
    assert "&quot;quoted&quot;" in wild


def test_a_curriculum_of_one_rate_and_a_narrow_one_are_drawn():
    one = figures.shown_rates([(0.0, 8.0, 8.0), (0.5, 8.0, 8.0)], 8.0, 8.0)
    assert one.count('class="rate"') == 2
    narrow = figures.fps_curriculum(1.0, 30.0, (5000.0, 5000.0), (5000.0, 5000.0))
    assert narrow.count("<path") == 5


def test_held_out_losses_have_a_line_for_each_level():
    drawing = figures.levels({"0.125": [(8, 0.5), (16, 0.25)], "0.875": [(8, 0.1), (16, math.nan)]}, "levels")
    assert drawing.count("<polyline") == 1, "one point is no line"
    assert ">0.125<" in drawing
    assert figures.levels({"0.125": []}, "nothing") == ""
