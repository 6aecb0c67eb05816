"""The changes that ARCHITECTURE.md shows are applied to a copy of the code, and the lines beside them tried on it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
CHANGES = re.findall(
    r"^## (Add .+?)\n.+?^```diff\n(.+?)^```\n.+?^```python\n(.+?)^```\n", PAGE, re.MULTILINE | re.DOTALL
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for part in ("flows", "filters", "mav"):
        shutil.copytree(ROOT / part, tmp_path / "code" / part, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "code"


def tried(code: Path, lines: str) -> subprocess.CompletedProcess[str]:
    place = code.parent / "place"
    place.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", lines],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_part_has_a_change_to_show() -> None:
    assert [title for title, _, _ in CHANGES] == re.findall(r"^## (Add .+)$", PAGE, re.MULTILINE)
    assert len(CHANGES) == 4


@pytest.mark.parametrize(("title", "change", "lines"), CHANGES, ids=[title for title, _, _ in CHANGES])
def test_change_applies_and_works(copy: Path, title: str, change: str, lines: str) -> None:
    assert tried(copy, lines).returncode != 0, "without the change it must not work"
    # `git apply` is silent where a change finds no place inside a repository of its own, so it is told that there is
    # none.
    subprocess.run(
        ["git", "apply", "-p0", "--unidiff-zero", "--whitespace=error", "-"],
        cwd=copy, env=os.environ | {"GIT_CEILING_DIRECTORIES": str(copy.parent)}, input=change, text=True, check=True,
    )  # fmt: skip
    done = tried(copy, lines)
    assert done.returncode == 0, done.stderr
