"""Lists of clips: WebVid, HD-VILA, or any table with a path or an address. What a clip is called or said to show is never read.

A list of ten million rows is walked once, remembering where each shard's rows begin and which rows repeat an id seen before; a worker
then reads the rows of its shard alone.

- WebVid CSV, 10M form (videoid, contentUrl, duration, page_dir, name) and 2M form (in another order, with page_idx);
- HD-VILA-100M jsonl, {video_id, url, clip: [{clip_id, span: [start, end]}]} a line: three spans of each video, drawn by seed, are the
  paper's 10M clips (section 4.1);
- any other CSV or parquet with a column url or path, and videoid, duration, start and end where it has them.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mav.data.list_files import Row, columns_of, matching, rows
from mav.errors import UserError

SPANS_A_VIDEO = 3
ROLES = {  # our name -> names in tables, in lower case
    "videoid": ("videoid", "video_id", "id"),
    "url": ("contenturl", "url"),
    "path": ("path", "file"),
    "page_dir": ("page_dir",),
    "duration": ("duration",),
    "start": ("start",),
    "end": ("end",),
}
TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)")  # 00:01:02.500, or plain seconds
ISO_DURATION = re.compile(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?")  # PT00H00M17S
BYTE_COUNT = 8  # of an id's digest


@dataclass(frozen=True)
class ListedClip:
    """One entry of a list. No field for a caption: text never meets motion."""

    videoid: str
    url: str = ""
    page_dir: str = ""
    path: str = ""  # of its file in `video_shards.files`, unless page_dir/videoid.mp4; without that folder and a url, of its own
    start: float = 0.0  # seconds
    end: float = 0.0  # 0 = to the end
    duration: float = 0.0  # seconds, as the list says; 0 = it does not
    problem: str = ""  # why it is not even fetched: duplicate, bad_span, no_spans


@dataclass(frozen=True)
class Part:
    """The rows of one shard: where they are in which list."""

    path: str
    place: int  # as `list_files.rows` understands it
    rows: int
    columns: tuple[str, ...]  # those that are read; none of jsonl
    repeated: frozenset[int] = frozenset()  # row numbers within the part


def split_lists(sources: Sequence[str], clips_per_part: int) -> list[Part]:
    """Walks every list once and cuts it into parts. Raises UserError for a list that is absent, empty or of unknown form.

    An id that any list before has is a repeated one.
    """
    places, ids = array("q"), array("q")
    parts: list[Part] = []
    for path in matching(sources, "video_shards.sources"):
        columns = () if path.endswith((".jsonl", ".json")) else _columns(path)
        roles = _roles(columns)
        rows_per_part = clips_per_part if columns else max(clips_per_part // SPANS_A_VIDEO, 1)
        count = 0
        for place, row in rows(path, columns):
            if count % rows_per_part == 0:
                parts.append(Part(path, place, 0, columns))
                places.append(len(ids))
            # 64-bit digests of ids: ten million of them sort in seconds, where a set of strings would fill gigabytes
            ids.append(_digest(_identity(_fields(row, roles)) if columns else _video(path, row)))
            count += 1
        if not count:
            raise UserError(f"{path} lists no clips: bring a list with rows, or take it out of `video_shards.sources`.")
    if not parts:
        raise UserError(
            "`video_shards.sources` names no list: give it paths of WebVid CSV, HD-VILA jsonl or parquet files."
        )
    return [
        Part(part.path, part.place, end - first, part.columns, repeated)
        for part, first, end, repeated in zip(
            parts, places, [*places[1:], len(ids)], _repeated(ids, places), strict=True
        )
    ]


def _repeated(ids: array[int], places: array[int]) -> Iterator[frozenset[int]]:
    """For each part, the rows whose id came before, in this part or an earlier one."""
    numbers = np.frombuffer(ids, dtype=np.int64)
    order = np.argsort(numbers, kind="stable")
    again = np.sort(order[1:][numbers[order][1:] == numbers[order][:-1]])
    for first, end in zip(places, [*places[1:], len(ids)], strict=True):
        yield frozenset((again[np.searchsorted(again, first) : np.searchsorted(again, end)] - first).tolist())


def _columns(path: str) -> tuple[str, ...]:
    """The columns of a table that are read. Raises UserError when they do not say where a clip is."""
    columns = columns_of(path)
    known = {name: column for name, column in _roles(columns).items() if column}
    if not {"url", "path"} & set(known):
        raise UserError(
            f"{path} is no list of clips: it has the columns {', '.join(columns)}, and expected are WebVid's "
            "(videoid, contentUrl, duration, page_dir), or url or path, with videoid, start and end where known."
        )
    return tuple(known.values())


def _roles(columns: Sequence[str]) -> dict[str, str]:
    """Our name -> the table's column, "" where it has none."""
    lower = {column.lower(): column for column in reversed(columns)}
    return {name: next((lower[theirs] for theirs in names if theirs in lower), "") for name, names in ROLES.items()}


