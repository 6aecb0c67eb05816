"""What every benchmark shares: ours and the peer measured in turn in one run, medians, a table, and one json a
benchmark.

A ratio above 1 always means that ours is better: ours over peer for rates, peer over ours for costs.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"


@dataclass(frozen=True)
class Row:
    """One comparison. `unit` names what is measured; `ratio` > 1 means ours is better."""

    name: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    unit: str


def rate(name: str, ours: float, peer: float, peer_name: str, unit: str) -> Row:
    """A comparison where more is better."""
    return Row(name, ours, peer, peer_name, ours / peer, unit)


def cost(name: str, ours: float, peer: float, peer_name: str, unit: str) -> Row:
    """A comparison where less is better."""
    return Row(name, ours, peer, peer_name, peer / ours, unit)


def in_turn(measures: Mapping[str, Callable[[], float]], rounds: int = 3) -> dict[str, float]:
    """Calls every measure once a round, in order, and gives each one's median: a machine that slows down slows all of
    them."""
    seen: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(rounds):
        for name, measure in measures.items():
            seen[name].append(measure())
            print(f"  round {turn + 1}/{rounds}  {name}: {seen[name][-1]:.4g}", file=sys.stderr, flush=True)
    return {name: statistics.median(values) for name, values in seen.items()}


def report(name: str, rows: Sequence[Row], **facts: Any) -> None:
    """Prints the table and writes build/bench/NAME.json: the first row is the headline, all are under `rows`, with the
    `facts` beside."""
    widths = max(len(row.name) for row in rows), max(len(row.peer_name) for row in rows)
    print(f"\n{'':{widths[0]}}  {'ours':>12}  {'peer':>12}  {'ratio':>7}  unit, peer")
    for row in rows:
        print(
            f"{row.name:{widths[0]}}  {row.ours:12.5g}  {row.peer:12.5g}  {row.ratio:6.2f}x  "
            f"{row.unit}, {row.peer_name}"
        )
    for key, value in facts.items():
        print(f"{key}: {value}")
    machine = {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    path = BUILD / "bench" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        {**asdict(rows[0]), "name": name, "rows": [asdict(row) for row in rows], **facts, "machine": machine}, indent=2
    )
    path.write_text(text + "\n")
    print(f"written: {path.relative_to(ROOT)}")


def peer_python(name: str, *requirements: str, no_deps: Sequence[str] = ()) -> Path:
    """The Python of a peer's own environment, build/peers/NAME, made on first use from `requirements` (`no_deps`:
    without theirs).

    What a peer shares with us (torch above all) it sees in our environment, behind its own packages: both run the same
    binaries.
    """
    home = BUILD / "peers" / name
    python = home / "bin" / "python"
    ready, wanted = home / ".ready", "\n".join([*requirements, *no_deps])
    if not ready.exists() or ready.read_text() != wanted:
        print(f"making the environment of {name} in {home.relative_to(ROOT)} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        site = next(home.glob("lib/python*/site-packages"))
        (site / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if requirements:
            subprocess.run([*install, *requirements], check=True)
        if no_deps:
            subprocess.run([*install, "--no-deps", *no_deps], check=True)
        ready.write_text(wanted)
    return python
