"""Reads videos of any system: mp4 and other containers, GIF, WEBP, folders of PNG or JPEG frames, npy or pt tensors.

The videos of a folder are assigned to the prompts they were made for: by `videos.json` ([{"file", "prompt"}, ...]),
else by the number that is the name of most of them (00042.mp4 belongs to prompt 42, counted from 0), else by the prompt
that is their name (VBench's `a boat-0.mp4`), else they are sorted by name. What belongs to no video is left aside.
"""

import posixpath
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import Image

from mav.data.images.pictures import read_picture
from mav.data.images.stills import is_still
from mav.data.list_files import storable
from mav.data.videos import VIDEO_ENDINGS, VIDEO_KINDS
from mav.data.videos.shown import ShownVideo
from mav.errors import UserError
from mav.evaluation import tensors
from mav.evaluation.networks.pixels import LEAST_FRAMES
from mav.evaluation.protocols import Preparation
from mav.storage import Folder
from mav.storage.patterns import visible

T = TypeVar("T")

TENSORS = (".npy", ".pt")
ANIMATIONS = (".gif", ".webp")
ENDINGS = (*VIDEO_ENDINGS, *TENSORS, *ANIMATIONS)
LIST = "videos.json"
MOST_FRAMES, MOST_SIDE = 256, 512  # of a whole view
# The reasons why a video cannot be used that are counted by their own name; all others count as "unreadable".
TOO_FEW, SIZES, BAD_FRAME = "too few frames", "frames of several sizes", "an unreadable frame"
BAD_GIF = "not a readable GIF"
COUNTED = {TOO_FEW, SIZES, BAD_FRAME, BAD_GIF, *tensors.REASONS}


@dataclass(frozen=True)
class Entry:
    """One expected video."""

    index: int
    file: str  # path in its folder; '' = missing
    prompt: str = ""  # the prompt that it was made for


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Returns so many of the items, spread evenly over them; all, where there are no more."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def find_videos(folder: Folder, prompts: tuple[str, ...], samples: int) -> tuple[list[Entry], int]:
    """Returns one entry for each of the `samples` expected videos, and how many files belong to none of them.

    Raises UserError when the folder holds no video, or its list names files outside of it.
    """
    names = require_videos(folder)
    if folder.exists(LIST):
        rows = [(file if file in names else "", prompt) for file, prompt in read_list(folder)[:samples]]
        rows += [("", "")] * (samples - len(rows))
        return [Entry(i, *row) for i, row in enumerate(rows)], len({*names} - {file for file, _ in rows})
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
            found.setdefault(composed(text), name)
    return [found.get(composed(prompt.replace("/", "_")), "") for prompt in prompts]


def composed(text: str) -> str:
    """Returns a text with its accents as parts of the letters: some systems write names of files in another way."""
    return unicodedata.normalize("NFC", text)


def read_list(folder: Folder) -> list[tuple[str, str]]:
    """Returns (file, prompt) of the videos that `videos.json` lists, which need not be there.

    Raises UserError when it is no such list, or an empty one, or names files outside of its folder.
    """
    path = folder.path(LIST)
    try:
        listed = folder.read_json(LIST)
        rows = [(posixpath.normpath(str(row["file"])), storable(str(row.get("prompt") or ""))) for row in listed]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f'{path} is not a list of {{"file", "prompt"}} ({error!r}): correct or remove it.') from None
    if not rows:
        raise UserError(f"{path} lists no video: correct or remove it.")
    for file, _ in rows:
        if file.startswith("/") or ".." in file.split("/") or "\\" in file or "\0" in file:
            raise UserError(f"{path} names {file!r}, which lies outside of its folder: name files below it.")
    return rows


def require_videos(folder: Folder) -> list[str]:
    """Returns the videos below a folder, as `videos_below`. Raises UserError when there is none."""
    if names := videos_below(folder):
        return names
    raise UserError(f"{folder.url} holds no video: give {VIDEO_KINDS}, npy or pt files, or folders of frames.")


def videos_below(folder: Folder) -> list[str]:
    """Returns the videos below a folder, sorted, also folders of pictures. Raises UserError for a name not in UTF-8."""
    found = set()
    for name in visible(folder.names()):
        if "/" in name and is_still(folder, name):
            found.add(posixpath.dirname(name))
        elif name.lower().endswith(ENDINGS):
            found.add(name)
    for name in found:
        if storable(name) != name:
            raise UserError(f"{folder.url} holds {name!a}, whose name is no text in UTF-8: rename it.")
    return sorted(found)


def read_video(folder: Folder, name: str, preparation: Preparation) -> np.ndarray:
    """Returns uint8 frames (frames, H, W, 3) from the middle of a video, prepared as the protocol says.

    Raises FileNotFoundError, or ValueError with a reason that can be counted.
    """
    return _central(_opened(folder, name), preparation)


