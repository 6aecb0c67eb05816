"""Streams the rows of CSV, TSV, jsonl and parquet files from any storage, with the place where reading can resume."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa

from mav.data.parquet import open_parquet
from mav.data.text_rows import Lines, delimiter_of, fields_of, records
from mav.errors import UserError
from mav.storage.patterns import matching_paths
from mav.storage.urls import storage_of

Row = dict[str, Any]
NULLS = ("", "none", "null", "nan", "nat", "<na>", "n/a")
PACKED_BYTES = (b"\x1f\x8b", b"PK\x03\x04", b"BZh9", b"\xfd7zXZ", b"(\xb5/\xfd")  # how gz, zip, bz2, xz, zst begin
PACKED = tuple(packed.decode("utf-8", "surrogateescape") for packed in PACKED_BYTES)
WHOLE = re.compile(r"^([0-9]+)\.0+$")  # a whole number that was once a float


def matching(sources: Sequence[str], key: str, tell: Callable[[str], None] | None = None) -> list[str]:
    """Returns the files that paths and globs name, in order; the matches of a glob are sorted.

    Hidden files that a glob leaves out are told. Raises UserError naming the recipe's `key` for a glob without a match.
    """
    paths: list[str] = []
    for source in sources:
        hidden: list[str] = []
        found = matching_paths(source, hidden)
        if hidden and tell:
            more = f" and {len(hidden) - 3} more" if len(hidden) > 3 else ""
            tell(f"{source} leaves out hidden files: {', '.join(hidden[:3])}{more}")
        if not found:
            raise UserError(f"No file matches {source}: correct `{key}`.")
        paths += found
    return paths


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Opens a list. Errors of opening and reading it become UserErrors that name it."""
    try:
        fs, name = storage_of(path)
        with fs.open(name, "rb") as file:
            if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError(f"{path} is text in UTF-16: save it as UTF-8.")
            file.seek(0)
            yield file
    except FileNotFoundError:
        raise UserError(f"There is no file {path}: correct `video_shards.sources`.") from None
    except (pa.ArrowException, OSError) as error:
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path} cannot be read as a list of clips ({what}): it must be parquet, or CSV, TSV or jsonl in UTF-8."
        ) from None


def is_parquet(path: str) -> bool:
    """Says whether a list is a parquet file, by its ending in any case."""
    return path.lower().endswith((".parquet", ".pq"))


def is_jsonl(path: str) -> bool:
    """Says whether a list has one JSON object a line, by its ending in any case."""
    return path.lower().endswith((".jsonl", ".json", ".ndjson"))


def columns_of(path: str, known: Sequence[str]) -> tuple[str, ...]:
    """Returns the column names of a CSV or parquet file, which is delimited so that most `known` ones are found.

    Raises UserError for an empty file.
    """
    with _opened(path) as file:
        if is_parquet(path):
            return tuple(open_parquet(file).schema_arrow.names)
        columns = _header(Lines(file), known, path)[0]
    if not columns:
        raise UserError(f"{path} is empty: expected is a CSV whose first line names its columns.")
    return columns


def _header(lines: Lines, known: Sequence[str], path: str) -> tuple[tuple[str, ...], str]:
    """Reads the first line that is not blank; returns its columns and the delimiter."""
    line = next((line for line in lines if line.strip("\ufeff \t\r\n")), "").lstrip("\ufeff")
    if "\0" in line or line.startswith(PACKED):
        raise UserError(f"{path} is no text in UTF-8: unpack it, or save it as such.")
    delimiter = delimiter_of(line, known, path)
    return tuple(column.strip() for column in fields_of(line, delimiter)), delimiter


