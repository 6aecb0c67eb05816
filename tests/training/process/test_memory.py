"""Memory that a training process frees is there for its next step."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from mav.training.process.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def step():
    a = torch.ones(12 * 2**20)  # 48 MB, 12,288 pages
    b = a + 1
    del a, b
for _ in range(5):
    step()
faults = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(faults)[2])  # the median: a small allocation in a freed block's place makes the heap grow, once
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_step_finds_the_memory_of_the_last():
    faults = {}
    for what in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", SCRIPT, what], capture_output=True, text=True, check=True)
        faults[what] = int(done.stdout)
    assert faults["kept"] < 200
    assert faults["given back"] > 10 * faults["kept"]
