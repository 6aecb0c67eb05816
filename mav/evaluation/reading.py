"""Reads videos of any system: mp4 and other containers, GIF, WEBP, folders of PNG or JPEG frames, npy or pt tensors.

The videos of a folder are assigned to the prompts they were made for: by `videos.json` ([{"file", "prompt"}, ...]),
else by the number that is the name of most of them (00042.mp4 belongs to prompt 42, counted from 0), else by the prompt
that is their name (VBench's `a boat-0.mp4`), else they are sorted by name. What belongs to no video is left aside.
"""

import io
import posixpath
import re
import unicodedata
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from mav.data.images.pictures import read_picture
from mav.data.videos.shown import ShownVideo
from mav.errors import UserError
from mav.evaluation.protocols import Preparation
from mav.evaluation.sets import VIDEO_ENDINGS
from mav.storage import Folder
from mav.storage.patterns import visible

PICTURES = (".png", ".jpg", ".jpeg")
TENSORS = (".npy", ".pt")
ANIMATIONS = (".gif", ".webp")
ENDINGS = (*VIDEO_ENDINGS, *TENSORS, *ANIMATIONS)
LIST = "videos.json"
# The reasons why a video cannot be used that are counted by their own name; all others count as "unreadable".
TOO_FEW, SIZES, BAD_FRAME, NOT_FINITE = "too few frames", "frames of several sizes", "an unreadable frame", "not finite"
BAD_TENSOR, BAD_SHAPE = "not a readable tensor", "not of the shape (F, H, W, 3) or (F, 3, H, W)"
BAD_TYPE, BAD_RANGE = "neither bytes nor floats", "floats must lie in 0 to 1 or -1 to 1"
BAD_GIF = "not a readable GIF"
COUNTED = {TOO_FEW, SIZES, BAD_FRAME, NOT_FINITE, BAD_TENSOR, BAD_SHAPE, BAD_TYPE, BAD_RANGE, BAD_GIF}


@dataclass(frozen=True)
class Entry:
    """One expected video."""

    index: int
    file: str  # path in its folder; '' = missing
    prompt: str = ""  # the prompt that it was made for


def find_videos(folder: Folder, prompts: tuple[str, ...], samples: int) -> tuple[list[Entry], int]:
    """Returns one entry for each of the `samples` expected videos, and how many files belong to none of them.

    Raises UserError when the folder holds no video, or its list names files outside of it.
    """
    names = videos_below(folder)
    if not names:
        remedy = "give a folder of mp4, GIF, npy or pt files, or of folders of frames"
        raise UserError(f"{folder.url} holds no video: {remedy}.")
    if folder.exists(LIST):
        return _listed(folder, set(names), samples)
    stems = {name: posixpath.splitext(posixpath.basename(name))[0] for name in names}
    numbered = {name: int(stem) for name, stem in stems.items() if stem.isdecimal() and stem.isascii()}
    numbers = {number: name for name, number in numbered.items()}
    texts: tuple[str, ...] = prompts
    if 2 * len(numbered) >= len(names):
        if samples > 1 and numbers.keys() == set(range(1, samples + 1)):
            raise UserError(f"The {samples} videos of {folder.url} are numbered from 1: number them from 0.")
        files = [numbers.get(index, "") for index in range(samples)]
    elif any(named := _named(names, prompts)):
        files = [*named, *[""] * samples][:samples]
    else:
        files = [*names[:samples], *[""] * (samples - len(names))]
        texts = ()  # the prompt of a file is unknown
    entries = [Entry(i, name, texts[i] if i < len(texts) else "") for i, name in enumerate(files)]
    return entries, len(names) - sum(bool(name) for name in files)


def _named(names: list[str], prompts: tuple[str, ...]) -> list[str]:
    """Returns for each prompt the video whose name is the prompt, or the prompt and a number: the first of several."""
    found: dict[str, str] = {}
    for name in names:
        stem = posixpath.basename(name)
        stem = posixpath.splitext(stem)[0] if posixpath.splitext(stem)[1].lower() in ENDINGS else stem
        for text in (stem, re.sub(r"-\d+$", "", stem)):
            found.setdefault(_composed(text), name)
    return [found.get(_composed(prompt.replace("/", "_")), "") for prompt in prompts]


