"""What commands print: sentences that break between words, and tables that fit the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import IO, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

WORD = re.compile(r"(?:`[^`]*`|\d %|\S)+")  # a command in backticks is one word, so that it can be copied; so is 5 %
TEXT = 24  # a column of text is not made narrower than this
GAP = 2  # columns between those of a table
MOST_PARTS = 3  # of one table; rows of more are hard to follow
WIDEST = 10_000  # in a file, where every row finds room


def wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Returns the words of a text as lines of at most `width` columns of a terminal, and longer words alone on a line.

    The first line begins with `first`, all others with `rest`.
    """
    lines, line, empty = [], first, True
    for word in WORD.findall(text):
        longer = f"{line}{'' if empty else ' '}{word}"
        if not empty and cell_len(longer) > width:
            lines.append(line)
            longer = rest + word
        line, empty = longer, False
    return [*lines, line]


def broken(text: str, width: int) -> list[str]:
    """Returns the lines of a text, broken between words; spaces at the beginning of a line indent its rest."""
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip(" "))]
        lines += wrapped(line, width, indent, f"{indent}  " if indent else "")
    return lines


def say(text: str, stream: IO[str] | None = None) -> None:
    """Prints sentences to the standard output or the `stream`, on a terminal broken between words."""
    stream = stream or sys.stdout
    if stream.isatty():
        text = "\n".join(broken(text, Console(file=stream).width))
    print(text, file=stream, flush=True)


def say_written(*paths: str) -> None:
    """Prints where files are that a command has written, each on a line of its own that can be copied."""
    print(*(f"written: {path}" for path in paths), sep="\n", flush=True)


class PlainTable:
    """A table without borders, whose cells are never cut and never read as markup.

    The columns named in `right` are aligned right and hold numbers or names, which never break; others may hold text,
    which breaks between words. Where the columns find no room beside each other, they are shown in parts, each with
    the first column, or every row under its name, whichever takes fewer lines.
    """

    def __init__(self, *columns: str, right: Collection[str] = (), title: str = "") -> None:
        self.columns, self.right, self.title = columns, right, title
        self.rows: list[list[Text]] = []

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        """Adds a row of as many cells as there are columns."""
        row = [Text(cell) if isinstance(cell, str) else cell.copy() for cell in cells]
        for cell, _ in zip(row, self.columns, strict=True):
            cell.stylize(style)
        self.rows.append(row)

    def parts(self, width: int) -> list[Table | Text]:
        """Returns what to print, one under the other, to show the table in so many columns of a terminal."""
        natural = [
            max(map(cell_len, (name, *(row[number].plain for row in self.rows))))
            for number, name in enumerate(self.columns)
        ]
        least = [
            size if name in self.right else min(size, max(TEXT, self._longest_word(number)))
            for number, (size, name) in enumerate(zip(natural, self.columns, strict=True))
        ]

        # Give each part as many columns as find room beside the first one.
        groups: list[list[int]] = [[0]]
        for number in range(1, len(self.columns)):
            if sum(least[one] + GAP for one in groups[-1]) + least[number] > width and len(groups[-1]) > 1:
                groups.append([0])
            groups[-1].append(number)
        tables = [self._table(group, _widths(group, natural, least, width)) for group in groups]
        title = [Text(line) for line in wrapped(self.title, width)] if self.title else []
        if len(groups) == 1 and _room(groups[0], least) <= width:
            return [*title, tables[0]]
        apart = [each for table in tables for each in (table, Text())][:-1]
        records = list(self._records(width))
        fit = len(groups) <= MOST_PARTS and all(_room(group, least) <= width for group in groups)
        height = len(groups) * (len(self.rows) + 2)
        if fit and height < len(records):
            return [*title, *apart]
        return [*title, *records]

    def _longest_word(self, number: int) -> int:
        return max((cell_len(word) for row in self.rows for word in WORD.findall(row[number].plain)), default=0)

    def _table(self, group: Sequence[int], widths: Sequence[int]) -> Table:
        """Returns a part of the table with these columns."""
        table = Table(box=None, header_style="bold", pad_edge=False)
        for number, width in zip(group, widths, strict=True):
            justify: Literal["left", "right"] = "right" if self.columns[number] in self.right else "left"
            table.add_column(Text(self.columns[number]), justify=justify, width=width, overflow="fold")
        for row in self.rows:
            table.add_row(*(row[number] for number in group))
        return table

    def _records(self, width: int) -> Iterator[Text]:
        """Yields the lines of a table row by row, each under its name and without its empty cells."""
        for name, *cells in self.rows:
            yield Text(name.plain, "bold")
            for column, cell in zip(self.columns[1:], cells, strict=True):
                if cell.plain.strip():
                    for line in wrapped(f"{column}: {cell.plain.strip()}", width, "  ", "    "):
                        yield Text(line)


def _room(group: Sequence[int], least: Sequence[int]) -> int:
    return sum(least[number] + GAP for number in group) - GAP


def _widths(group: Sequence[int], natural: Sequence[int], least: Sequence[int], width: int) -> list[int]:
    """Returns the widths of a part's columns: what they need at least, and what is left shared among those of text."""
    widths = {number: least[number] for number in group}
    left, wanting = width - _room(group, least), [number for number in group if natural[number] > least[number]]
    for number in sorted(wanting, key=lambda number: natural[number]):
        share = max(0, min(natural[number] - least[number], left // len(wanting)))
        widths[number] += share
        left -= share
        wanting = wanting[1:]
    return list(widths.values())


def show(table: PlainTable) -> None:
    """Prints a table to the standard output, on a terminal in its width, in a file each row on a line of its own."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDEST)
    with console.capture() as captured:
        for part in table.parts(console.width):
            console.print(part, soft_wrap=isinstance(part, Text), crop=False)
    print(*(line.rstrip() for line in captured.get().splitlines()), sep="\n", flush=True)
