"""A training that makes no more steps ends and prints its stacks; one that makes steps or has ended is left alone."""

import subprocess
import sys

SCRIPT = """
import sys, time
from mav.training.process.stall import ended_when_stalled, step_made

def waits_for_storage():
    time.sleep(60)

with ended_when_stalled(1.0):
    for _ in range(15):
        time.sleep(0.1)
        step_made()
    print("steps", flush=True)
    if sys.argv[1] == "hangs":
        waits_for_storage()
time.sleep(1.5)
print("through")
"""


def _run(kind: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", SCRIPT, kind], capture_output=True, text=True, timeout=50, check=False)


def test_a_stalled_training_ends_and_says_where() -> None:
    ended = _run("hangs")
    assert ended.returncode == 1
    assert ended.stdout == "steps\n"
    assert "waits_for_storage" in ended.stderr


def test_steps_keep_it_alive_and_its_end_ends_the_watch() -> None:
    ended = _run("works")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "steps\nthrough\n", "")
