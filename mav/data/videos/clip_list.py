"""Lists of clips: WebVid, HD-VILA, or any table with a path or an address. Names and captions of clips are never read.

One pass over a list, of ten million rows for example, records where each shard's rows begin and which rows repeat an
earlier one. WebVid's CSV has a 10M form (videoid, contentUrl, duration, page_dir, name) and a 2M form (another order,
with page_idx). HD-VILA-100M has one {video_id, url, clip: [{clip_id, span: [start, end]}]} a line: three spans of each
video, drawn by seed, are the paper's 10M clips (section 4.1). Other jsonl has columns too: the keys of its first line.
"""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mav.data.fetching.rules import percent_encoded
from mav.data.list_files import Row, columns_of, is_jsonl, matching, rows, storable, text
from mav.data.videos import VIDEO_ENDINGS
from mav.errors import UserError
from mav.storage.urls import storage_of

SPANS_A_VIDEO = 3
# Our name -> names in tables, in lower case.
ROLES = {
    "videoid": ("videoid", "video_id", "id"), "url": ("contenturl", "url"), "path": ("path", "file"),
    "page_dir": ("page_dir",), "duration": ("duration",), "start": ("start",), "end": ("end",),
}  # fmt: skip
# 00:01:02.500, 00:01:02,500 as subtitles have it, or plain seconds in any form of a number.
TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?((?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?)", re.ASCII)
ISO_DURATION = re.compile(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?")  # PT00H00M17S


@dataclass(frozen=True)
class ListedClip:
    """One entry of a list. It has no caption, so that text never meets motion.

    path: the clip's file in `video_shards.files`, unless page_dir/videoid.mp4; without that folder and a url, an http
    address. start, end: seconds; end 0 = to the end. duration: seconds according to the list, 0 = unknown.
    problem: the reason not to fetch it (duplicate, bad_row, bad_span, no_spans), or empty.
    """

    videoid: str
    url: str = ""
    page_dir: str = ""
    path: str = ""
    start: float = 0.0
    end: float = 0.0
    duration: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class Part:
    """The rows of one shard: which list they are in, and where (a place of `list_files.rows`).

    columns: those that are read; none of HD-VILA's jsonl. repeated: row numbers within the part.
    """

    path: str
    place: int
    rows: int
    columns: tuple[str, ...]
    repeated: frozenset[int] = frozenset()


def split_lists(sources: Sequence[str], clips_per_part: int, tell: Callable[[str], None] | None = None) -> list[Part]:
    """Reads every list once and splits it into parts. A row is repeated when an earlier one of any list says the same.

    Raises UserError for a list that is absent, empty or of unknown form.
    """
    firsts, ids = array("q"), array("q")
    starts: list[tuple[str, int, tuple[str, ...]]] = []
    for path in matching(sources, "video_shards.sources", tell):
        columns = form_of(path)
        roles = _roles(columns)
        rows_per_part = clips_per_part if columns else max(clips_per_part // SPANS_A_VIDEO, 1)
        before = len(ids)
        for place, row in rows(path, columns):
            if (len(ids) - before) % rows_per_part == 0:
                starts.append((path, place, columns))
                firsts.append(len(ids))
            # Digests of 64 bits sort ten million ids in seconds, where a set of strings would fill gigabytes.
            identity = _identity(_fields(row, roles)) if columns else _video_identity(row) or f"{path}\n{place}"
            ids.append(int.from_bytes(_digest(identity), "little", signed=True))
        if len(ids) == before:
            raise UserError(f"{path} lists no clips: bring a list with rows, or take it out of `video_shards.sources`.")
    if not starts:
        raise UserError(
            "`video_shards.sources` names no list: give it paths of WebVid CSV, HD-VILA jsonl or parquet files."
        )
    numbers = np.frombuffer(ids, dtype=np.int64)
    order = np.argsort(numbers, kind="stable")
    again = np.sort(order[1:][numbers[order][1:] == numbers[order][:-1]])
    parts = []
    for (path, place, columns), first, end in zip(starts, firsts, [*firsts[1:], len(ids)], strict=True):
        repeated = again[np.searchsorted(again, first) : np.searchsorted(again, end)] - first
        parts.append(Part(path, place, end - first, columns, frozenset(repeated.tolist())))
    return parts


def form_of(path: str) -> tuple[str, ...]:
    """Returns the columns of a list that are read; () for HD-VILA's jsonl.

    Raises UserError for a file that is absent or no list, and for a list that does not say where its clips are.
    """
    fs, name = storage_of(path)
    folder = fs.isdir(name)
    if folder or name.lower().endswith((*VIDEO_ENDINGS, ".gif")):
        kind, place = ("a folder", path) if folder else ("a video", posixpath.dirname(path) or ".")
        raise UserError(
            f"{path} is {kind} and no list: write a CSV whose first line is path and whose others are names of videos, "
            f"name it in `video_shards.sources`, and their folder ({place}) in `video_shards.files`."
        )
    if is_jsonl(path):
        first = next((row for _, row in rows(path, ())), None)
        spans = first is None or ("video_id" in first and not {"start", "end", "path", "file"} & set(first))
        return () if spans else _columns(path, tuple(first or ()))
    return _columns(path, columns_of(path, [name for names in ROLES.values() for name in names]))


def _columns(path: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Returns those columns of a table that are read. Raises UserError when they do not say where a clip is."""
    known = {name: column for name, column in _roles(columns).items() if column}
    if not is_jsonl(path) and {"video_id", "clip"} <= {c.lower() for c in columns} and "start" not in known:
        raise UserError(
            f"{path} has HD-VILA's spans in its column clip: write it as jsonl, or as rows of start and end."
        )
    if not {"url", "path"} & set(known):
        have = storable(", ".join(columns)) or "none"
        raise UserError(
            f"{path} is no list of clips: it has the columns {have}, and expected are "
            "WebVid's (videoid, contentUrl, duration, page_dir), HD-VILA's (video_id, url, clip; in jsonl), or url or "
            "path, with videoid, start and end where known."
        )
    return tuple(known.values())


def _roles(columns: Sequence[str]) -> dict[str, str]:
    """Returns our name -> the table's column, "" where it has none."""
    lower = {column.lower(): column for column in reversed(columns)}
    return {name: next((lower[theirs] for theirs in names if theirs in lower), "") for name, names in ROLES.items()}


def _fields(row: Row, roles: dict[str, str]) -> dict[str, str]:
    fields = {name: row[column] if column else "" for name, column in roles.items()}
    return fields | {"url": percent_encoded(fields["url"])}


def _identity(fields: dict[str, str]) -> str:
    """Returns what makes two entries the same: the id, or the place, and the span."""
    return "\n".join([fields["videoid"] or fields["path"] or fields["url"], fields["start"], fields["end"]])


def _video_identity(row: Row) -> str:
    """Returns what makes two lines of HD-VILA the same: the video and its clips, which several lines may share out."""
    name = text(row.get("video_id"))
    return f"{name}\n{json.dumps(row.get('clip'), sort_keys=True)}" if name else ""


def _digest(identity: str) -> bytes:
    return hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def read_clips(part: Part, seed: int) -> Iterator[ListedClip]:
    """Yields the clips of a part in order; of an HD-VILA video a few spans drawn by seed."""
    found, roles = rows(part.path, part.columns, part.place), _roles(part.columns)
    for number, (place, row) in zip(range(part.rows), found, strict=False):
        problem = "duplicate" if number in part.repeated else ""
        if part.columns:
            yield _clip(_fields(row, roles), problem)
        else:
            yield from _spans(row, problem, seed, f"{part.path}\n{place}")


def _clip(fields: dict[str, str], problem: str) -> ListedClip:
    # Without an id the clip is named by a digest, because an address of stock footage contains its caption.
    identity = "\n".join([fields["path"] or fields["url"], fields["start"], fields["end"]])
    name = storable(fields["videoid"]) or hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    place: dict[str, Any] = {name: fields[name] for name in ("url", "page_dir", "path")}
    start, end = (_seconds(fields[side]) if fields[side] else 0.0 for side in ("start", "end"))
    if start is None or end is None or (end and end <= start):
        return ListedClip(name, **place, problem=problem or "bad_span")
    iso = ISO_DURATION.fullmatch(fields["duration"])
    hours, minutes, seconds = iso.groups(default="0") if iso else ("0", "0", "0")
    listed = 3600 * int(hours) + 60 * int(minutes) + float(seconds) if iso else _seconds(fields["duration"]) or 0.0
    return ListedClip(name, **place, start=start, end=end, duration=listed, problem=problem)


def _spans(video: Row, problem: str, seed: int, place: str) -> Iterator[ListedClip]:
    """Yields a few spans of a video. place: names the line of one that is no entry."""
    name, url, listed = (
        storable(text(video.get("video_id"))),
        percent_encoded(text(video.get("url"))),
        video.get("clip"),
    )
    if not name:
        yield ListedClip(_digest(place).hex(), problem=problem or "bad_row")
        return
    clips: list[Any] = listed if isinstance(listed, list) else []
    if not clips:
        yield ListedClip(name, url, problem=problem or "no_spans")
    salt = int.from_bytes(_digest(name), "little")
    for number in sorted(np.random.default_rng([seed, salt]).permutation(len(clips))[:SPANS_A_VIDEO].tolist()):
        clip = clips[number] if isinstance(clips[number], dict) else {}
        clip_id = storable(text(clip.get("clip_id")) or f"{name}.{number}.mp4").removesuffix(".mp4")
        span = clip.get("span")
        times = [_seconds(text(time) or "0") for time in span] if isinstance(span, list) else []
        if len(times) != 2 or times[0] is None or times[1] is None or (times[1] and times[1] <= times[0]):
            yield ListedClip(clip_id, url, problem=problem or "bad_span")
        else:
            yield ListedClip(clip_id, url, path=f"{name}.mp4", start=times[0], end=times[1], problem=problem)


def _seconds(time: str) -> float | None:
    """Returns the seconds of 00:01:02.500 or of plain seconds; None for anything else."""
    match = TIME.fullmatch(time.strip())
    if not match:
        return None
    seconds = 3600 * int(match[1] or 0) + 60 * int(match[2] or 0) + float(match[3].replace(",", "."))
    return seconds if math.isfinite(seconds) else None
