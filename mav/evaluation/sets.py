"""Reads the evaluation sets as they are distributed: UCF-101, MSR-VTT and lists of prompts.

Each becomes a `BenchmarkSet`: the prompts of the videos to generate, in order, and the real clips, present or not.
"""

import io
import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from mav.data.list_files import storable, text
from mav.data.prompts import read_prompts, text_lines
from mav.data.text_rows import Lines, delimiter_of, fields_of, records
from mav.data.videos import VIDEO_ENDINGS
from mav.errors import UserError
from mav.evaluation.protocols import Protocol
from mav.storage import Folder
from mav.storage.patterns import visible

MSRVTT_JSON = ("captions.json", "test_videodatainfo.json", "MSRVTT_data.json")
MSRVTT_CSV, MSRVTT_LIST = "MSRVTT_JSFUSION_test.csv", "msrvtt_test.list"
MSRVTT_FILES = (*MSRVTT_JSON, MSRVTT_CSV)
SENTENCES = "class_prompts.txt"


@dataclass(frozen=True)
class BenchmarkSet:
    """The prompts and the real clips of a benchmark."""

    prompts: tuple[str, ...]  # one for each video to generate, in order
    real: tuple[str, ...] = ()  # paths of clips below the folder; a missing clip has the path of the list
    real_texts: tuple[str, ...] = ()  # a caption of each real clip, '' where there is none
    sentences: tuple[str, ...] = ()  # one for each class
    notes: tuple[str, ...] = ()  # remarks about the lists for the reader of a result


def read_set(protocol: Protocol, folder: Folder | None, samples: int, prompts: Folder | None = None) -> BenchmarkSet:
    """Reads the set of a protocol's benchmark with `samples` prompts; 0 = all of them.

    `prompts` is the file of DrawBench's list or of another one. Raises UserError when a list is missing or malformed.
    """
    if protocol.benchmark in ("drawbench", "prompts"):
        if prompts is None:
            raise UserError(f"{protocol.benchmark} needs its list of prompts: name the file with --prompts.")
        return BenchmarkSet(tuple(prompt for prompt, _ in read_prompts(prompts)[: samples or None]))
    if folder is None:
        raise UserError(f"{protocol.benchmark} needs the real set's folder: name it with --real.")
    if protocol.benchmark == "ucf101":
        classes = read_ucf101(folder, protocol.split)
        note = f"sentences made from the class names: {SENTENCES} is not there"
        return BenchmarkSet(
            tuple(classes[index].sentence for index in allot(classes, samples)),
            _located(folder, [path for c in classes for path in c.clips]),
            tuple(c.sentence for c in classes for _ in c.clips),
            tuple(c.sentence for c in classes),
            () if folder.exists(SENTENCES) else (note,),
        )
    clips, notes = read_msrvtt(folder, protocol)
    texts = [caption for clip in clips for caption in clip.captions]
    if protocol.prompts.startswith("the first caption"):
        texts = [clip.captions[0] for clip in clips if clip.captions]
    if not texts:
        raise UserError(f"{folder.url} lists no test clip with a caption: bring one of {', '.join(MSRVTT_FILES)}.")
    return BenchmarkSet(
        tuple(texts[: samples or None]),
        _located(folder, [clip.path for clip in clips]),
        tuple(clip.captions[0] if clip.captions else "" for clip in clips),
        notes=tuple(notes),
    )


def _located(folder: Folder, paths: Sequence[str]) -> tuple[str, ...]:
    """Returns the listed videos where they are below the folder, because sets are unpacked in many layouts."""
    names = [name for name in visible(folder.names()) if name.lower().endswith(VIDEO_ENDINGS)]
    present = {PurePosixPath(name).stem.lower(): name for name in reversed(names)}
    return tuple(present.get(PurePosixPath(path).stem.lower(), path) for path in paths)


@dataclass(frozen=True)
class UcfClass:
    """A class of UCF-101: its sentence and its clips of the split."""

    name: str
    sentence: str
    clips: tuple[str, ...]  # paths below the folder, sorted


def read_ucf101(folder: Folder, split: str = "train") -> list[UcfClass]:
    """Returns the classes in the order of classInd.txt.

    Lists may end lines in CRLF and may spell HandStandPushups in either way. Without class_prompts.txt, the sentence of
    a class is its name in words.
    """
    names = [line.split(maxsplit=1)[-1] for line in _lines(folder, "classInd.txt")]
    if folder.exists(SENTENCES):
        sentences = _lines(folder, SENTENCES)
    else:
        sentences = [" ".join(re.findall(r"[A-Z][a-z]*|[a-z]+|\d+", name)).lower() for name in names]
    if len(sentences) != len(names):
        counts = f"{len(sentences)} sentences for {len(names)} classes"
        raise UserError(f"{folder.path(SENTENCES)} has {counts}: give one a class, in order.")
    clips: dict[str, list[str]] = {name.lower(): [] for name in names}
    listing = f"{split}list01.txt"
    for line in _lines(folder, listing):
        path = re.sub(r"\s+\d+$", "", line).replace("\\", "/")  # without the number of the class
        name = posixpath.dirname(path)
        if name.lower() not in clips:
            raise UserError(f"{folder.path(listing)} names the class {name!r}, which classInd.txt does not.")
        clips[name.lower()].append(path)
    pairs = zip(names, sentences, strict=True)
    return [UcfClass(name, sentence, tuple(sorted(clips[name.lower()]))) for name, sentence in pairs]


