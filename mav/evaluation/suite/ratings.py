"""Reads what people said of videos: votes on pairs from a study of ours, or published marks of every system's videos.

A study's are the `votes.csv` of `mav study report`; its videos are those in the folder of the study. Published marks
are a folder of files `human0_SYSTEM.jsonl`, one of each rater and system, with lines such as
`{"17": {"video_id": "video9033", "alignment": 3}}` (FETV, Liu et al. 2023); the video is `SYSTEM/00017.mp4`, or
`SYSTEM/video9033.mp4`. A rater's marks of two systems' videos for one prompt become a vote for the higher mark.
"""

import csv
import io
import itertools
import json
import math
import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mav.data.text_rows import delimiter_of
from mav.errors import UserError
from mav.storage import Folder

MARKS = re.compile(r"human(\w+?)_(.+)\.jsonl")
COLUMNS = ("rater", "question", "answer", "left", "right", "prompt", "left_video", "right_video", "counts")


@dataclass(frozen=True)
class Pair:
    """Two videos for one prompt, and what raters said of them."""

    question: str
    prompt: str  # or its number
    sides: tuple[str, str]  # the two files
    systems: tuple[str, str]
    votes: dict[str, int]  # of each rater: 1 for the first side, -1 for the second, 0 = no difference

    @property
    def preferred(self) -> int:
        """Which side more raters prefer, as in `votes`."""
        total = sum(self.votes.values())
        return (total > 0) - (total < 0)


@dataclass(frozen=True)
class Ratings:
    """All pairs of one source, in a fixed order."""

    source: str
    pairs: tuple[Pair, ...]
    prompts: dict[str, str]  # of files, where the ratings say them
    without_video: int  # answers about videos that are not there

    @property
    def files(self) -> dict[str, str]:
        """The system of every rated file."""
        return {file: name for pair in self.pairs for file, name in zip(pair.sides, pair.systems, strict=True)}


def read_ratings(source: Folder, videos: Sequence[str]) -> Ratings:
    """Reads the ratings of some of the videos, which are paths below a folder.

    Raises UserError when there are none, when a row is not what it has to be, or when no rated video is there.
    """
    names = [name for name in source.names() if MARKS.fullmatch(name)]
    if names:
        found = _marks(source, sorted(names), videos)
    elif source.url.lower().endswith(".csv") and source.exists():
        found = _votes(source, videos)
    else:
        forms = "the votes.csv of `mav study report`, or a folder with human0_SYSTEM.jsonl"
        raise UserError(f"{source.url} holds no ratings: name {forms}.")
    if not found.pairs:
        where = "a study's are in the folder of the study, others in SYSTEM/00017.mp4"
        raise UserError(f"No pair that {source.url} rates has both of its videos here: {where}.")
    return found


def _votes(source: Folder, videos: Sequence[str]) -> Ratings:
    """Reads the votes that count in a study's report, also after a spreadsheet has stored them in its own way."""
    prompts, missing = dict[str, str](), 0
    named: dict[str, list[str]] = defaultdict(list)  # files by their path, and by the last part of it
    for name in videos:
        for written in {name, posixpath.basename(name)}:
            named[written].append(name)
    votes: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    try:
        text = source.read_bytes("").decode("utf-8-sig")
        delimiter = delimiter_of(text.partition("\n")[0], COLUMNS, source.url)
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{source.url} is no table of votes ({error}): make it again by `mav study report`.") from None
    if lacking := [name for name in COLUMNS if name not in (table.fieldnames or ())]:
        raise UserError(f"{source.url} lacks {', '.join(lacking)}: make it again by `mav study report`.")
    for number, row in enumerate(rows, 2):
        if row["answer"] not in ("left", "right") or any(row[name] is None for name in COLUMNS):
            raise UserError(f"{source.url}, row {number}: no vote for left or right; make it by `mav study report`.")
        if row["counts"].lower() not in ("true", "false"):
            raise UserError(f"{source.url}, row {number}: counts is {row['counts']!r}; it must be True or False.")
        if row["counts"].lower() == "false":
            continue
        sides = []
        for written in (row["left_video"], row["right_video"]):
            found = named.get(written) or named.get(posixpath.basename(written), [])
            if len(found) > 1 and written not in found:
                remedy = "name the folder of the study with --videos"
                raise UserError(f"{source.url}, row {number}: {written} may be {' or '.join(found[:2])}; {remedy}.")
            sides.append(written if written in found else found[0] if found else "")
        if not all(sides):
            missing += 1
            continue
        # One order of the sides, whichever was left.
        prompt, vote = _as_written(row["prompt"]), 1 if row["answer"] == "left" else -1
        one, other = (sides[0], _as_written(row["left"])), (sides[1], _as_written(row["right"]))
        if one[1] > other[1]:
            one, other, vote = other, one, -vote
        told = votes[row["question"], prompt, one[0], other[0], one[1], other[1]]
        if told.setdefault(row["rater"], vote) != vote:
            problem = f"{row['rater']} preferred the other video before"
            raise UserError(f"{source.url}, row {number}: {problem}; leave one of both votes.")
        prompts |= dict.fromkeys((one[0], other[0]), prompt)
    pairs = tuple(Pair(q, text, (a, b), (s, t), told) for (q, text, a, b, s, t), told in sorted(votes.items()))
    return Ratings(source.url, pairs, prompts, missing)