def _composed(text: str) -> str:
    """Returns a text with its accents as parts of the letters: some systems write names of files in another way."""
    return unicodedata.normalize("NFC", text)


def left_aside(folder: Folder, entries: list[Entry]) -> list[str]:
    """Returns the files below a folder that belong to none of these videos."""
    used = {entry.file for entry in entries}
    return [n for n in folder.names() if n != LIST and n not in used and posixpath.dirname(n) not in used - {""}]


def _listed(folder: Folder, names: set[str], samples: int) -> tuple[list[Entry], int]:
    """Does the work of `find_videos` for a folder with `videos.json`."""
    path = folder.path(LIST)
    try:
        listed = folder.read_json(LIST)
        rows = [(posixpath.normpath(str(row["file"])), str(row.get("prompt") or "")) for row in listed]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path} is not a list of {{"file", "prompt"}} ({error!r}).') from None
    for file, _ in rows:
        if file.startswith("/") or ".." in file.split("/") or "\\" in file or "\0" in file:
            raise UserError(f"{path} names {file!r}, which lies outside of its folder: name files below it.")
    kept = [(file if file in names else "", prompt) for file, prompt in rows[:samples]]
    kept += [("", "")] * (samples - len(kept))
    return [Entry(i, *pair) for i, pair in enumerate(kept)], len(names - {file for file, _ in kept})


def videos_below(folder: Folder) -> list[str]:
    """Returns the videos below a folder, sorted; a folder of pictures is one video."""
    found = set()
    for name in visible(folder.names()):
        ending = posixpath.splitext(name)[1].lower()
        if ending in ENDINGS and not (ending == ".webp" and "/" in name):
            found.add(name)
        elif ending in PICTURES and "/" in name:
            found.add(posixpath.dirname(name))
    return sorted(found)


def read_video(folder: Folder, name: str, preparation: Preparation) -> np.ndarray:
    """Returns uint8 frames (frames, H, W, 3) from the middle of a video, prepared as the protocol says.

    Raises FileNotFoundError, or ValueError with a reason that can be counted.
    """
    ending = posixpath.splitext(name)[1].lower()
    if ending in VIDEO_ENDINGS:
        frames = central_frames(folder.read_bytes(name), preparation.frames, preparation.fps)
    elif ending in TENSORS:
        frames = _tensor(folder.read_bytes(name), ending)
        frames = frames[central_indices(len(frames), 0.0, preparation.frames, 0.0)]
    elif ending in ANIMATIONS:
        data = folder.read_bytes(name)
        try:
            frames = central_frames(data, preparation.frames, preparation.fps)
        except ValueError as error:
            raise ValueError(TOO_FEW if str(error) == TOO_FEW else BAD_GIF) from None
    else:
        frames = _frame_folder(folder, name, preparation.frames)
    return prepare(frames, preparation)


def whole_frames(folder: Folder, name: str) -> tuple[np.ndarray, float]:
    """Returns all frames of a video of any form, uint8 (F, H, W, 3), at a constant rate; 0 where nothing says it.

    Raises ValueError or FileNotFoundError with the reason.
    """
    ending = posixpath.splitext(name)[1].lower()
    if ending in TENSORS:
        return _tensor(folder.read_bytes(name), ending), 0.0
    if ending not in ENDINGS:
        return _frame_folder(folder, name), 0.0
    shown = ShownVideo(folder.read_bytes(name))
    return shown.frames(shown.nearest(range(len(shown)))), shown.fps


def central_indices(available: int, native: float, frames: int, fps: float) -> list[int]:
    """Returns the indices of a clip's middle at `fps` instead of its native rate; 0 = the native rate.

    A clip that is too short gives its frames more densely. Raises ValueError when it has fewer frames than asked for.
    """
    places = central_places(available, native, frames, fps)
    return [min(int(np.floor(place + 0.5)), available - 1) for place in places]


