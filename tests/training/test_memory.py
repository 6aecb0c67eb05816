"""Memory that a training process frees is there for its next step."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from mav.training.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def step():
    a = torch.ones(12 * 2**20)  # 48 MB, 12,288 pages
    b = a + 1
    del a, b
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_step_finds_the_memory_of_the_last():
    faults = {}
    for what in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", SCRIPT, what], capture_output=True, text=True, check=True)
        faults[what] = int(done.stdout)
    assert faults["kept"] < 1000
    assert faults["given back"] > 10 * faults["kept"]
