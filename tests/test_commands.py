"""Every `mav` command that a page, a help text or an error names is one: its options and arguments are those it has."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.cli.main import PANELS, app

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "infra/README.md", "infra/benchmarks.md"]
SPAN = re.compile(r"`(mav [^`]+)`")


def of_page(text: str) -> Iterator[str]:
    """Yields the commands in the blocks of a page, and those within its sentences."""
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if line.startswith(("mav ", "RAY_ADDRESS")) and " mav " in f" {line}":
                yield re.split(r"\s{2,}|  #", line[line.index("mav ") :])[0]
    yield from SPAN.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("\n", " "))


def of_code(text: str) -> Iterator[str]:
    """Yields the commands that the texts of a module name, with 1 for what is filled in."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "1" for part in node.values]
            yield from SPAN.findall("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from SPAN.findall(" ".join(node.value.split()))


def alternatives(command: str) -> Iterator[list[str]]:
    """Yields the words of each command of a line: `mav a|b X; mav c [--option]` has three."""
    for part in re.split(r"; | && | > \S+", command):
        words = shlex.split(part.replace("[", "").replace("]", "").replace("...", ""))
        at = next((number for number, word in enumerate(words) if "|" in word), 0)
        for word in words[at].split("|") if words else ():
            yield [*words[:at], word, *words[at + 1 :]]


def parse(words: list[str]) -> None:
    """Raises an error when the words are no command. Arguments may be missing, as in the name of a command."""
    command: Any = typer.main.get_command(app)
    names = [name for parameter in command.params for name in parameter.opts]
    words = [word for word in words[1:] if word != "--help" and word not in names]
    while hasattr(command, "commands") and words and not words[0].isupper():
        assert words[0] in command.commands, f"there is no command {words[0]}"
        command = command.commands[words.pop(0)]
    if hasattr(command, "commands"):
        assert all(word.isupper() for word in words), words
        return
    try:
        command.make_context("mav", [*words])
    except Exception as error:
        if type(error).__name__ != "MissingParameter" and [getattr(error, "option_name", "")] != words[-1:]:
            raise


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_one(page: str) -> None:
    text = (ROOT / page).read_text()
    found = list(of_page(text))
    assert found or "`mav " not in text, "the page's commands are not found in it"
    for command in found:
        for words in alternatives(command):
            parse(words)


def test_every_command_that_the_program_names_is_one() -> None:
    found = [example for panel in PANELS.values() for example in panel.values()]
    for folder in ("flows", "mav", "filters"):
        for path in (ROOT / folder).rglob("*.py"):
            found += of_code(path.read_text())
    assert len(found) > 80
    for command in found:
        for words in alternatives(command):
            parse(words)


@pytest.mark.parametrize("wrong", ["mav rnu demo", "mav run demo --untill clip", "mav rerun demo clip more"])
def test_what_is_no_command_is_found(wrong: str) -> None:
    with pytest.raises(Exception, match=r"no command|[Nn]o such option|unexpected extra"):
        parse(wrong.split())
