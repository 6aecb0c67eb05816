"""The changes that ARCHITECTURE.md shows are applied to a copy of the code, and the lines beside them tried on it."""

import json
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


# Tries the lines that stdin has for each copy of the code, and writes how each ended. Every try is a fork of a process
# that has imported what is dear, and none of our modules.
TRIES = """
import json, os, sys, traceback
import cv2, open_clip, pyarrow.parquet, torch.distributed.checkpoint, torchvision
for code, lines in json.load(sys.stdin):
    if not os.fork():
        sys.path.insert(0, code)
        os.makedirs(f"{code}/place", exist_ok=True)
        os.chdir(f"{code}/place")
        try:
            exec(lines, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def tried(tries: list[tuple[str, str]]) -> list[tuple[int, str]]:
    """Returns the exit code of each (folder of code, lines), beside what all of them wrote to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", TRIES],
        input=json.dumps(tries),
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [(int(code), done.stderr) for code in done.stdout.split()]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str]]]:
    """How the lines of each change ended without it and with it."""
    root = tmp_path_factory.mktemp("code")
    for part in ("flows", "filters", "mav"):
        shutil.copytree(ROOT / part, root / "plain" / part, ignore=shutil.ignore_patterns("__pycache__"))
    copies = []
    for number, (_, change, _) in enumerate(CHANGES):
        # `git apply` is silent where a change finds no place inside a repository of its own, so it is told that there
        # is none.
        copies.append(str(shutil.copytree(root / "plain", root / str(number))))
        environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(root)}
        command = ["git", "apply", "-p0", "--unidiff-zero", "--whitespace=error", "-"]
        subprocess.run(command, cwd=copies[-1], env=environment, input=change, text=True, check=True)
    plain = [str(root / "plain")] * len(CHANGES)
    found = tried([*zip(plain + copies, [lines for _, _, lines in CHANGES] * 2, strict=True)])
    return {title: found[number :: len(CHANGES)] for number, (title, _, _) in enumerate(CHANGES)}


def test_every_part_has_a_change_to_show() -> None:
    assert [title for title, _, _ in CHANGES] == re.findall(r"^## (Add .+)$", PAGE, re.MULTILINE)
    assert len(CHANGES) == 4


@pytest.mark.parametrize("title", [title for title, _, _ in CHANGES])
def test_change_applies_and_works(ended: dict[str, list[tuple[int, str]]], title: str) -> None:
    (without, _), (changed, told) = ended[title]
    assert without != 0, "without the change it must not work"
    assert changed == 0, told