def _fields(row: Row, roles: dict[str, str]) -> dict[str, str]:
    return {name: row[column].strip() if column else "" for name, column in roles.items()}


def _identity(fields: dict[str, str]) -> str:
    """What makes an entry a repeated one: its id, or where it is, and its span."""
    return "\n".join([fields["videoid"] or fields["path"] or fields["url"], fields["start"], fields["end"]])


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=BYTE_COUNT).digest(), "little", signed=True)


def read_clips(part: Part, seed: int) -> Iterator[ListedClip]:
    """The clips of a part in order; of an HD-VILA video a few spans drawn by seed."""
    found, roles = rows(part.path, part.columns, part.place), _roles(part.columns)
    for number, (_, row) in zip(range(part.rows), found, strict=False):
        repeated = "duplicate" if number in part.repeated else ""
        if part.columns:
            yield _clip(_fields(row, roles), repeated)
        else:
            yield from _spans(part.path, row, repeated, seed)


def _clip(fields: dict[str, str], problem: str) -> ListedClip:
    # Without an id the clip is called by a digest: an address of stock footage holds its caption.
    where = "\n".join([fields["path"] or fields["url"], fields["start"], fields["end"]])
    name = fields["videoid"] or hashlib.sha256(where.encode()).hexdigest()[:16]
    place: dict[str, Any] = {name: fields[name] for name in ("url", "page_dir", "path")}
    start, end = (_seconds(fields[side]) if fields[side] else 0.0 for side in ("start", "end"))
    if start is None or end is None or (end and end <= start):
        return ListedClip(name, **place, problem=problem or "bad_span")
    iso = ISO_DURATION.fullmatch(fields["duration"])
    hours, minutes, seconds = iso.groups(default="0") if iso else ("0", "0", "0")
    listed = 3600 * int(hours) + 60 * int(minutes) + float(seconds) if iso else _seconds(fields["duration"]) or 0.0
    return ListedClip(name, **place, start=start, end=end, duration=listed, problem=problem)


def _video(path: str, video: Row) -> str:
    if "video_id" not in video:
        raise UserError(
            f"{path} is no HD-VILA list: expected is one {{video_id, url, clip: [{{clip_id, span}}]}} a line."
        )
    return str(video["video_id"])


def _spans(path: str, video: Row, problem: str, seed: int) -> Iterator[ListedClip]:
    name, url = _video(path, video), str(video.get("url", ""))
    listed = video.get("clip")
    clips: list[Any] = listed if isinstance(listed, list) else []
    if not clips:
        yield ListedClip(name, url, problem=problem or "no_spans")
    salt = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=BYTE_COUNT).digest(), "little")
    for number in sorted(np.random.default_rng([seed, salt]).permutation(len(clips))[:SPANS_A_VIDEO].tolist()):
        clip = clips[number] if isinstance(clips[number], dict) else {}
        clip_id = str(clip.get("clip_id", f"{name}.{number}.mp4")).removesuffix(".mp4")
        span = clip.get("span")
        times = [_seconds(str(time)) for time in span] if isinstance(span, list) else []
        if len(times) != 2 or times[0] is None or times[1] is None or times[1] <= times[0]:
            yield ListedClip(clip_id, url, problem=problem or "bad_span")
        else:
            yield ListedClip(clip_id, url, path=f"{name}.mp4", start=times[0], end=times[1], problem=problem)


def _seconds(text: str) -> float | None:
    """00:01:02.500 or plain seconds; None for anything else."""
    match = TIME.fullmatch(text.strip())
    return 3600 * int(match[1] or 0) + 60 * int(match[2] or 0) + float(match[3]) if match else None
