"""A training that makes no more steps ends and prints its stacks; one that makes steps or has ended is left alone."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, tempfile, time
from mav.training.process.stall import ended_when_stalled, step_made

def waits_for_storage():
    time.sleep(60)

def uploads_a_checkpoint():
    checkpoints = Checkpoints(Folder(tempfile.mkdtemp()), "id", 0, 1, keep=1)
    checkpoints.save(1, {"weights": torch.ones(2)}, {})
    checkpoints.wait()

if sys.argv[1] == "uploads":
    import torch
    from mav.storage import Folder
    from mav.training import checkpoint
    from mav.training.checkpoint import Checkpoints

    checkpoint.FsspecWriter.write_data = lambda *_: time.sleep(60)  # storage that takes the bytes and never answers

with ended_when_stalled(1.0):
    for _ in range(15):
        time.sleep(0.1)
        step_made()
    print("steps", flush=True)
    if sys.argv[1] == "hangs":
        waits_for_storage()
    if sys.argv[1] == "uploads":
        uploads_a_checkpoint()
time.sleep(1.5)
print("through")
"""


def _run(kind: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", SCRIPT, kind], capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.parametrize(("kind", "where"), [("hangs", "waits_for_storage"), ("uploads", "uploads_a_checkpoint")])
def test_a_stalled_training_ends_and_says_where(kind: str, where: str) -> None:
    ended = _run(kind)
    assert ended.returncode == 1
    assert ended.stdout == "steps\n"
    assert where in ended.stderr


def test_steps_keep_it_alive_and_its_end_ends_the_watch() -> None:
    ended = _run("works")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "steps\nthrough\n", "")
