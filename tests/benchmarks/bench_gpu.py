"""What a GPU makes of the project, against what the card itself can do in the same minutes.

    make bench-gpu
    python tests/benchmarks/bench_gpu.py --parts stages,kernels --seconds 20

Parts: `card` (matrix rate and bandwidth, always first), `kernels` (ours beside PyTorch's and beside their bytes),
`launches` (kernels and processor seconds of a step), `stages` (each training stage on fixed batches: pace, share of
the matrix rate, peak memory against `mav describe`), `unet` (the U-Net beside its peers where they are installed),
`sampling` (one video through the whole cascade). All need torch, pydantic, safetensors, fsspec and open_clip alone, so
that this folder and `mav` can be taken to a machine that has nothing else. `demo` runs the demo's stages end to end and
needs the whole environment. Results: a table, and build/bench/gpu.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import gpu_kernels  # noqa: E402
import gpu_stages  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SPACE_TIME_PEER = ("make-a-video-pytorch", "diffusers")


def card(device: str) -> dict[str, float]:
    """The card's rates, which every other figure is a share of."""
    size = 8192 if device == "cuda" else 512
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = gpu_kernels.seconds_of(lambda: a @ b, device)
    one = torch.randn(2**30 if device == "cuda" else 2**22, device=device, dtype=dtype)
    two = torch.empty_like(one)
    copied = gpu_kernels.seconds_of(lambda: torch.neg(one, out=two), device)
    return {
        "matrix_teraflops": 2 * size**3 / seconds / 1e12,
        "bandwidth_gigabytes": 2 * one.numel() * one.element_size() / copied / 1e9,
    }


def unet(device: str, seconds: float) -> dict[str, Any]:
    """Seconds a step of the same U-Net by each project, each in a process of its own, in turn."""
    preset = "gpu64" if device == "cuda" else "cpu32"
    steps: dict[str, Any] = {}
    for name in ("ours", *SPACE_TIME_PEER):
        command = [sys.executable, str(Path(__file__).parent / "unet_worker.py"), name, preset, device]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert worker.stdin is not None
        assert worker.stdout is not None
        started, times = time.monotonic(), []
        if worker.stdout.readline():  # its facts, after a first step; nothing where the peer is not installed
            while not times or time.monotonic() < started + seconds:
                worker.stdin.write("step\n")
                worker.stdin.flush()
                times.append(float(worker.stdout.readline()))
        worker.communicate()
        if times:
            steps[name] = sorted(times)[len(times) // 2]
    return {"seconds_a_step": steps, "ratios": {name: value / steps["ours"] for name, value in steps.items()}}


def demo(device: str) -> dict[str, Any]:
    """Seconds of the demo's stages end to end, as a user runs them."""
    started = time.monotonic()
    runs = ROOT / "build" / "bench" / "gpu-demo"
    subprocess.run([sys.executable, "-m", "flows.cli.main", "run", "demo", "--runs", str(runs)], check=True, cwd=ROOT)
    return {"seconds": time.monotonic() - started, "device": device}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", default="kernels,launches,stages,unet,sampling")
    parser.add_argument("--recipe", default="single-gpu")
    parser.add_argument("--stages", default=",".join(gpu_stages.STAGES), help="of the recipe, for `stages`")
    parser.add_argument("--micro", type=json.loads, default={}, help='{"train-decoder-video": 8}: other micro-batches')
    parser.add_argument("--checkpoint-levels", type=int, help="instead of the recipe's, for `stages`")
    parser.add_argument("--seconds", type=float, default=15.0, help="of measuring, for each stage and network")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "gpu.json")
    options = parser.parse_args()
    device, parts = options.device, options.parts.split(",")
    if device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here: nothing is measured. `--device cpu --recipe demo` tries the benchmark itself.")
        return
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    measured = card(device)
    results: dict[str, Any] = {"card": measured | gpu_stages.machine(device)}
    print(json.dumps(results["card"]), flush=True)
    rate = measured["matrix_teraflops"]
    measures: dict[str, Callable[[], Any]] = {
        "kernels": lambda: gpu_kernels.kernels(device, measured["bandwidth_gigabytes"]),
        "launches": lambda: gpu_stages.launches(options.recipe, device),
        "stages": lambda: [
            gpu_stages.stage_pace(
                options.recipe,
                stage,
                device,
                options.seconds,
                rate,
                options.micro.get(stage),
                options.checkpoint_levels,
            )
            for stage in options.stages.split(",")
        ],
        "unet": lambda: unet(device, options.seconds),
        "sampling": lambda: gpu_stages.sampling(options.recipe, device),
        "demo": lambda: demo(device),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        results[part] = measures[part]()
        print(f"{part}: {json.dumps(results[part])}", flush=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
