"""Rows of text files (CSV, TSV, one JSON object a line), each with the byte at which it begins.

Lines of any bytes are read, and a row that is malformed takes no other row with it: a quotation mark that nothing
closes, for example, is a letter like others.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from typing import IO

DELIMITERS = ",\t;|"
BEGINNING = 1 << 16  # bytes
MOST_LINES = 100  # of one record: a quoted field that goes on for longer was never meant to be one


class Lines:
    """Decoded lines of a binary file, with the byte at which the next one begins.

    Bytes that are not UTF-8 are decoded as Python decodes the names of files: `os.fsencode` gives them back. Where the
    beginning of a file has carriage returns and no line feed, they end its lines, as old spreadsheets write them.
    """

    def __init__(self, file: IO[bytes]) -> None:
        file.seek(0)
        head = file.read(BEGINNING)
        self._old = b"\r" in head[:-1] and b"\n" not in head
        self._rest: list[bytes] = []  # lines of a file of the old kind that are split already
        file.seek(0)
        self._file, self.offset = file, 0
        self._ahead: list[bytes] = []

    def seek(self, offset: int) -> None:
        self._file.seek(offset)
        self.offset, self._ahead, self._rest = offset, [], []

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self._ahead.pop(0) if self._ahead else self._read()
        if not line:
            raise StopIteration
        self.offset += len(line)
        return line.decode("utf-8", "surrogateescape")

    def ahead(self, number: int) -> str:
        """Returns the line `number` lines after the next one, without taking it; '' after the last."""
        while len(self._ahead) <= number:
            self._ahead.append(self._read())
        return self._ahead[number].decode("utf-8", "surrogateescape")

    def _read(self) -> bytes:
        if not self._old:
            return self._file.readline()
        if len(self._rest) < 2:  # the last one may be cut
            data = b"".join(self._rest) + self._file.read(BEGINNING)
            self._rest = re.findall(rb"[^\r]*\r|[^\r]+", data)
        return self._rest.pop(0) if self._rest else b""


def delimiter_of(header: str, known: Sequence[str], path: str) -> str:
    """Returns the delimiter that finds the most known columns; of equal ones the ending's, then the comma."""
    order = "\t" + DELIMITERS if path.lower().endswith((".tsv", ".tab")) else DELIMITERS

    def found(delimiter: str) -> int:
        return sum(name.strip().lower() in known for name in _fields(header, delimiter) or [])

    return max(order, key=found)


def fields_of(line: str, delimiter: str) -> list[str]:
    """Returns the fields of a line by itself."""
    fields = _fields(line, delimiter)
    return _as_it_is(line, delimiter, 0) if fields is None else fields


def records(lines: Lines, delimiter: str, width: int) -> Iterator[tuple[int, list[str]]]:
    """Yields each record that is not blank, with the byte at which it begins. width: the columns of the header."""
    while True:
        begin = lines.offset
        line = next(lines, None)
        if line is None:
            return
        fields = _fields(line, delimiter)
        if fields is None:
            taken = _spanned(line, lines, delimiter, width)
            for _ in range(taken):
                line += next(lines)
            fields = _fields(line, delimiter) if taken else None
        if line.strip():
            yield begin, fields if fields is not None else _as_it_is(line, delimiter, width)


def _fields(text: str, delimiter: str) -> list[str] | None:
    """Returns the fields of one record; None when a quotation mark in it is not closed, or not where a field ends."""
    try:
        rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else [] if not rows else None


def _as_it_is(line: str, delimiter: str, width: int) -> list[str]:
    """Returns the fields of a line whose quotation marks are at odds: as a lenient reader has them, or as letters."""
    try:
        fields = next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:  # a field longer than the reader takes
        fields = []
    return fields if len(fields) == width else line.rstrip("\r\n").split(delimiter)


def _spanned(line: str, lines: Lines, delimiter: str, width: int) -> int:
    """Returns how many of the following lines belong to a record whose quoted field does not end on its first line.

    Returns 0 when no closing mark makes a record of the header's width, or when lines in between are records by
    themselves: the quotation mark is a stray one.
    """
    for number in range(MOST_LINES if width > 1 else 0):
        following = lines.ahead(number)
        if not following:
            return 0
        line += following
        alone = _fields(following, delimiter)
        if alone is not None and len(alone) == width:
            return 0
        fields = _fields(line, delimiter)
        if fields is not None:
            return number + 1 if len(fields) == width else 0
    return 0
