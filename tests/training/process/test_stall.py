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


@pytest.fixture(scope="module")
def ended() -> dict[str, tuple[int, str, str]]:
    """Exit code, stdout and stderr of a process of each kind. They mostly wait, so they run at once."""
    pipe = subprocess.PIPE
    started = {
        kind: subprocess.Popen([sys.executable, "-c", SCRIPT, kind], stdout=pipe, stderr=pipe, text=True)
        for kind in ("hangs", "uploads", "works")
    }
    told = {kind: process.communicate(timeout=50) for kind, process in started.items()}
    return {kind: (started[kind].returncode, *told[kind]) for kind in started}


@pytest.mark.parametrize(("kind", "where"), [("hangs", "waits_for_storage"), ("uploads", "uploads_a_checkpoint")])
def test_a_stalled_training_ends_and_says_where(ended: dict[str, tuple[int, str, str]], kind: str, where: str) -> None:
    code, out, error = ended[kind]
    assert code == 1
    assert out == "steps\n"
    assert where in error


def test_steps_keep_it_alive_and_its_end_ends_the_watch(ended: dict[str, tuple[int, str, str]]) -> None:
    assert ended["works"] == (0, "steps\nthrough\n", "")
