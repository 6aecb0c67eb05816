"""Memory that a training process frees is there for its next step."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from mav.training.process.memory import keep_freed_memory
def step():
    a = torch.ones(12 * 2**20)  # 48 MB, 12,288 pages
    b = a + 1
    del a, b
def faults():
    for _ in range(5):
        step()
    found = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step()
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return sorted(found)[2]  # the median: a small allocation in a freed block's place makes the heap grow, once
print(faults())
keep_freed_memory()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_step_finds_the_memory_of_the_last():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert kept < 200
    assert given_back > 10 * kept