def rows(path: str, columns: Sequence[str], place: int = -1) -> Iterator[tuple[int, Row]]:
    """Yields place and row from `place` on (-1: the first). A place is a byte of CSV and jsonl, a row of parquet.

    Rows hold the given columns as text, "" where a row has none or a null. Of jsonl without columns the objects stay as
    they are, and a later line that is no object is an empty one. Raises UserError for a first line that is none.
    """
    with _opened(path) as file:
        if is_parquet(path):
            yield from _parquet_rows(path, file, columns, max(place, 0))
        elif is_jsonl(path) and columns:
            for begin, row in _jsonl_rows(path, file, max(place, 0)):
                yield begin, {column: text(row.get(column)) for column in columns}
        elif columns:
            yield from _csv_rows(path, file, columns, place)
        else:
            yield from _jsonl_rows(path, file, max(place, 0))


def _csv_rows(path: str, file: IO[bytes], wanted: Sequence[str], place: int) -> Iterator[tuple[int, Row]]:
    lines = Lines(file)
    columns, delimiter = _header(lines, [name.lower() for name in wanted], path)
    refuse_twins(columns, wanted, path)
    if place >= 0:
        lines.seek(place)
    for begin, record in records(lines, delimiter, len(columns)):
        yield begin, dict.fromkeys(columns, "") | {c: text(v) for c, v in zip(columns, record, strict=False)}


def refuse_twins(columns: Sequence[str], wanted: Sequence[str], path: str) -> None:
    """Raises UserError when a wanted column is there more than once."""
    if twins := [name for name in wanted if columns.count(name) > 1]:
        raise UserError(f"{path} has several columns of the name {twins[0]}: keep one.")


def _jsonl_rows(path: str, file: IO[bytes], place: int) -> Iterator[tuple[int, Row]]:
    lines = Lines(file)
    lines.seek(place)
    first = place == 0
    while True:
        begin = lines.offset
        line = next(lines, None)
        if line is None:
            return
        if not (line := line.strip("\ufeff \t\r\n")):
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if first and not isinstance(value, dict):
            what = "cannot be read as a list of clips" if value is None else "is no list of clips"
            raise UserError(f"{path} {what}: its first line is {line[:40]!r}, and a JSON object is expected.")
        first = False
        yield begin, value if isinstance(value, dict) else {}


def _parquet_rows(path: str, file: IO[bytes], columns: Sequence[str], place: int) -> Iterator[tuple[int, Row]]:
    parquet = open_parquet(file)
    refuse_twins(parquet.schema_arrow.names, columns, path)
    for name in columns:
        kind = parquet.schema_arrow.field(name).type
        if pa.types.is_nested(kind):
            raise UserError(f"{path}: the column {name} is of the type {kind}: write it as one text or number a row.")
    first = 0
    for group in range(parquet.num_row_groups):
        number, first = first, first + parquet.metadata.row_group(group).num_rows
        if first <= place:
            continue
        for batch in parquet.iter_batches(1024, row_groups=[group], columns=list(columns)):
            cells = [_cells(batch.column(name)) for name in batch.schema.names]
            for values in zip(*cells, strict=True):
                if number >= place:
                    yield number, dict(zip(batch.schema.names, map(text, values), strict=True))
                number += 1


def _cells(column: pa.Array) -> list[Any]:
    """Returns the values of a column. Text comes as bytes, which need not be UTF-8."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.large_binary() if pa.types.is_large_string(kind) else pa.binary())
    values: list[Any] = column.to_pylist()
    return values


def storable(name: str) -> str:
    """Returns a text without lone surrogates, which no file in UTF-8 can hold."""
    return name.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def text(value: Any) -> str:
    """Returns a cell as text, "" for what stands for null. A whole number is written alike, whatever its type was."""
    if isinstance(value, (list, dict)):  # of a line of JSON
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, datetime.timedelta):
        value = value.total_seconds()
    if isinstance(value, float) and math.isfinite(value):
        value = int(value) if value == int(value) else f"{value:f}" if "e" in repr(value) else value
    found = str(value).strip()
    return "" if found.lower() in NULLS else WHOLE.sub(r"\1", found)
