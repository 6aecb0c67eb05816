"""The GPU's benchmark runs on a processor at small size, so that it works where a card is rare."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from bench_roofline import roofline

from mav.recipes.reader import load_recipe
from mav.training.network_costs import network_cost

STAGES = ("train-prior", "train-sr-high", "train-decoder-video")


@pytest.mark.slow
def test_every_part_measures_something(tmp_path):
    """All but `demo`, which is the whole pipeline and has tests of its own."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(Path(__file__).with_name("bench_gpu.py")), "--device", "cpu", "--recipe", "tiny"]
    command += ["--parts", "kernels,launches,stages,unet,sampling", "--stages", ",".join(STAGES), "--seconds", "0.05"]
    subprocess.run([*command, "--out", str(out)], check=True, timeout=500, capture_output=True)
    found = json.loads(out.read_text())
    assert found["card"]["matrix_teraflops"] > 0
    assert all(row["ms"] > 0 and row["pytorch_ms"] > 0 and row["difference"] < 1e-2 for row in found["kernels"])
    assert all(row["kernels"] > 10 and row["kernel_seconds"] > 0 for row in found["launches"].values())
    assert [row["stage"] for row in found["stages"]] == list(STAGES)
    for row in found["stages"]:
        assert row["samples_per_second"] > 0
        assert 0 < row["of_matrix_rate"] < 2
        assert math.isfinite(row["loss"])
    assert found["unet"]["seconds_a_step"]["ours"] > 0
    assert set(found["sampling"]["calls"]) == {"prior", "decoder", "interpolation", "sr_low", "sr_high"}


def test_the_least_time_of_a_step_counts_all_of_its_arithmetic():
    """As `mav describe` counts it; a kernel takes no less than its bytes or its FLOPs do."""
    found = roofline("tiny", "train-decoder-video", teraflops=1.0, gigabytes=10.0)
    described = network_cost("train-decoder-video", load_recipe("tiny"))
    work = 1e12 * sum(row["teraflops"] for row in found["kernels"])
    assert work == pytest.approx(
        (described.flops_per_sample + described.recomputed_flops_per_sample) * found["micro_batch"]
    )
    assert found["of_matrix_rate"] == pytest.approx(work / 1e12 / (found["ms"] / 1e3))
    for row in found["kernels"]:
        assert row["ms"] >= max(row["teraflops"] / 1.0, row["gigabytes"] / 10.0) * 1e3 * (1 - 1e-9)
    assert {"mav::rows_norm", "mav::rows_gate_gradient", "aten::convolution"} <= {
        row["kernel"] for row in found["kernels"]
    }
