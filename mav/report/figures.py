"""Draws the report's figures as inline SVG: the graph of stages, curves and densities.

The style sheet of the page gives the colours by class.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from html import escape

NODE_WIDTH, NODE_HEIGHT = 188, 46
GAP_X, GAP_Y = 22, 34
LANE_WIDTH = 10  # of an edge that passes between boxes
CHART_WIDTH, CHART_HEIGHT = 340, 150
LEFT, RIGHT, TOP, BOTTOM = 50, 8, 8, 22
PLOT_WIDTH, PLOT_HEIGHT = CHART_WIDTH - LEFT - RIGHT, CHART_HEIGHT - TOP - BOTTOM

Points = Sequence[tuple[float, float]]


def duration(seconds: float) -> str:
    """Returns a duration such as 42 s, 3 min 10 s or 2 h 05 min."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def graph(inputs: Mapping[str, Sequence[str]], states: Mapping[str, str], seconds: Mapping[str, float]) -> str:
    """Draws the stages from top to bottom, each below all that it needs. Edges that others imply are left out."""
    # Rows of boxes and lanes, and their places.
    inputs = {name: [up for up in ups if up in inputs] for name, ups in inputs.items()}
    above: dict[str, set[str]] = {}
    for name in TopologicalSorter(inputs).static_order():
        above[name] = set(inputs[name]).union(*(above[up] for up in inputs[name]))
    every = [(up, name, ups) for name, ups in inputs.items() for up in ups]
    edges = [(up, name) for up, name, ups in every if not any(up in above[other] for other in ups if other != up)]
    rows, segments = _layers(inputs, edges)
    widths = [sum(_width(name) + GAP_X for name in row) - GAP_X for row in rows]
    width, height = max(widths) + 4, len(rows) * (NODE_HEIGHT + GAP_Y) - GAP_Y + 4
    at = {}  # name -> (left, top)
    for level, row in enumerate(rows):
        x = (width - widths[level]) / 2
        for name in row:
            at[name] = (x, 2 + level * (NODE_HEIGHT + GAP_Y))
            x += _width(name) + GAP_X
    # Edges first, so that the boxes cover their ends.
    parts = []
    for here, there in segments:
        x0, y0 = at[here][0] + _width(here) / 2, at[here][1] + NODE_HEIGHT
        x1, y1 = at[there][0] + _width(there) / 2, at[there][1]
        bend = (y1 - y0) / 2
        through = f"V{y1 + NODE_HEIGHT:.0f}" if "|" in there else ""
        curve = f"M{x0:.0f} {y0:.0f}C{x0:.0f} {y0 + bend:.0f} {x1:.0f} {y1 - bend:.0f} {x1:.0f} {y1:.0f}{through}"
        parts.append(f'<path class="edge" d="{curve}"/>')
    longest = max([*seconds.values(), 1e-9])
    for name in inputs:
        x, y = at[name]
        left, right, line = x + 10, x + NODE_WIDTH - 10, y + 32
        end = left + max((NODE_WIDTH - 20) * seconds.get(name, 0) / longest * 0.5, 2)
        state = states.get(name, "missing")
        time = escape(duration(seconds.get(name, 0)) if state == "done" else state)
        parts.append(
            f'<g class="node {escape(state)}"><title>{escape(name)}: {escape(state)}, {time}</title>'
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{NODE_WIDTH}" height="{NODE_HEIGHT}" rx="9"/>'
            f'<text x="{left:.0f}" y="{y + 19:.0f}">{escape(name)}</text>'
            f'<text class="time" x="{right:.0f}" y="{y + 36:.0f}" text-anchor="end">{time}</text>'
            f'<line class="spent" x1="{left:.0f}" x2="{end:.0f}" y1="{line:.0f}" y2="{line:.0f}"/></g>'
        )
    return _svg("graph", f"{width:.0f} {height:.0f}", "Stages and what they need", parts)


def _width(name: str) -> float:
    return LANE_WIDTH if "|" in name else NODE_WIDTH


