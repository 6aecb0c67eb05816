"""What a user sees at 40, 80 and 200 columns: no word is cut, no line is longer than the terminal."""

import io
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer
from rich.cells import cell_len
from rich.text import Text

from flows.cli.main import PANELS, app
from flows.services.printing import PlainTable, say, show, wrapped
from flows.services.terminal import ProgressLine, Terminal, spinner

WIDTHS = (40, 80, 200)
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Stream(io.StringIO):
    """A terminal, whose lines are read without its codes."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        return [line.rstrip() for line in re.split(r"[\r\n]+", CODES.sub("", self.getvalue()))]


@pytest.fixture
def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Stream]:
    """Leads both streams to a terminal of so many columns; called within the test, after pytest has set its own."""

    def opened(width: int) -> Stream:
        stream = Stream()
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return opened


def commands(command: Any, context: Any = None, name: str = "mav") -> Iterator[tuple[Any, Any]]:
    """Yields every command and group with its context."""
    context = command.context_class(command, info_name=name, parent=context)
    yield command, context
    for inner in getattr(command, "commands", {}).items():
        yield from commands(inner[1], context, inner[0])


@pytest.mark.parametrize("width", WIDTHS)
def test_every_help_page_has_whole_names_meanings_and_an_example(
    open_terminal: Callable[[int], Stream], width: int
) -> None:
    open_terminal(width)
    examples = [example for panel in PANELS.values() for example in panel.values()]
    for command, context in commands(typer.main.get_command(app)):
        page = CODES.sub("", command.get_help(context))
        assert max(map(cell_len, page.splitlines())) <= width, context.command_path
        assert not re.search(r"[…<{}─]", page), "neither cut words nor types of Python"
        for parameter in command.get_params(context):
            names = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]
            assert all(re.search(rf"^  (\S+, )?{re.escape(name)}\b", page, re.MULTILINE) for name in names), names
            assert parameter.help, f"{context.command_path} {names} says nothing"
            assert parameter.is_flag if parameter.metavar is None and parameter.param_type_name == "option" else True
        example = page.split("\nExample\n")[1].split("\n\n")[0].replace("\\\n", "")
        assert " ".join(example.split()) in [*examples, "mav run demo && mav report demo"]


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_keep_all_names_and_numbers(open_terminal: Callable[[int], Stream], width: int) -> None:
    terminal = open_terminal(width)
    numbers = ("seconds", "rows in", "rows out", "shards")
    table = PlainTable("stage", "state", *numbers, "fingerprint", "why", right=numbers, title="of tiny")
    rows: list[tuple[str | Text, ...]] = [
        ("evaluate-interpolation", Text("done", "green"), "1,000.1", "1,234,567", "1,234,000", "17", "abcdef123456",
         "it follows /runs/[bold]/x: [1] -> [2]; seed: 0 -> 3"),
        ("train-sr-low-video", "missing", "", "", "", "", "fedcba654321", ""),
    ]  # fmt: skip
    for row in rows:
        table.add_row(*row)
    show(table)
    for cell in ("of tiny", *numbers, *rows[0][:-1], rows[1][0], "fedcba654321"):
        assert any(str(cell) in line for line in terminal.lines()), cell
    words = " ".join(terminal.lines()).split()
    assert {"/runs/[bold]/x:", "[1]", "->", "[2];", "3"} <= {*words}, "no cell is read as markup"
    assert max(map(cell_len, terminal.lines())) <= width


def test_a_table_in_a_file_has_a_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    table = PlainTable("stage", "why")
    table.add_row("report", "it follows everything " * 30)
    show(table)
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_too_wide_is_shown_in_few_parts_or_by_rows(open_terminal: Callable[[int], Stream], width: int) -> None:
    terminal = open_terminal(width)
    names = [f"column {number}" for number in range(8)]
    table = PlainTable("network", *names, right=names)
    for row in range(7):
        table.add_row(f"network {row}", *(f"{row}.{column} GB" for column in range(8)))
    show(table)
    heads = [line for line in terminal.lines() if line.startswith("network  ")]
    assert len(heads) == {40: 3, 80: 2, 200: 1}[width] or (width == 40 and "  column 7: 6.7 GB" in terminal.lines())
    assert max(map(cell_len, terminal.lines())) <= width


@pytest.mark.parametrize("width", [40])
def test_sentences_break_between_words_and_commands_stay_whole(
    open_terminal: Callable[[int], Stream], width: int
) -> None:
    terminal = open_terminal(width)
    say("mav: Nothing is built yet in this folder: `mav run demo --until clip` (`mav run x`) builds it.\n  a list " * 2)
    lines = terminal.lines()
    assert max(map(cell_len, lines)) <= 40
    assert sum(line.count("`mav run demo --until clip`") for line in lines) == 2
    assert any(line.startswith("  a list") for line in lines)
    assert wrapped("a /path/longer/than/the/line b", 10) == ["a", "/path/longer/than/the/line", "b"]
    assert wrapped("視頻 視頻", 8) == ["視頻", "視頻"], "wide letters take two columns"


def test_sentences_in_a_file_stay_on_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("word " * 100 + "\nnext")
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.parametrize("width", [40, 59, 80, 100, 200])
def test_progress_is_never_cut(open_terminal: Callable[[int], Stream], width: int) -> None:
    terminal = open_terminal(width)
    with Terminal() as shown, ProgressLine() as line:
        for stage in ("evaluate-interpolation", "train-prior"):
            shown.start(stage)
            shown.progress(stage, 20, 100, loss=0.0573, samples_per_second=344.0, utilisation=0.4)
        shown.start("clip")  # draws what is known of the others
        shown.say("image-download is waiting for an address that answers slowly")
        line("train-sr-low-video", 3, 1000)
        shown.end("train-prior", "done in 2.6 s: 1,205 of 1,561 rows (without: watermark 107, [nsfw] 100)")
    lines = terminal.lines()
    assert max(map(cell_len, lines)) <= width
    assert [line for line in lines if "…" in line] == []
    assert any("train-prior" in line and "20 %" in line for line in lines)
    assert any("train-prior" in line and "344 samples/s" in line for line in lines) == (width > 40)
    assert "[nsfw]" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", [80])
def test_progress_leaves_the_standard_output_alone(
    open_terminal: Callable[[int], Stream], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paths of `mav sample` may go to a file while the progress is on the terminal."""
    terminal = open_terminal(width)
    monkeypatch.setattr(sys, "stdout", file := io.StringIO())
    with ProgressLine() as line:
        line("sample", 1, 2)
        print("one")
        line.say("two")
    assert file.getvalue() == "one\ntwo\n"
    assert "one" not in terminal.getvalue()


def test_a_spinner_keeps_to_one_line_and_leaves_none(open_terminal: Callable[[int], Stream]) -> None:
    stream = open_terminal(40)
    with spinner("Work whose name is longer than the line of a terminal") as status:
        status.update()
    assert "…" in stream.getvalue()
    assert max(cell_len(line) for line in stream.lines()) <= 40
    assert stream.getvalue().count("\x1b[1A") == 1, "it goes up one line, to erase it"