class Views(NamedTuple):
    """What networks see of one video, from one decoding."""

    prepared: np.ndarray | None  # uint8 (frames, H, W, 3), as the protocol says
    whole: np.ndarray | None  # uint8 (F, H, W, 3), every frame in its own shape
    fps: float  # frames a second of `whole`; 0 where nothing says it


def read_views(folder: Folder, name: str, preparation: Preparation, prepared: bool, whole: bool) -> Views:
    """Returns the views of a video that are asked for.

    The whole one has at most 256 frames, from the middle, of at most 512 pixels on the shorter side, so that no video
    takes more memory than that. Raises FileNotFoundError, or ValueError with a reason that can be counted.
    """
    video = _opened(folder, name)
    if whole and len(video) < LEAST_FRAMES:
        raise ValueError(TOO_FEW)
    middle = central_indices(len(video), 0.0, min(len(video), MOST_FRAMES), 0.0)
    frames = video.frames(middle, _shrunk) if whole else None
    return Views(_central(video, preparation) if prepared else None, frames, video.fps)


def whole_frames(folder: Folder, name: str) -> tuple[np.ndarray, float]:
    """Returns all frames of a video of any form, uint8 (F, H, W, 3), at a constant rate; 0 where nothing says it.

    Raises ValueError or FileNotFoundError with the reason.
    """
    video = _opened(folder, name)
    return video.frames(video.nearest(range(len(video)))), video.fps


class _Stills:
    """A video whose frames are stored one by one, with what `ShownVideo` says of itself."""

    fps = 0.0

    def __init__(self, stored: Sequence[Any], read: Callable[[Any], np.ndarray] = np.asarray) -> None:
        self._stored, self._read = stored, read

    def __len__(self) -> int:
        return len(self._stored)

    def nearest(self, places: Sequence[float]) -> list[int]:
        return _rounded(places, len(self))

    def frames(
        self, indices: Sequence[int], change: Callable[[np.ndarray], np.ndarray] = lambda frame: frame
    ) -> np.ndarray:
        frames = [change(self._read(self._stored[index])) for index in indices]
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError(SIZES)
        return np.stack(frames)


def _opened(folder: Folder, name: str) -> ShownVideo | _Stills:
    """Opens a video of any form. Raises FileNotFoundError, or ValueError with a reason."""
    ending = posixpath.splitext(name)[1].lower()
    try:
        data = folder.read_bytes(name) if ending in ENDINGS else None
    except (FileNotFoundError, IsADirectoryError):  # a folder of frames may have the name of a file
        data = None
    if data is None:
        return _frame_folder(folder, name)
    if ending in TENSORS:
        return _Stills(list(tensors.read_tensor(data, ending)))
    try:
        return ShownVideo(data)
    except ValueError as error:
        raise ValueError(BAD_GIF if ending in ANIMATIONS else str(error)) from None


def _central(video: ShownVideo | _Stills, preparation: Preparation) -> np.ndarray:
    fps = preparation.fps if isinstance(video, ShownVideo) else 0.0
    places = central_places(len(video), video.fps, preparation.frames, fps)
    return prepare(video.frames(video.nearest(places) if fps else _rounded(places, len(video))), preparation)


def _shrunk(frame: np.ndarray) -> np.ndarray:
    scale = MOST_SIDE / min(frame.shape[:2])
    return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else frame


def central_indices(available: int, native: float, frames: int, fps: float) -> list[int]:
    """Returns the indices of a clip's middle at `fps` instead of its native rate; 0 = the native rate.

    A clip that is too short gives its frames more densely. Raises ValueError when it has fewer frames than asked for.
    """
    return _rounded(central_places(available, native, frames, fps), available)


def _rounded(places: Sequence[float], available: int) -> list[int]:
    return [min(int(np.floor(place + 0.5)), available - 1) for place in places]


def central_places(available: int, native: float, frames: int, fps: float) -> list[float]:
    """Returns what `central_indices` rounds to frames."""
    if available < frames:
        raise ValueError(TOO_FEW)
    step = min(max(native / fps, 1.0), (available - 1) / max(frames - 1, 1)) if fps else 1.0
    start = (available - 1 - step * (frames - 1)) / 2
    return [start + step * i for i in range(frames)]


def whole_video(data: bytes) -> np.ndarray:
    """Returns every frame, uint8 (F, H, W, 3). Raises ValueError if unreadable."""
    try:
        return ShownVideo(data).frames()
    except ValueError:
        raise ValueError("unreadable") from None


def _frame_folder(folder: Folder, name: str) -> _Stills:
    """Opens a folder of pictures as a video."""
    inside = folder.child(name)
    pictures = [file for file in visible(inside.names()) if "/" not in file and is_still(inside, file)]
    pictures.sort(key=lambda file: (len(file), file))  # frame2 comes before frame10
    if not pictures:
        raise FileNotFoundError(name)

    def read(file: str) -> np.ndarray:
        try:
            return read_picture(inside.read_bytes(file))
        except ValueError:
            raise ValueError(BAD_FRAME) from None

    return _Stills(pictures, read)


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
