"""Lists of clips: WebVid CSV and HD-VILA jsonl, streamed. What a clip is called or said to show is never read.

A list of ten million rows is walked once, remembering where each shard's rows begin and which rows repeat an id seen before; a worker
then reads the rows of its shard alone.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import fsspec
import numpy as np

from mav.errors import UserError

SPANS_A_VIDEO = 3  # HD-VILA: as many random clips of each video as the paper takes (section 4.1)
WEBVID = ("videoid", "contentUrl", "duration", "page_dir", "name")


@dataclass(frozen=True)
class Clip:
    """One entry of a list. No field for a caption: text never meets motion."""

    videoid: str
    url: str
    page_dir: str = ""
    start: float = 0.0  # seconds
    end: float = 0.0  # 0 = to the end
    repeated: bool = False  # the id came before in this list


@dataclass(frozen=True)
class Part:
    """The rows of one shard: where they are in which list."""

    path: str
    offset: int  # bytes
    rows: int
    columns: tuple[str, ...]  # of a CSV; empty for jsonl
    repeated: frozenset[int] = frozenset()  # row numbers within the part


def split_lists(sources: Sequence[str], rows_per_part: int) -> list[Part]:
    """Walks every list once and cuts it into parts. Raises UserError for a list that is absent, empty or of unknown form."""
    parts: list[Part] = []
    for path in sources:
        try:
            with fsspec.open(path, "rb") as file:
                parts += _split(path, file, rows_per_part)
        except FileNotFoundError:
            raise UserError(f"There is no file {path}: correct `video_shards.sources`.") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} cannot be read as a list of clips ({error}): it must be a CSV or jsonl file in UTF-8.") from None
    if not parts:
        raise UserError("`video_shards.sources` names no list: give it the paths of WebVid CSV or HD-VILA jsonl files.")
    return parts


def _split(path: str, file: IO[bytes], rows_per_part: int) -> Iterator[Part]:
    columns, records = _records(path, file)
    offsets, ids = array("q"), array("q")
    for offset, record in records:
        if len(ids) % rows_per_part == 0:
            offsets.append(offset)
        # 64-bit digests of ids: ten million of them sort in a second, where a set of strings would fill gigabytes
        identity = _webvid_id(record, columns) if columns else str(_object(path, record[0])["video_id"])
        ids.append(int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "little", signed=True))
    if not ids:
        raise UserError(f"{path} lists no clips: bring a list with rows, or take it out of `video_shards.sources`.")
    numbers = np.frombuffer(ids, dtype=np.int64)
    order = np.argsort(numbers, kind="stable")
    again = np.sort(order[1:][numbers[order][1:] == numbers[order][:-1]])
    for part, offset in enumerate(offsets):
        first = part * rows_per_part
        rows = min(rows_per_part, len(ids) - first)
        inside = again[(again >= first) & (again < first + rows)] - first
        yield Part(path, offset, rows, columns, frozenset(int(i) for i in inside))


def _records(path: str, file: IO[bytes]) -> tuple[tuple[str, ...], Iterator[tuple[int, list[str]]]]:
    """(columns of a CSV or none for jsonl, records with the byte at which each begins)."""
    if path.removesuffix(".gz").endswith((".jsonl", ".json")):
        return (), ((offset, [line]) for offset, line in _lines(file) if line.strip())
    lines = _Lines(file)
    header = next(csv.reader(lines), None)
    if not header:
        raise UserError(f"{path} is empty: expected is a CSV whose first line names {', '.join(WEBVID)}.")
    columns = tuple(column.strip().lstrip("\ufeff") for column in header)
    if not {"videoid", "contentUrl"} <= set(columns):
        raise UserError(f"{path} is no WebVid list: it has the columns {', '.join(columns)}, and expected are {', '.join(WEBVID)}.")
    return columns, _csv_records(lines)


def _csv_records(lines: _Lines) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(lines)
    while True:
        offset = lines.offset
        record = next(reader, None)
        if record is None:
            return
        if record:
            yield offset, record


class _Lines:
    """Decoded lines of a binary file that know the byte at which the next one begins. A record may hold several."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.offset = file, file.tell()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        self.offset += len(line)
        return line.decode()


def _lines(file: IO[bytes]) -> Iterator[tuple[int, str]]:
    lines = _Lines(file)
    while True:
        offset = lines.offset
        line = next(lines, None)
        if line is None:
            return
        yield offset, line


def read_clips(part: Part, seed: int) -> Iterator[Clip]:
    """The clips of a part in order; of an HD-VILA video a few spans drawn by seed."""
    with fsspec.open(part.path, "rb") as file:
        file.seek(part.offset)
        if part.columns:
            for row, (_, record) in zip(range(part.rows), _csv_records(_Lines(file)), strict=False):
                values = dict(zip(part.columns, record, strict=False))
                yield Clip(
                    _webvid_id(record, part.columns),
                    values.get("contentUrl", ""),
                    values.get("page_dir", ""),
                    repeated=row in part.repeated,
                )
            return
        records = (line for _, line in _lines(file) if line.strip())
        for row, line in zip(range(part.rows), records, strict=False):
            yield from _spans(_object(part.path, line), row in part.repeated, seed)


def _webvid_id(record: list[str], columns: tuple[str, ...]) -> str:
    place = columns.index("videoid")
    return record[place].strip() if place < len(record) else ""


def _object(path: str, line: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict) or "video_id" not in value:
        raise UserError(f"{path} is no HD-VILA list: expected is one {{video_id, url, clip: [{{clip_id, span}}]}} a line.")
    return value


def _spans(video: dict[str, object], repeated: bool, seed: int) -> Iterator[Clip]:
    name = str(video["video_id"])
    spans = video.get("clip")
    clips = [clip for clip in spans if isinstance(clip, dict)] if isinstance(spans, list) else []
    salt = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    chosen = sorted(np.random.default_rng([seed, salt]).permutation(len(clips))[:SPANS_A_VIDEO].tolist())
    for number in chosen:
        start, end = (_seconds(str(t)) for t in clips[number]["span"])
        clip_id = str(clips[number].get("clip_id", f"{name}.{number}.mp4")).removesuffix(".mp4")
        yield Clip(clip_id, str(video.get("url", "")), name, start, end, repeated)


def _seconds(text: str) -> float:
    """00:01:02.500 or plain seconds."""
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d+)?", text):
        raise UserError(f"The span {text!r} is no time of the form 00:01:02.500.")
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part)
    return total