def _layers(
    inputs: Mapping[str, Sequence[str]], edges: Sequence[tuple[str, str]]
) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Returns the rows of stages, and the edges cut into segments from one row to the next.

    A stage's row is its longest distance from the start, and the order in a row keeps edges short. An edge that spans
    rows has a lane in each row between, named `from|row`, so that it crosses no box; the edges of one stage share it.
    """
    depth: dict[str, int] = {}
    for name in TopologicalSorter(inputs).static_order():
        depth[name] = 1 + max((depth[up] for up in inputs[name]), default=-1)
    rows = [[name for name in inputs if depth[name] == level] for level in sorted(set(depth.values()))]
    segments: dict[tuple[str, str], None] = {}
    for up, name in edges:
        lanes = [f"{up}|{level}" for level in range(depth[up] + 1, depth[name])]
        for lane, row in zip(lanes, rows[depth[up] + 1 : depth[name]], strict=True):
            if lane not in row:
                row.append(lane)
        segments |= dict.fromkeys(itertools.pairwise([up, *lanes, name]))
    # Each name moves towards the mean place of its neighbours.
    beside: dict[str, list[str]] = {name: [] for row in rows for name in row}
    for here, there in segments:
        beside[here].append(there)
        beside[there].append(here)
    for _ in range(12):
        place = {name: (i + 0.5) / len(row) for row in rows for i, name in enumerate(row)}
        middle = {name: sum(place[n] for n in near) / len(near) if near else 0.5 for name, near in beside.items()}
        rows = [sorted(row, key=lambda name: (middle[name], name)) for row in rows]
    return rows or [[]], list(segments)


def curve(points: Points, label: str, held_out: Points = ()) -> str:
    """Draws a loss over samples, with a logarithmic axis where it falls far.

    The thin line is as logged, the thick one smoothed, and the dots are on held-out samples.
    """
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(points) < 2:
        return ""
    # The range of the axis: without a logarithm, the highest 1.5 % are cut off.
    points = points[:: max(1, len(points) // 240)]
    ys = [y for _, y in points]
    low, highest = min(ys), max(ys)
    log = low > 0 and highest / low > 6
    high = highest if log else sorted(ys)[int(0.985 * (len(ys) - 1))]
    if high <= low:
        high = low + max(abs(low) * 0.1, 1e-6)
    first, last = points[0][0], points[-1][0]

    def scale(y: float) -> float:
        y = min(max(y, low), high)
        share = (math.log(y) - math.log(low)) / (math.log(high) - math.log(low)) if log else (y - low) / (high - low)
        return TOP + (1 - share) * PLOT_HEIGHT

    def across(x: float) -> float:
        return LEFT + (x - first) / max(last - first, 1e-9) * PLOT_WIDTH

    def line(kind: str, line: Points) -> str:
        return f'<polyline class="{kind}" points="{" ".join(f"{across(x):.1f},{scale(y):.1f}" for x, y in line)}"/>'

    # Both lines, the dots, and the data from which the page shows values.
    reach = max(1, len(ys) // 24)
    smooth = [sum(part) / len(part) for i in range(len(ys)) if (part := ys[max(0, i - reach) : i + reach + 1])]
    lines = line("raw", points) + line("line", [(x, s) for (x, _), s in zip(points, smooth, strict=True)])
    centres = [f'cx="{across(x):.1f}" cy="{scale(y):.1f}"' for x, y in held_out if math.isfinite(y)]
    dots = "".join(f'<circle class="held-out" {centre} r="2.6"/>' for centre in centres)
    pairs = zip(points, smooth, strict=True)
    data = json.dumps([[round(across(x), 1), round(scale(s), 1), x, float(f"{y:.4g}")] for (x, y), s in pairs])
    y_marks = [(scale(low), _short(low)), (scale(high), _short(high))]
    x_marks = [(across(first), _short(first)), (across(last), f"{_short(last)} samples")]
    return _chart(label, _frame(y_marks, x_marks), lines, dots, data=f' data-points="{escape(data)}"')


def convergence(points: Sequence[Mapping[str, float]], endless: float, label: str) -> str:
    """Draws a distance over 1 / n with its intervals, and the line that leads to endlessly many videos, at the left."""
    low = min(endless, *(point["low"] for point in points))
    high = max(endless, *(point["high"] for point in points))
    gap, widest = max(high - low, abs(high) * 0.01, 1e-9), max(1 / point["n"] for point in points)

    def place(inverse: float, value: float) -> tuple[float, float]:
        return LEFT + inverse / widest * (PLOT_WIDTH - 6), TOP + (1 - (value - low) / gap) * PLOT_HEIGHT

    # The fitted line goes through its value at 0 and the mean of the points.
    mean = [sum(values) / len(points) for values in zip(*((1 / p["n"], p["value"]) for p in points), strict=True)]
    ends = [place(x, endless + (mean[1] - endless) * x / mean[0]) for x in (0.0, widest)]
    marks = f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in ends)}"/>'
    for point in points:
        (x, y), top, bottom = (place(1 / point["n"], point[key]) for key in ("value", "high", "low"))
        title = f"{point['value']:.4g} ({point['low']:.4g} to {point['high']:.4g}) with {point['n']:,.0f} videos"
        marks += f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{top[1]:.1f}" y2="{bottom[1]:.1f}"/>'
        marks += f'<circle class="held-out" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{title}</title></circle>'
    x_marks = [(LEFT, "∞"), *((place(1 / p["n"], 0)[0], f"{p['n']:,.0f}") for p in reversed(points))]
    return _chart(label, _frame([(TOP + 4.0, _short(high)), (TOP + PLOT_HEIGHT, _short(low))], x_marks), marks)


def levels(curves: Mapping[str, Points], label: str) -> str:
    """Draws held-out losses over samples on a logarithmic axis: a line, named at its end, for each noise level."""
    known = {name: kept for name, line in curves.items() if len(kept := [p for p in line if 0 < p[1] < math.inf]) > 1}
    if not known:
        return ""
    xs, ys = zip(*(point for line in known.values() for point in line), strict=True)
    low, gap = math.log(min(ys)), max(math.log(max(ys)) - math.log(min(ys)), 1e-6)
    first, span, right = min(xs), max(max(xs) - min(xs), 1e-9), 30  # room for the names
    parts = []
    for place, (name, line) in enumerate(known.items()):
        at = [
            (LEFT + (x - first) / span * (PLOT_WIDTH - right), TOP + (1 - (math.log(y) - low) / gap) * PLOT_HEIGHT)
            for x, y in line
        ]
        faded = f' style="opacity: {1 - place * 0.6 / len(known):.2f}"'
        parts.append(f'<polyline class="line"{faded} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}"/>')
        parts.append(_tick(f"{at[-1][0] + 4:.1f}", f"{at[-1][1] + 3.5:.1f}", "start", name))
    y_marks = [(TOP + PLOT_HEIGHT, _short(min(ys))), (TOP + 4.0, _short(max(ys)))]
    x_marks = [(LEFT, _short(first)), (CHART_WIDTH - RIGHT, f"{_short(max(xs))} samples")]
    return _chart(label, _frame(y_marks, x_marks), *parts)


def fps_curriculum(low: float, high: float, start: tuple[float, float], end: tuple[float, float]) -> str:
    """Draws the densities of the training frame rate from the first sample to the last, one behind the other."""
    stages, floor, step, rise = 5, CHART_HEIGHT - BOTTOM, 15, 62
    right, xs = CHART_WIDTH - RIGHT, [i / 80 for i in range(1, 80)]
    parts = []
    for k in range(stages):
        share = k / (stages - 1)
        a, b = (s + (e - s) * share for s, e in zip(start, end, strict=True))
        logarithms = [(a - 1) * math.log(x) + (b - 1) * math.log(1 - x) for x in xs]
        top, base = max(logarithms), floor - (stages - 1 - k) * step
        points = zip(xs, logarithms, strict=True)  # relative to the highest, since a narrow density has no other scale
        line = " L".join(f"{LEFT + x * PLOT_WIDTH:.1f},{base - math.exp(d - top) * rise * 0.9:.1f}" for x, d in points)
        path = f"M{LEFT},{base} L{line} L{right},{base} Z"
        parts.append(f'<path class="ridge" style="--share:{share:.2f}" d="{path}"/>')
        if k in (0, stages - 1):
            parts.append(_tick(LEFT - 5, f"{base}", "end", "first" if k == 0 else "last"))
    marks = [(LEFT, f"{low:g}"), ((LEFT + right) / 2, f"{(low + high) / 2:g}"), (right, f"{high:g} fps")]
    return _chart("Frame rates drawn during training", *parts, _frame([], marks))


def shown_rates(rates: Sequence[tuple[float, float, float]], low: float, high: float) -> str:
    """Draws the frame rates of training clips over the training (`motion.simulate_rates`).

    A full dot is a rate as drawn, a hollow one a rate of a clip that could not follow.
    """
    if not rates:
        return ""
    high = max(high, *(shown for _, _, shown in rates))
    span = max(high - low, 1e-9)  # the curriculum may have one rate alone
    dots = []
    for share, drawn, shown in rates:
        if shown > 0:
            x, y = LEFT + share * PLOT_WIDTH, TOP + (1 - (shown - low) / span) * PLOT_HEIGHT
            kind = "rate held" if abs(shown - drawn) > 1e-6 else "rate"
            dots.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="1.8"/>')
    y_marks = [(CHART_HEIGHT - BOTTOM - 4.0, f"{low:g}"), (TOP + 4.0, f"{high:g} fps")]
    marks = [(LEFT, "first sample"), (CHART_WIDTH - RIGHT, "last")]
    return _chart("Frame rates shown during training", _frame(y_marks, marks), *dots)


def histogram(bins: Mapping[str, int], threshold: float, label: str) -> str:
    """Draws rows by score: a bar for each lower edge, marked from the threshold on, and one for no score."""
    edges = sorted(float(edge) for edge in bins if edge != "unknown")
    highest = max(bins.values(), default=0)
    if not highest:
        return ""
    step = PLOT_WIDTH / (len(edges) + 2)  # a gap separates the rows without a score

    def column(place: int, rows: int, kind: str, title: str) -> str:
        tall = PLOT_HEIGHT * rows / highest
        x, y = LEFT + place * step + 0.5, TOP + PLOT_HEIGHT - tall
        box = f'x="{x:.1f}" y="{y:.1f}" width="{step - 1:.1f}" height="{tall:.1f}"'
        return f'<rect class="column {kind}" {box}><title>{rows:,} rows, {escape(title)}</title></rect>'

    kinds = ["over" if edge >= threshold else "under" for edge in edges]
    columns = [column(i, bins[f"{e:.2f}"], kinds[i], f"from {e:.2f}") for i, e in enumerate(edges)]
    columns.append(column(len(edges) + 1, bins.get("unknown", 0), "unknown", "no score"))
    marks = [(LEFT, "0"), (LEFT + threshold * len(edges) * step, f"{threshold:g}"), (CHART_WIDTH - RIGHT, "no score")]
    return _chart(label, _frame([(TOP + 4.0, _short(highest))], marks), *columns)


def _svg(kind: str, size: str, label: str, parts: Sequence[str], data: str = "") -> str:
    head = f'<svg class="{kind}" viewBox="0 0 {size}" role="img" aria-label="{escape(label)}"{data}>'
    return f"{head}{''.join(parts)}</svg>"


def _chart(label: str, *parts: str, data: str = "") -> str:
    return _svg("chart", f"{CHART_WIDTH} {CHART_HEIGHT}", label, parts, data)


def _tick(x: float | str, y: str, anchor: str, text: str) -> str:
    return f'<text class="tick" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _frame(y_marks: Sequence[tuple[float, str]], x_marks: Sequence[tuple[float, str]]) -> str:
    """Draws the axis, a line for each mark of the y axis, and the texts of all marks."""
    bottom, sides = CHART_HEIGHT - BOTTOM, f'x1="{LEFT}" x2="{CHART_WIDTH - RIGHT}"'
    parts = [f'<line class="axis" {sides} y1="{bottom}" y2="{bottom}"/>']
    for y, text in y_marks:
        parts.append(f'<line class="grid" {sides} y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_tick(LEFT - 5, f"{y + 3.5:.1f}", "end", text))
    for index, (x, text) in enumerate(x_marks):
        anchor = "start" if index == 0 else "end" if index == len(x_marks) - 1 else "middle"
        parts.append(_tick(f"{x:.1f}", f"{CHART_HEIGHT - 6}", anchor, text))
    return "".join(parts)


def _short(value: float) -> str:
    """Returns a short number such as 1.2M, 340k or 0.0123."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.2g}"
