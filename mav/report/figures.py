"""Drawings of the report as inline SVG: the graph of stages, curves, densities. Colours come from the page's style sheet by class."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from html import escape

NODE_WIDTH, NODE_HEIGHT = 188, 46
GAP_X, GAP_Y = 22, 34
LANE_WIDTH = 10  # of an edge that passes beside boxes
CHART_WIDTH, CHART_HEIGHT = 340, 150
LEFT, RIGHT, TOP, BOTTOM = 50, 8, 8, 22


def duration(seconds: float) -> str:
    """42 s, 3 min 10 s, 2 h 05 min."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def graph(inputs: Mapping[str, Sequence[str]], states: Mapping[str, str], seconds: Mapping[str, float]) -> str:
    """The stages from top to bottom, each below all it needs; edges that others imply are left out."""
    inputs = {name: [up for up in ups if up in inputs] for name, ups in inputs.items()}
    above = {name: _ancestors(name, inputs) for name in inputs}
    edges = [
        (up, name)
        for name, ups in inputs.items()
        for up in ups
        if not any(up in above[other] for other in ups if other != up)
    ]
    rows, segments = _layers(inputs, edges)
    widths = [sum(_width(name) + GAP_X for name in row) - GAP_X for row in rows]
    width, height = max(widths) + 4, len(rows) * (NODE_HEIGHT + GAP_Y) - GAP_Y + 4
    at = {}  # left and top
    for level, row in enumerate(rows):
        x = (width - widths[level]) / 2
        for name in row:
            at[name] = (x, 2 + level * (NODE_HEIGHT + GAP_Y))
            x += _width(name) + GAP_X
    longest = max([*seconds.values(), 1e-9])
    parts = []
    for here, there in segments:
        x0, y0 = at[here][0] + _width(here) / 2, at[here][1] + NODE_HEIGHT
        x1, y1 = at[there][0] + _width(there) / 2, at[there][1]
        bend = (y1 - y0) / 2
        through = f"V{y1 + NODE_HEIGHT:.0f}" if "|" in there else ""
        curve = f"M{x0:.0f} {y0:.0f}C{x0:.0f} {y0 + bend:.0f} {x1:.0f} {y1 - bend:.0f} {x1:.0f} {y1:.0f}{through}"
        parts.append(f'<path class="edge" d="{curve}"/>')
    for name in inputs:
        x, y = at[name]
        share = (NODE_WIDTH - 20) * seconds.get(name, 0) / longest
        state = states.get(name, "missing")
        time = duration(seconds.get(name, 0)) if state == "done" else state
        parts.append(
            f'<g class="node {escape(state)}"><title>{escape(name)}: {escape(state)}, {escape(time)}</title>'
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{NODE_WIDTH}" height="{NODE_HEIGHT}" rx="9"/>'
            f'<text x="{x + 10:.0f}" y="{y + 19:.0f}">{escape(name)}</text>'
            f'<text class="time" x="{x + NODE_WIDTH - 10:.0f}" y="{y + 36:.0f}" text-anchor="end">{escape(time)}</text>'
            f'<line class="spent" x1="{x + 10:.0f}" x2="{x + 10 + max(share * 0.5, 2):.0f}" y1="{y + 32:.0f}" y2="{y + 32:.0f}"/></g>'
        )
    head = (
        f'<svg class="graph" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="Stages and what they need">'
    )
    return f"{head}{''.join(parts)}</svg>"


def _ancestors(name: str, inputs: Mapping[str, Sequence[str]]) -> set[str]:
    found: set[str] = set()
    pending = list(inputs.get(name, ()))
    while pending:
        up = pending.pop()
        if up not in found:
            found.add(up)
            pending += inputs.get(up, ())
    return found


def _width(name: str) -> float:
    return LANE_WIDTH if "|" in name else NODE_WIDTH


