"""The small part of `make chaos` that every CI run can afford."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_dozen_faults_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    result = tmp_path / "chaos.json"
    script = Path(__file__).parent / "chaos.py"
    command = [sys.executable, str(script), "--subset", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(result.read_text())
    assert figures["faults"] == figures["resumed"] >= 10
    assert (figures["lost"], figures["doubled"], figures["differing_artifacts"], figures["problems"]) == (0, 0, 0, [])