def central_places(available: int, native: float, frames: int, fps: float) -> list[float]:
    """Returns what `central_indices` rounds."""
    if available < frames:
        raise ValueError(TOO_FEW)
    step = min(max(native / fps, 1.0), (available - 1) / max(frames - 1, 1)) if fps else 1.0
    start = (available - 1 - step * (frames - 1)) / 2
    return [start + step * i for i in range(frames)]


def central_frames(video: bytes, frames: int, fps: float) -> np.ndarray:
    """Returns uint8 frames (frames, H, W, 3) from a clip's middle. Raises ValueError if it is broken or too short."""
    shown = ShownVideo(video)
    if fps == 0:
        return shown.frames(central_indices(len(shown), shown.fps, frames, fps))
    return shown.frames(shown.nearest(central_places(len(shown), shown.fps, frames, fps)))


def whole_video(data: bytes) -> np.ndarray:
    """Returns every frame, uint8 (F, H, W, 3). Raises ValueError if unreadable."""
    try:
        return ShownVideo(data).frames()
    except ValueError:
        raise ValueError("unreadable") from None


def _tensor(data: bytes, ending: str) -> np.ndarray:
    """Returns uint8 frames (F, H, W, 3) of a stored array (F, H, W, 3) or (F, 3, H, W) of bytes or floats."""
    try:
        if ending == ".npy":
            x = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            from mav.models.checkpoints.weight_files import read_torch

            x = read_torch(io.BytesIO(data)).numpy()
    except Exception:  # a file of another format fails in many ways
        raise ValueError(BAD_TENSOR) from None
    if x.ndim != 4 or 3 not in (x.shape[-1], x.shape[1]) or 0 in x.shape:
        raise ValueError(BAD_SHAPE)
    x = x if x.shape[-1] == 3 else x.transpose(0, 2, 3, 1)
    if x.dtype == np.uint8:
        return np.asarray(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(BAD_TYPE)
    if not np.isfinite(x).all():
        raise ValueError(NOT_FINITE)
    if x.min() < -1 or x.max() > 1:
        raise ValueError(BAD_RANGE)
    unit = (x + 1) / 2 if x.min() < 0 else x
    return np.asarray((unit * 255 + 0.5).astype(np.uint8))


def _frame_folder(folder: Folder, name: str, count: int = 0) -> np.ndarray:
    """Returns `count` frames from the middle of a folder of pictures; 0 = all."""
    inside = folder.child(name)
    pictures = [file for file in visible(inside.names()) if file.lower().endswith(PICTURES) and "/" not in file]
    pictures.sort(key=lambda file: (len(file), file))  # frame2 comes before frame10
    if not pictures:
        raise FileNotFoundError(name)
    frames = []
    for index in central_indices(len(pictures), 0.0, count or len(pictures), 0.0):
        try:
            frames.append(read_picture(inside.read_bytes(pictures[index])))
        except ValueError:
            raise ValueError(BAD_FRAME) from None
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError(SIZES)
    return np.stack(frames)


def prepare(frames: np.ndarray, preparation: Preparation) -> np.ndarray:
    """Resizes the shorter side to the protocol's size and crops the central square; a size of 0 changes nothing."""
    size = preparation.size
    height, width = frames.shape[1:3]
    if size == 0 or (height, width) == (size, size):
        return frames
    scale = size / min(height, width)
    to = (max(size, round(width * scale)), max(size, round(height * scale)))
    if preparation.resize == "area":
        resized = [cv2.resize(frame, to, interpolation=cv2.INTER_AREA) for frame in frames]
    else:
        resized = [np.asarray(Image.fromarray(frame).resize(to, Image.Resampling.BICUBIC)) for frame in frames]
    top, left = (to[1] - size) // 2, (to[0] - size) // 2
    return np.ascontiguousarray(np.stack(resized)[:, top : top + size, left : left + size])