def _as_written(cell: str) -> str:
    """Returns a text without the apostrophe that keeps spreadsheets from running it."""
    return cell[1:] if cell.startswith("'") else cell


def _marks(source: Folder, names: Sequence[str], videos: Sequence[str]) -> Ratings:
    """Makes votes of published marks."""
    here = _by_system(videos)
    marks: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    files: dict[tuple[str, str], str] = {}  # (system, item) -> file
    missing = 0
    for name in names:
        rater, system = MARKS.fullmatch(name).groups()  # type: ignore[union-attr]
        text = source.read_bytes(name).decode("utf-8-sig", "replace")
        for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
            if not line.strip():
                continue
            try:
                told = {
                    _number(item): {key: _mark(key, value) for key, value in row.items()}
                    for item, row in json.loads(line).items()
                }
            except (ValueError, AttributeError, TypeError, RecursionError) as error:
                what = f"{source.path(name)}, line {number}: no marks of a video ({error})"
                raise UserError(f'{what}; a line is {{"17": {{"QUESTION": 3}}}}.') from None
            for item, row in told.items():
                keys = [item, str(row.pop("video_id", ""))]
                file = next((here[system, key] for key in keys if (system, key) in here), None)
                values = {question: mark for question, mark in row.items() if isinstance(mark, float)}
                if file is None:
                    missing += len(values)
                    continue
                files[system, item] = file
                for question, mark in values.items():
                    given = marks[question, item][rater]
                    if system in given:
                        problem = f"item {item} has a second mark of {question}"
                        raise UserError(f"{source.path(name)}, line {number}: {problem}; leave one of them.")
                    given[system] = mark
    pairs = []
    for (question, item), by_rater in sorted(marks.items()):
        for one, other in itertools.combinations(sorted({s for given in by_rater.values() for s in given}), 2):
            votes = {
                rater: (given[one] > given[other]) - (given[one] < given[other])
                for rater, given in sorted(by_rater.items())
                if one in given and other in given
            }
            if votes:
                pairs.append(Pair(question, item, (files[one, item], files[other, item]), (one, other), votes))
    return Ratings(source.url, tuple(pairs), {}, missing)


def _mark(key: str, value: Any) -> Any:
    """Returns a mark as a float, and what is no mark as it is: a name, nothing, or FETV's marks of single aspects.

    Raises ValueError for other values.
    """
    if value is None or key == "video_id" or isinstance(value, dict):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}, which is no number")
    return float(value)


def _number(name: str) -> str:
    """Returns a number without the zeros before it, and any other name as it is."""
    return (name.lstrip("0") or "0") if name.isdecimal() and name.isascii() else name


def _by_system(videos: Sequence[str]) -> dict[tuple[str, str], str]:
    """Returns (system, number or name) -> file, of files SYSTEM/NUMBER.mp4. Raises UserError when two are the same."""
    found: dict[tuple[str, str], str] = {}
    for name in videos:
        system, _, rest = name.partition("/")
        key = system, _number(posixpath.splitext(posixpath.basename(rest))[0])
        if rest and key in found:
            raise UserError(f"{name} and {found[key]} are both video {key[1]} of {system}: leave one of them.")
        if rest:
            found[key] = name
    return found
