"""Videos of any system, as people keep them: mp4 and other containers, GIF, folders of PNG or JPEG frames, tensors in npy or pt files.

A folder's videos are put in the order of the prompts they were made for: by `videos.json` ([{"file", "prompt"}, ...]), else by the number
that is their name (00042.mp4 belongs to prompt 42, counting from 0), else by name.
"""

import io
import posixpath
from dataclasses import dataclass

import av
import cv2
import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from mav.data.videos.video_io import open_video
from mav.errors import UserError
from mav.evaluation.protocols import Preparation
from mav.evaluation.sets import VIDEO_ENDINGS
from mav.storage import Folder

PICTURES = (".png", ".jpg", ".jpeg")
TENSORS = (".npy", ".pt")
LIST = "videos.json"
FLOAT_RANGES = "floats must lie in 0 to 1 or -1 to 1"


@dataclass(frozen=True)
class Entry:
    """One expected video: where it should be, and the prompt it was made for. file: '' = missing."""

    index: int
    file: str
    prompt: str = ""


def find_videos(folder: Folder, prompts: tuple[str, ...], samples: int) -> tuple[list[Entry], int]:
    """One entry for each of the `samples` expected videos, missing ones too, and how many files belong to none of them.

    Raises UserError when the folder holds no video, or its list names files outside of it.
    """
    names = _names(folder)
    if not names:
        raise UserError(
            f"{folder.url} holds no video: give a folder of mp4, GIF, npy or pt files, or of folders of frames."
        )
    if folder.exists(LIST):
        return _listed(folder, set(names), samples)
    stems = {name: posixpath.splitext(posixpath.basename(name))[0] for name in names}
    if all(stem.isdecimal() and stem.isascii() for stem in stems.values()):
        by_number = {int(stem): name for name, stem in stems.items()}
        slots = [by_number.get(index, "") for index in range(samples)]
        texts: tuple[str, ...] = prompts
    else:
        slots = [*names[:samples], *[""] * (samples - len(names))]
        texts = ()  # nothing says which prompt a file was made for
    found = sum(bool(name) for name in slots)
    entries = [Entry(i, name, texts[i] if i < len(texts) else "") for i, name in enumerate(slots)]
    return entries, len(names) - found


def _listed(folder: Folder, names: set[str], samples: int) -> tuple[list[Entry], int]:
    path = folder.path(LIST)
    try:
        rows = [(str(row["file"]), str(row.get("prompt", ""))) for row in folder.read_json(LIST)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path} is not a list of {{"file", "prompt"}} ({error!r}).') from None
    for file, _ in rows:
        if file.startswith("/") or ".." in file.split("/") or "\\" in file or "\0" in file:
            raise UserError(f"{path} names {file!r}, which lies outside of its folder: name files below it.")
    kept = [(file if file in names else "", prompt) for file, prompt in rows[:samples]]
    kept += [("", "")] * (samples - len(kept))
    entries = [Entry(i, file, prompt) for i, (file, prompt) in enumerate(kept)]
    used = {entry.file for entry in entries}
    return entries, len(names - used)


def _names(folder: Folder) -> list[str]:
    """Videos below a folder, sorted; a folder of pictures is one video."""
    found = set()
    for name in folder.names():
        ending = posixpath.splitext(name)[1].lower()
        if ending in (*VIDEO_ENDINGS, *TENSORS, ".gif"):
            found.add(name)
        elif ending in PICTURES and "/" in name:
            found.add(posixpath.dirname(name))
    return sorted(found)


def read_video(folder: Folder, name: str, preparation: Preparation) -> np.ndarray:
    """uint8 (frames, H, W, 3) from the middle of a video, prepared as the protocol says.

    Raises FileNotFoundError, or ValueError with a reason that can be counted.
    """
    ending = posixpath.splitext(name)[1].lower()
    if ending in VIDEO_ENDINGS:
        frames = central_frames(folder.read_bytes(name), preparation.frames, preparation.fps)
    elif ending in TENSORS:
        frames = _middle(_tensor(folder.read_bytes(name), ending), preparation.frames)
    elif ending == ".gif":
        frames = _gif(folder.read_bytes(name), preparation)
    else:
        frames = _frame_folder(folder, name, preparation)
    return prepare(frames, preparation)