def allot(classes: Sequence[UcfClass], samples: int) -> list[int]:
    """Returns the class indices of `samples` videos in proportion to the training clips, by largest remainders."""
    sizes = np.array([len(c.clips) for c in classes], np.float64)
    if sizes.sum() == 0:
        raise UserError("The UCF-101 training list is empty: bring trainlist01.txt and the clips it names.")
    exact = sizes / sizes.sum() * samples
    counts = np.floor(exact).astype(int)
    # The sort is stable: of equal remainders, the earlier class comes first.
    for index in np.argsort(-(exact - counts), kind="stable")[: samples - counts.sum()]:
        counts[index] += 1
    return [index for index, count in enumerate(counts) for _ in range(count)]


@dataclass(frozen=True)
class MsrvttClip:
    """A test clip of MSR-VTT and its captions, in the order of the file."""

    path: str
    captions: tuple[str, ...]


def read_msrvtt(folder: Folder, protocol: Protocol | None = None) -> tuple[list[MsrvttClip], list[str]]:
    """Returns the test clips, from MSR-VTT's JSON or from the 1k-A CSV and the list of all test clips, and notes.

    Raises UserError when there is neither, or the file has another layout.
    """
    name = next((name for name in MSRVTT_FILES if folder.exists(name)), None)
    if name is None:
        remedy = f"name a folder with one of {', '.join(MSRVTT_FILES)}"
        raise UserError(f"{folder.path(MSRVTT_JSON[0])} is missing: {remedy}.")
    try:
        clips = _msrvtt_csv(folder) if name == MSRVTT_CSV else _msrvtt_json(folder, name)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{folder.path(name)} is not in MSR-VTT's layout ({type(error).__name__}: {error})"
        raise UserError(f"{what}: bring the file as it is distributed.") from None
    captions = sum(len(clip.captions) for clip in clips)
    whole = protocol.samples if protocol else 0
    part = f", {captions:,} of the protocol's {whole:,} prompts" if whole > captions else ""
    return clips, [f"{name} holds {captions:,} captions of {len(clips):,} clips{part}"]


def _msrvtt_json(folder: Folder, name: str) -> list[MsrvttClip]:
    data = folder.read_json(name)
    tests = [video["video_id"] for video in data["videos"] if video.get("split", "test") == "test"]
    captions: dict[str, list[str]] = {video: [] for video in tests}
    for sentence in data["sentences"]:
        caption = storable(text(sentence["caption"]))
        if caption and sentence["video_id"] in captions:
            captions[sentence["video_id"]].append(caption)
    return [MsrvttClip(f"videos/{video}.mp4", tuple(texts)) for video, texts in captions.items() if texts]


def _msrvtt_csv(folder: Folder) -> list[MsrvttClip]:
    """The 1k-A list has one caption of each of its 1,000 clips. The other test clips have none and are real ones."""
    content = folder.read_bytes(MSRVTT_CSV).decode("utf-8-sig")
    lines = Lines(io.BytesIO(content.encode()))
    header = next(lines, "")
    delimiter = delimiter_of(header, ("video_id", "sentence"), MSRVTT_CSV)
    columns = [column.strip() for column in fields_of(header, delimiter)]
    place = columns.index("video_id")
    captions: dict[str, str] = {}
    if columns[-1] != "sentence":
        raise ValueError("its last column is not sentence")
    for _, fields in records(lines, delimiter, len(columns)):
        sentence = delimiter.join(fields[len(columns) - 1 :]).strip()  # commas in it may stand without quotation marks
        if not any(fields):
            continue
        if not sentence or not fields[place]:
            raise ValueError(f"a row has no clip or no sentence: {delimiter.join(fields)[:80]!r}")
        captions.setdefault(fields[place].strip(), sentence)
    listed = json.loads(folder.read_bytes(MSRVTT_LIST)) if folder.exists(MSRVTT_LIST) else []
    names = [*captions, *(str(video) for video in listed if video not in captions)]
    return [MsrvttClip(f"videos/{video}.mp4", (captions[video],) if video in captions else ()) for video in names]


def _lines(folder: Folder, name: str) -> list[str]:
    """Returns the stripped lines of a list of UCF-101, without empty ones."""
    try:
        content = folder.read_bytes(name).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{folder.path(name)} is missing: name a folder of UCF-101 as distributed.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{folder.path(name)} is not text ({error.reason}).") from None
    return text_lines(content)
