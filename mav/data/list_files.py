"""Streams the rows of CSV, jsonl and parquet files from any storage, with the place at which reading can resume."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from mav.errors import UserError
from mav.storage.patterns import matching_paths

Row = dict[str, Any]


def matching(sources: Sequence[str], key: str) -> list[str]:
    """Returns the files that paths and globs name, in order; the matches of a glob are sorted.

    Raises UserError naming the recipe's `key` for a glob without a match.
    """
    paths: list[str] = []
    for source in sources:
        found = matching_paths(source)
        if not found:
            raise UserError(f"No file matches {source}: correct `{key}`.")
        paths += found
    return paths


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Opens a list. Errors of opening and reading it become UserErrors that name it."""
    try:
        with fsspec.open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"There is no file {path}: correct `video_shards.sources`.") from None
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, pa.ArrowException, OSError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a list of clips ({what}): it must be parquet, or CSV or jsonl in UTF-8."
        ) from None


def columns_of(path: str) -> tuple[str, ...]:
    """Returns the column names of a CSV or parquet file. Raises UserError for an empty file."""
    with _opened(path) as file:
        if path.endswith(".parquet"):
            return tuple(pq.ParquetFile(file).schema_arrow.names)
        columns = _header(csv.reader(_Lines(file)))
    if not columns:
        raise UserError(f"{path} is empty: expected is a CSV whose first line names its columns.")
    return columns


def _header(reader: Iterator[list[str]]) -> tuple[str, ...]:
    return tuple(column.strip().lstrip("\ufeff") for column in next(reader, []))


def rows(path: str, columns: Sequence[str], place: int = -1) -> Iterator[tuple[int, Row]]:
    """Yields place and row from `place` on (-1: the first). A place is a byte of CSV and jsonl, a row of parquet.

    Rows hold the given columns as text, "" where a row has none. jsonl has no columns: its objects stay as they are.
    """
    with _opened(path) as file:
        if path.endswith(".parquet"):
            yield from _parquet_rows(file, columns, max(place, 0))
        elif columns:
            yield from _csv_rows(file, place)
        else:
            yield from _jsonl_rows(path, file, max(place, 0))


def _csv_rows(file: IO[bytes], place: int) -> Iterator[tuple[int, Row]]:
    lines = _Lines(file)
    reader = csv.reader(lines)
    columns = _header(reader)
    if place >= 0:
        lines.seek(place)
    for begin, record in lines.places_of(reader):
        if record:
            yield begin, dict.fromkeys(columns, "") | dict(zip(columns, record, strict=False))


def _jsonl_rows(path: str, file: IO[bytes], place: int) -> Iterator[tuple[int, Row]]:
    lines = _Lines(file)
    lines.seek(place)
    for begin, line in lines.places_of(lines):
        if not (text := line.strip()):
            continue
        value = json.loads(line)
        if not isinstance(value, dict):
            raise UserError(
                f"{path} is no list of clips: a line of it holds {text[:40]!r} where an object is expected."
            )
        yield begin, value


def _parquet_rows(file: IO[bytes], columns: Sequence[str], place: int) -> Iterator[tuple[int, Row]]:
    parquet = pq.ParquetFile(file)
    first = 0
    for group in range(parquet.num_row_groups):
        number, first = first, first + parquet.metadata.row_group(group).num_rows
        if first <= place:
            continue
        for batch in parquet.iter_batches(1024, row_groups=[group], columns=list(columns)):
            for row in batch.to_pylist():
                if number >= place:
                    yield number, {name: "" if value is None else str(value) for name, value in row.items()}
                number += 1


class _Lines:
    """Decoded lines of a binary file, with the byte at which the next one begins."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._offset = file, file.tell()

    def seek(self, offset: int) -> None:
        self._file.seek(offset)
        self._offset = offset

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        self._offset += len(line)
        return line.decode()

    def places_of(self, records: Iterator[Any]) -> Iterator[tuple[int, Any]]:
        """Yields records read from these lines with the byte at which each begins. A record may span lines."""
        begin = self._offset
        for record in records:
            yield begin, record
            begin = self._offset
