"""A user's videos as files: an mp4 and a GIF, and a description that says how each was made."""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mav.data.videos.index_first import index_first
from mav.data.videos.video_io import encode_mp4
from mav.generation.write import CRF
from mav.storage import TEMPORARY

SHORTEST_DELAY = 2  # hundredths of a second; browsers show a frame with a shorter one for a tenth of a second


@dataclass(frozen=True)
class Output:
    """One video's files: NAME.mp4, NAME.gif and NAME.json, which holds the description."""

    path: Path  # of the mp4
    description: Mapping[str, Any]
    done: bool  # whether the very same video is there already


def find_output(out: Path, title: str, seed: int, description: Mapping[str, Any]) -> Output:
    """Returns where a video goes: TITLE-SEED, or the next name that no other video has.

    The same description means the same video, so what is there already is not made again.
    """
    words = "".join(c if c.isalnum() else " " for c in title.lower()).split()
    slug = "-".join(words)[:60].encode()[:120].decode(errors="ignore")
    slug = slug or "video"
    number = 1
    while True:
        path = out / f"{slug}-{seed}{'' if number == 1 else f'-{number}'}.mp4"
        files = [path, path.with_suffix(".gif"), path.with_suffix(".json")]
        there = [file.exists() for file in files]
        same = there[2] and _read(files[2]) == json.loads(json.dumps(description))
        if same or not any(there):
            return Output(path, description, done=all(file.exists() and file.stat().st_size for file in files))
        number += 1


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, OSError):  # another program's file
        return None


def write_output(output: Output, video: np.ndarray, fps: float) -> None:
    """Writes the files of a video, uint8 (F, H, W, 3): each whole, and the mp4 last."""
    output.path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(output.description, indent=1, ensure_ascii=False)
    _write(output.path.with_suffix(".json"), text.encode())
    _write(output.path.with_suffix(".gif"), encode_gif(video, fps))
    _write(output.path, index_first(encode_mp4(video, fps, crf=CRF)))


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.suffix[1:]}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def encode_gif(video: np.ndarray, fps: float) -> bytes:
    """Encodes an endless GIF that lasts as long as the mp4, in a browser too.

    Delays are whole hundredths of a second. Where a frame would be shown too shortly, the one before stays longer.
    """
    shown, delays = [0], []
    start, last = 0, max(SHORTEST_DELAY, round(100 * len(video) / fps))
    for number in range(1, len(video)):
        at = round(100 * number / fps)
        if at - start >= SHORTEST_DELAY and last - at >= SHORTEST_DELAY:
            shown.append(number)
            delays.append(at - start)
            start = at
    delays.append(last - start)
    first, *rest = [Image.fromarray(video[number]) for number in shown]
    buffer = io.BytesIO()
    durations = [10 * delay for delay in delays]
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return buffer.getvalue()
