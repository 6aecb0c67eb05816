"""The one reader of lists of prompts, for what is generated, evaluated and shown to raters.

Read as published are DrawBench's CSV (Prompts, Category), PartiPrompts' TSV (Prompt, Category, ...), VBench's JSON
(prompt_en, dimension), EvalCrafter's text and JSON, lists of one prompt a line, and one JSON value a line. The form is
decided by the content, and by the ending where the content leaves it open.
"""

import csv
import io
import json
import math
import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mav.data.list_files import storable
from mav.errors import UserError
from mav.storage import Folder

# Columns and keys, in lower case, that hold the prompt or its category; the first that is there counts.
PROMPT = ("prompt", "prompts", "prompt_en", "caption", "text", "sentence")
CATEGORY = ("category", "categories", "dimension", "type")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PLAIN = ("", ".txt", ".text", ".lst", ".list", ".prompt", ".prompts", ".md")
JSON = (".json", ".jsonl", ".ndjson")

Prompts = list[tuple[str, str]]


def read_prompts(file: Folder) -> Prompts:
    """Returns (prompt, category) of each prompt of a file; the category may be ''. Rows without any value are left out.

    Videos are numbered as the prompts, so a row that has a category and no prompt is refused. Raises UserError when the
    file is missing, malformed, of an unknown format or empty.
    """
    ending = posixpath.splitext(file.url)[1].lower()
    try:
        data = file.read_bytes("")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{file.url} is not there: name a file of prompts.") from None
    text = _decoded(data, file.url)
    try:
        pairs = _pairs(text, ending)
    except RecursionError:
        raise UserError(f"{file.url} is nested too deeply for a list of prompts: give one prompt a line.") from None
    except (ValueError, KeyError, csv.Error) as error:
        remedy = "give one a line, a CSV or TSV with a Prompt column, or JSON with a prompt in each object"
        raise UserError(f"{file.url} cannot be read as prompts ({error}): {remedy}.") from None
    for number, (prompt, category) in enumerate(pairs, 1):
        if category and not prompt:
            raise UserError(f"{file.url} has no prompt in its row {number} ({category}): write one, or delete the row.")
    pairs = [(storable(prompt), storable(category)) for prompt, category in pairs if prompt]
    if not pairs:
        raise UserError(f"{file.url} holds no prompt: write one a line.")
    return pairs


def text_lines(text: str) -> list[str]:
    """Returns the stripped lines that hold something. Only line feeds and carriage returns end a line, as in editors.

    `str.splitlines` also splits at form feeds and at U+0085 and U+2028, which stand within pasted prompts.
    """
    return [line for raw in re.split(r"\r\n|\n|\r", text) if (line := _stripped(raw))]


def _stripped(text: str) -> str:
    """Returns a text without blanks and byte order marks at its ends: joined files have those in between."""
    return text.strip().strip("\ufeff").strip()


def _decoded(data: bytes, url: str) -> str:
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds NUL bytes")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{url} is no text in UTF-8 (line {line}): save it as UTF-8.") from None
    except ValueError as error:
        raise UserError(f"{url} is no list of prompts ({error}): give a text, CSV, TSV, JSON or jsonl file.") from None
    return text


def _pairs(text: str, ending: str) -> Prompts:
    if ending in JSON or text.lstrip()[:1] in ("{", "["):
        rows = _json_rows(text)
        if rows is not None:
            return [_pair(row) for row in rows]
        if ending in JSON:
            raise ValueError("it is no JSON")
    lines = text_lines(text)
    delimiter = _delimiter(lines[0], ending) if lines else ""
    if delimiter:
        return _table(text, delimiter)
    if ending in DELIMITERS:
        raise ValueError(f"its first line names no column {', '.join(PROMPT[:3])}: {lines[0][:80] if lines else ''}")
    if ending not in PLAIN and lines and _structured(lines[0], ending):
        raise ValueError(f"{ending} is an unknown format")
    return [(line, "") for line in lines]


def _structured(first: str, ending: str) -> bool:
    """Says whether a text is of another format than one prompt a line."""
    return ending in (".yaml", ".yml", ".xml", ".html", ".htm", ".toml", ".ini") or first.startswith(
        ("<", "---", "%PDF")
    )


def _json_rows(text: str) -> list[Any] | None:
    """Returns the entries of a JSON list, of a mapping of entries, or of one JSON value a line; None for other text.

    Raises ValueError naming the line when only some lines are JSON.
    """
    try:
        found = json.loads(text)
    except ValueError:
        lines = text_lines(text)
        values = [_json_or_none(line) for line in lines]
        if None in values and any(isinstance(value, dict) for value in values):
            raise ValueError(f"{lines[values.index(None)][:40]!r} is no JSON") from None
        return None if None in values else values
    if not isinstance(found, dict):
        return found if isinstance(found, list) else None
    prompts = _named(found, PROMPT)
    return list(found.values()) if prompts is None else prompts if isinstance(prompts, list) else [found]


def _json_or_none(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _delimiter(header: str, ending: str) -> str:
    """Returns the delimiter at which the first line is a header with a column of prompts; '' when it is none.

    Of an ending that does not say that the file is a table, a line with blanks beside its commas is a prompt.
    """
    for delimiter in (DELIMITERS.get(ending, ","), ",", "\t", ";", "|"):
        columns = next(csv.reader([header], delimiter=delimiter), [])
        names = [column.strip().lower() for column in columns]
        is_header = len(columns) > 1 and (delimiter == "\t" or not any(" " in column for column in columns))
        if any(name in names for name in PROMPT) and (ending in DELIMITERS or is_header):
            return delimiter
    return ""


def _table(text: str, delimiter: str) -> Prompts:
    """Reads a table with a header. Where a quotation mark is never closed, every line is a row of its own."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        rows = [_fields(line, delimiter) for line in text_lines(text)]
    header, *rest = [row for row in rows if any(map(str.strip, row))]
    columns = [column.strip() for column in header]
    if len(columns) == 1:  # nothing is delimited
        rest = [[delimiter.join(row)] for row in rest]
    for number, row in enumerate(rest, 1):
        if any(map(str.strip, row[len(columns) :])):
            what = f"row {number} has {len(row)} fields, and the header {len(columns)}"
            raise ValueError(f"{what}; a prompt with {delimiter!r} in it takes quotation marks: {row[0][:40]}")
    return [_pair(dict(zip(columns, row, strict=False))) for row in rest]


def _fields(line: str, delimiter: str) -> list[str]:
    """Returns the fields of a line; a quotation mark that nothing closes is a letter like others."""
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        return line.split(delimiter)


def _pair(row: Any) -> tuple[str, str]:
    if isinstance(row, str):
        return _stripped(row), ""
    if not isinstance(row, dict):
        raise ValueError(f"{str(row)[:40]!r} is no prompt")
    prompt, category = _named(row, PROMPT), _named(row, CATEGORY)
    if prompt is None and not any(key.strip().lower() in PROMPT for key in row if isinstance(key, str)):
        raise ValueError(f"an entry has no prompt: {str(row)[:80]}")
    return _text(prompt), _text(category)


def _named(row: dict[str, Any], names: Sequence[str]) -> Any:
    lower = {str(key).strip().lower(): value for key, value in row.items()}
    return next((lower[name] for name in names if not _is_null(lower.get(name))), None)


def _is_null(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return "" if value is None else _stripped(str(value))