def _layers(
    inputs: Mapping[str, Sequence[str]], edges: Sequence[tuple[str, str]]
) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Rows by longest way from the start, each in the order that keeps edges short, and the edges cut into steps from row to row.

    Edges that span rows have a lane in each row between, named `from|row`, so that they pass no box; those of one stage share it.
    """
    depth: dict[str, int] = {}

    def measure(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((measure(up) for up in inputs[name]), default=-1)
        return depth[name]

    for name in inputs:
        measure(name)
    rows = [[name for name in inputs if depth[name] == level] for level in range(max(depth.values(), default=-1) + 1)]
    segments: dict[tuple[str, str], None] = {}
    for up, name in edges:
        lanes = [f"{up}|{level}" for level in range(depth[up] + 1, depth[name])]
        for lane, row in zip(lanes, rows[depth[up] + 1 : depth[name]], strict=True):
            if lane not in row:
                row.append(lane)
        segments |= dict.fromkeys(itertools.pairwise([up, *lanes, name]))
    beside: dict[str, list[str]] = {name: [] for row in rows for name in row}
    for here, there in segments:
        beside[here].append(there)
        beside[there].append(here)
    for _ in range(12):
        place = {name: (i + 0.5) / len(row) for row in rows for i, name in enumerate(row)}
        middle = {name: sum(place[n] for n in near) / len(near) if near else 0.5 for name, near in beside.items()}
        rows = [sorted(row, key=lambda name: (middle[name], name)) for row in rows]
    return rows or [[]], list(segments)


# ------------------------------------------------------------------------------------------------------------------ charts


def curve(points: Sequence[tuple[float, float]], label: str, held_out: Sequence[tuple[float, float]] = ()) -> str:
    """A loss over samples; logarithmic where it falls far. Thin: as logged; thick: smoothed; dots: on held-out samples."""
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(points) < 2:
        return ""
    points = points[:: max(1, len(points) // 240)]
    ys = [y for _, y in points]
    log = min(ys) > 0 and max(ys) / min(ys) > 6
    low, high = min(ys), sorted(ys)[int(0.985 * (len(ys) - 1))] if not log else max(ys)
    if high <= low:
        high = low + max(abs(low) * 0.1, 1e-6)
    first, last = points[0][0], points[-1][0]

    def scale(y: float) -> float:
        y = min(max(y, low), high)
        share = (math.log(y) - math.log(low)) / (math.log(high) - math.log(low)) if log else (y - low) / (high - low)
        return TOP + (1 - share) * (CHART_HEIGHT - TOP - BOTTOM)

    def across(x: float) -> float:
        return LEFT + (x - first) / max(last - first, 1e-9) * (CHART_WIDTH - LEFT - RIGHT)

    reach = max(1, len(ys) // 24)
    smooth = [sum(part) / len(part) for i in range(len(ys)) if (part := ys[max(0, i - reach) : i + reach + 1])]
    raw = " ".join(f"{across(x):.1f},{scale(y):.1f}" for x, y in points)
    thick = " ".join(f"{across(x):.1f},{scale(y):.1f}" for (x, _), y in zip(points, smooth, strict=True))
    dots = "".join(
        f'<circle class="held-out" cx="{across(x):.1f}" cy="{scale(y):.1f}" r="2.6"/>'
        for x, y in held_out
        if math.isfinite(y)
    )
    data = escape(
        json.dumps(
            [
                [round(across(x), 1), round(scale(s), 1), x, float(f"{y:.4g}")]
                for (x, y), s in zip(points, smooth, strict=True)
            ]
        )
    )
    y_marks = [(scale(low), _short(low)), (scale(high), _short(high))]
    x_marks = [(across(first), _short(first)), (across(last), f"{_short(last)} samples")]
    lines = f'<polyline class="raw" points="{raw}"/><polyline class="line" points="{thick}"/>'
    return _chart(label, _frame(y_marks, x_marks), lines, dots, data=f' data-points="{data}"')


def fps_curriculum(low: float, high: float, start: tuple[float, float], end: tuple[float, float]) -> str:
    """Densities of the training frame rate from the first sample to the last, one behind the other."""
    stages = 5
    floor, step, rise = CHART_HEIGHT - BOTTOM, 15, 62
    parts = []
    for k in range(stages):
        share = k / (stages - 1)
        a, b = (s + (e - s) * share for s, e in zip(start, end, strict=True))
        xs = [i / 80 for i in range(1, 80)]
        densities = [math.exp((a - 1) * math.log(x) + (b - 1) * math.log(1 - x)) for x in xs]
        top = max(densities)
        base = floor - (stages - 1 - k) * step
        line = [
            f"{LEFT + x * (CHART_WIDTH - LEFT - RIGHT):.1f},{base - d / top * rise * 0.9:.1f}"
            for x, d in zip(xs, densities, strict=True)
        ]
        path = f"M{LEFT},{base} L{' L'.join(line)} L{CHART_WIDTH - RIGHT},{base} Z"
        parts.append(f'<path class="ridge" style="--share:{share:.2f}" d="{path}"/>')
        if k in (0, stages - 1):
            parts.append(
                f'<text class="tick" x="{LEFT - 5}" y="{base}" text-anchor="end">{"first" if k == 0 else "last"}</text>'
            )
    middle = (low + high) / 2
    marks = [
        (LEFT, f"{low:g}"),
        ((LEFT + CHART_WIDTH - RIGHT) / 2, f"{middle:g}"),
        (CHART_WIDTH - RIGHT, f"{high:g} fps"),
    ]
    return _chart("Frame rates drawn during training", *parts, _frame([], marks))


def shown_rates(rates: Sequence[tuple[float, float, float]], low: float, high: float) -> str:
    """Frame rates of training clips over the training: full dots as drawn, hollow ones where the clip could not follow."""
    if not rates:
        return ""
    high = max(high, *(shown for _, _, shown in rates))

    def place(share: float, rate: float) -> str:
        x = LEFT + share * (CHART_WIDTH - LEFT - RIGHT)
        return f'cx="{x:.1f}" cy="{TOP + (1 - (rate - low) / (high - low)) * (CHART_HEIGHT - TOP - BOTTOM):.1f}"'

    dots = [
        f'<circle class="rate{" held" if abs(shown - drawn) > 1e-6 else ""}" {place(share, shown)} r="1.8"/>'
        for share, drawn, shown in rates
        if shown > 0
    ]
    y_marks = [(CHART_HEIGHT - BOTTOM - 4.0, f"{low:g}"), (TOP + 4.0, f"{high:g} fps")]
    marks = [(LEFT, "first sample"), (CHART_WIDTH - RIGHT, "last")]
    return _chart("Frame rates shown during training", _frame(y_marks, marks), *dots)


def histogram(bins: Mapping[str, int], threshold: float, label: str) -> str:
    """Rows by score: bars from each lower edge, those from the threshold on marked; one apart for rows without a score."""
    edges = sorted(float(edge) for edge in bins if edge != "unknown")
    highest = max(bins.values(), default=0)
    if not highest:
        return ""
    height = CHART_HEIGHT - TOP - BOTTOM
    step = (CHART_WIDTH - LEFT - RIGHT) / (len(edges) + 2)  # a gap, then the unknown

    def column(place: int, rows: int, kind: str, title: str) -> str:
        tall = height * rows / highest
        box = f'x="{LEFT + place * step + 0.5:.1f}" y="{TOP + height - tall:.1f}" width="{step - 1:.1f}" height="{tall:.1f}"'
        return f'<rect class="column {kind}" {box}><title>{rows:,} rows, {escape(title)}</title></rect>'

    columns = [
        column(place, bins[f"{edge:.2f}"], "over" if edge >= threshold else "under", f"from {edge:.2f}")
        for place, edge in enumerate(edges)
    ]
    columns.append(column(len(edges) + 1, bins.get("unknown", 0), "unknown", "no score"))
    marks = [(LEFT, "0"), (LEFT + threshold * len(edges) * step, f"{threshold:g}"), (CHART_WIDTH - RIGHT, "no score")]
    return _chart(label, _frame([(TOP + 4.0, _short(highest))], marks), *columns)


def _chart(label: str, *parts: str, data: str = "") -> str:
    head = (
        f'<svg class="chart" viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="{escape(label)}"{data}>'
    )
    return f"{head}{''.join(parts)}</svg>"


def _frame(y_marks: Sequence[tuple[float, str]], x_marks: Sequence[tuple[float, str]]) -> str:
    bottom = CHART_HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" x2="{CHART_WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    for y, text in y_marks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{CHART_WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{escape(text)}</text>')
    for index, (x, text) in enumerate(x_marks):
        anchor = "start" if index == 0 else "end" if index == len(x_marks) - 1 else "middle"
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{CHART_HEIGHT - 6}" text-anchor="{anchor}">{escape(text)}</text>'
        )
    return "".join(parts)


def _short(value: float) -> str:
    """1.2M, 340k, 0.0123."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.2g}"