def central_indices(available: int, native: float, frames: int, fps: float) -> list[int]:
    """Which of a clip's frames are its middle as if filmed at `fps` (0 = its own rate); a clip too short gives its frames more densely."""
    if available < frames:
        raise ValueError("too few frames")
    step = min(max(native / fps, 1.0), (available - 1) / max(frames - 1, 1)) if fps else 1.0
    start = (available - 1 - step * (frames - 1)) / 2
    return [min(int(np.floor(start + step * i + 0.5)), available - 1) for i in range(frames)]


def central_frames(video: bytes, frames: int, fps: float) -> np.ndarray:
    """uint8 (frames, H, W, 3) from the middle of a clip. Raises ValueError when it cannot be read or holds fewer frames than asked for."""
    import decord

    reader = open_video(video)
    indices = central_indices(len(reader), float(reader.get_avg_fps()), frames, fps)
    try:
        return np.asarray(reader.get_batch(indices).asnumpy())
    except (decord.DECORDError, RuntimeError) as error:
        raise ValueError(f"undecodable frames: {str(error).splitlines()[0]}") from None


def whole_video(data: bytes) -> np.ndarray:
    """Every frame, uint8 (F, H, W, 3), of sizes too small for decord too. Raises ValueError when it cannot be read."""
    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    except (av.error.FFmpegError, IndexError, ValueError):
        raise ValueError("unreadable") from None


def _middle(frames: np.ndarray, count: int) -> np.ndarray:
    return frames[central_indices(len(frames), 0.0, count, 0.0)]


def _tensor(data: bytes, ending: str) -> np.ndarray:
    """(F, H, W, 3) or (F, 3, H, W), bytes or floats."""
    try:
        if ending == ".npy":
            x = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            import torch

            x = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True).numpy()
    except Exception:  # a file that is not what its name says fails in many ways
        raise ValueError("not a readable tensor") from None
    if x.ndim != 4 or 3 not in (x.shape[-1], x.shape[1]) or 0 in x.shape:
        raise ValueError("not of the shape (F, H, W, 3) or (F, 3, H, W)")
    x = x if x.shape[-1] == 3 else x.transpose(0, 2, 3, 1)
    if x.dtype == np.uint8:
        return np.asarray(x)
    if not np.issubdtype(x.dtype, np.floating) or not np.isfinite(x).all():
        raise ValueError("not finite" if np.issubdtype(x.dtype, np.floating) else "neither bytes nor floats")
    if x.min() < -1 or x.max() > 1:
        raise ValueError(FLOAT_RANGES)
    unit = (x + 1) / 2 if x.min() < 0 else x
    return np.asarray((unit * 255 + 0.5).astype(np.uint8))


def _gif(data: bytes, preparation: Preparation) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
            milliseconds = float(image.info.get("duration") or 0)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError, EOFError):
        raise ValueError("not a readable GIF") from None
    native = 1000 / milliseconds if milliseconds else 0.0
    return np.stack(
        [
            frames[i]
            for i in central_indices(len(frames), native, preparation.frames, preparation.fps if native else 0.0)
        ]
    )


def _frame_folder(folder: Folder, name: str, preparation: Preparation) -> np.ndarray:
    inside = folder.child(name)
    pictures = [file for file in inside.names() if file.lower().endswith(PICTURES) and "/" not in file]
    pictures.sort(key=lambda file: (len(file), file))  # frame2 before frame10
    if not pictures:
        raise FileNotFoundError(name)
    frames = []
    for index in central_indices(len(pictures), 0.0, preparation.frames, 0.0):
        try:
            with Image.open(io.BytesIO(inside.read_bytes(pictures[index]))) as image:
                frames.append(np.asarray(image.convert("RGB")))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError):
            raise ValueError("an unreadable frame") from None
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError("frames of several sizes")
    return np.stack(frames)


def prepare(frames: np.ndarray, preparation: Preparation) -> np.ndarray:
    """Shorter side to the protocol's size, then the central square; nothing when the size is 0."""
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
