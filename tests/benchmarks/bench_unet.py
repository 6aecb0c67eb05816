"""Forward and backward of the space-time U-Net beside the peers' at the same widths, blocks and attention places.

    make bench-unet                                                        # CPU, one thread, float32
    .venv/bin/python tests/benchmarks/bench_unet.py --preset gpu64 --device cuda   # bfloat16

All temporal layers are on. Networks take their steps in turn, each in a process of its own, so a busy machine slows all
alike; costs are CPU seconds of the process (on a GPU: seconds), and a ratio is the median of the rounds' own ratios.
Each runs as its users run it: ours keeps the memory it frees, as our training does, and the peers have the C library's
own setting, whose page faults are up to a tenth of a step; with --peers-keep-memory they are spared those too.
`of_plain_convolution` is our FLOP/s over that of plain channels-last 3x3 convolutions.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import Row, peer_python, report

KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
UNIT = "seconds a step, forward + backward"
WORKER = Path(__file__).parent / "unet_worker.py"
DUELS = [  # networks that take turns; the peers' memory does not allow all at once
    ("ours", "make-a-video-pytorch"),
    ("ours", "make-a-video-pytorch compiled"),
    ("ours", "diffusers"),
]


def duel(
    names: tuple[str, ...], preset: str, device: str, rounds: int, peers: Path, environment: dict[str, str]
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """The cost of each network's steps, taken in turn, a round an entry; and what each says of itself."""
    processes = {}
    for name in names:
        python = peers if name.split()[0] in ("make-a-video-pytorch", "diffusers") else Path(sys.executable)
        command = [str(python), str(WORKER), name, preset, device]
        processes[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
    facts = {name: json.loads(_read(process)) for name, process in processes.items()}
    seen: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name, process in processes.items():
            assert process.stdin is not None
            process.stdin.write("step\n")
            process.stdin.flush()
            seen[name].append(float(_read(process)))
            print(f"  round {turn + 1}/{rounds}  {name}: {seen[name][-1]:.3f} s", file=sys.stderr, flush=True)
    for name, process in processes.items():
        rest, _ = process.communicate()
        if rest.strip():
            facts[name]["peak_bytes"] = int(rest)
    return seen, facts


def _read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        command = " ".join(map(str, process.args[2:]))  # type: ignore[index, union-attr]
        raise SystemExit(f"{command} ended without an answer: see its message above")
    return line


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--preset", default="cpu64", help="cpu32, cpu64 or gpu64")
    options.add_argument("--device", default="cpu")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument(
        "--peers-keep-memory",
        action="store_true",
        help="give the peers' processes our training's setting of the allocator",
    )
    chosen = options.parse_args()
    environment = os.environ | (KEEP_FREED_MEMORY if chosen.peers_keep_memory else {})
    peers = peer_python("unet", "diffusers==0.42.1", no_deps=["make-a-video-pytorch==0.4.0"])

    rows: list[Row] = []
    networks: dict[str, Any] = {}
    shares: dict[str, float] = {}
    ratios: dict[str, list[float]] = {}
    for mine, peer in DUELS:
        seen, facts = duel((mine, peer, "convolution"), chosen.preset, chosen.device, chosen.rounds, peers, environment)
        networks |= facts
        costs = {name: statistics.median(values) for name, values in seen.items()}
        ratios[peer] = [round(theirs / ours, 3) for ours, theirs in zip(seen[mine], seen[peer], strict=True)]
        rows.append(
            Row(f"{chosen.preset}, {mine}", costs[mine], costs[peer], peer, statistics.median(ratios[peer]), UNIT)
        )
        by_round = statistics.median(plain / ours for ours, plain in zip(seen[mine], seen["convolution"], strict=True))
        share = by_round * facts[mine]["flops"] / facts["convolution"]["flops"]
        shares[f"{mine}, beside {peer}"] = round(share, 3)
        for name in (mine, peer, "convolution"):
            parameters, flops = facts[name]["parameters"] / 1e6, facts[name]["flops"] / 1e9
            print(f"{name}: {parameters:.1f}M parameters, {flops:.0f} GFLOP a step, {flops / costs[name]:.1f} GFLOP/s")
    flops_share = networks["ours"]["flops"] / networks["make-a-video-pytorch"]["flops"]
    report(
        "unet",
        rows,
        networks=networks,
        peers_keep_memory=chosen.peers_keep_memory,
        ratios_by_round=ratios,
        of_plain_convolution=shares,
        flops_over_make_a_video_pytorch=round(flops_share, 3),
    )


if __name__ == "__main__":
    main()
