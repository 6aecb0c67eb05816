"""Readers of the evaluation sets as they are distributed: UCF-101's folders and lists, MSR-VTT's captions and clips."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mav.artifact import Folder
from mav.data.video_io import open_video
from mav.errors import UserError


@dataclass(frozen=True)
class UcfClass:
    """A class of UCF-101: its sentence and its training clips."""

    name: str
    sentence: str
    clips: tuple[str, ...]  # paths below the folder, sorted


def read_ucf101(folder: Folder) -> list[UcfClass]:
    """Classes in the order of classInd.txt. Lists may end lines in CRLF and spell HandStandPushups either way."""
    names = [line.split(maxsplit=1)[1] for line in _lines(folder, "classInd.txt")]
    sentences = _lines(folder, "class_prompts.txt")
    if len(sentences) != len(names):
        raise UserError(
            f"{folder.path('class_prompts.txt')} has {len(sentences)} sentences for {len(names)} classes: give one a class, in order."
        )
    clips: dict[str, list[str]] = {name.lower(): [] for name in names}
    for line in _lines(folder, "trainlist01.txt"):
        path = line.split()[0]
        name = posixpath.dirname(path).lower()
        if name not in clips:
            raise UserError(f"{folder.path('trainlist01.txt')} names the class {posixpath.dirname(path)!r}, which classInd.txt does not.")
        clips[name].append(path)
    return [UcfClass(name, sentence, tuple(sorted(clips[name.lower()]))) for name, sentence in zip(names, sentences, strict=True)]


def allot(classes: Sequence[UcfClass], samples: int) -> list[int]:
    """Class indices of `samples` videos in the proportions of the training clips (largest remainders, ties to the earlier class)."""
    sizes = np.array([len(c.clips) for c in classes], np.float64)
    if sizes.sum() == 0:
        raise UserError("The UCF-101 training list is empty: bring trainlist01.txt and the clips it names.")
    exact = sizes / sizes.sum() * samples
    counts = np.floor(exact).astype(int)
    for index in np.argsort(-(exact - counts), kind="stable")[: samples - counts.sum()]:
        counts[index] += 1
    return [index for index, count in enumerate(counts) for _ in range(count)]


@dataclass(frozen=True)
class MsrvttClip:
    """A test clip of MSR-VTT and its captions, in the file's order."""

    path: str
    captions: tuple[str, ...]


def read_msrvtt(folder: Folder) -> list[MsrvttClip]:
    """Test clips of captions.json, in its order, with `videos/ID.mp4` below the folder."""
    try:
        data = folder.read_json("captions.json")
        wanted = [video["video_id"] for video in data["videos"] if video.get("split", "test") == "test"]
        captions: dict[str, list[str]] = {video: [] for video in wanted}
        for sentence in data["sentences"]:
            if sentence["video_id"] in captions:
                captions[sentence["video_id"]].append(sentence["caption"])
    except FileNotFoundError:
        raise UserError(f"{folder.path('captions.json')} is missing: name MSR-VTT's folder in `evaluate.msrvtt`.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder.path('captions.json')} is not in MSR-VTT's layout ({error!r}).") from None
    return [MsrvttClip(f"videos/{video}.mp4", tuple(captions[video])) for video in wanted if captions[video]]


def central_frames(video: bytes, frames: int, fps: float) -> np.ndarray:
    """uint8 (frames, H, W, 3) from the middle of a clip as if filmed at `fps`; a clip too short gives its frames more densely.

    Raises ValueError when it cannot be read or holds fewer frames than asked for.
    """
    reader = open_video(video)
    available, native = len(reader), float(reader.get_avg_fps())
    if available < frames:
        raise ValueError(f"the clip has {available} frames, not {frames}")
    step = min(max(native / fps, 1.0), (available - 1) / max(frames - 1, 1))
    start = (available - 1 - step * (frames - 1)) / 2
    indices = np.floor(start + step * np.arange(frames) + 0.5).astype(int)
    return np.asarray(reader.get_batch(list(np.minimum(indices, available - 1))).asnumpy())


def readable(folder: Folder, paths: Sequence[str], frames: int, fps: float, failed: Counter[str]) -> Iterator[np.ndarray]:
    """The central frames of every clip that can be read, one at a time; the others are counted in `failed` by reason, to be reported."""
    for path in paths:
        try:
            yield central_frames(folder.read_bytes(path), frames, fps)
        except FileNotFoundError:
            failed["missing"] += 1
        except ValueError:
            failed["unreadable"] += 1


def _lines(folder: Folder, name: str) -> list[str]:
    try:
        text = folder.read_bytes(name).decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{folder.path(name)} is missing: name a folder of UCF-101 as distributed in `evaluate.ucf101`.") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
