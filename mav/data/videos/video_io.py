"""Reads and writes short videos: PyAV (FFmpeg) encodes, and decodes those made for random access; decord the others."""

import bisect
import io
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from mav.data.videos.probe import video_streams


def encode_mp4(frames: np.ndarray, fps: float, *, crf: int = 12) -> bytes:
    """Encodes H.264 in MP4, playable by browsers, with the same bytes for the same input.

    frames: uint8 (F, H, W, 3) RGB; odd sides are padded by one repeated row or column, because 4:2:0 needs even ones.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 (F, H, W, 3) with F >= 1, not {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    buffer, rate = io.BytesIO(), Fraction(fps).limit_denominator(1001)
    with av.open(buffer, mode="w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        # mbtree is off: its look-ahead sometimes depends on uninitialised memory, and two runs differ in bytes.
        stream.options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def open_video(data: bytes | str):  # type: ignore[no-untyped-def]
    """Returns decord's reader over a path or bytes. Raises ValueError with a reason when there are no frames."""
    import decord

    try:
        # PyAV opens it first: decord writes to stderr what it cannot open, bytes and all, and PyAV raises an exception.
        with av.open(_source(data)) as container:
            if not container.streams.video:
                raise ValueError("it holds no video stream")
        reader = decord.VideoReader(_source(data), ctx=decord.cpu(0), num_threads=1)
    except (av.error.FFmpegError, decord.DECORDError, RuntimeError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"not a decodable video: {reason}") from None
    if len(reader) == 0:
        raise ValueError("the video has no frames")
    return reader


def _source(data: bytes | str) -> io.BytesIO | str:
    return io.BytesIO(data) if isinstance(data, bytes) else data


def read_squares(
    data: bytes, indices: Sequence[int] | np.ndarray, size: int, box: Sequence[int] | None = None
) -> np.ndarray:
    """Returns uint8 (F, size, size, 3): the central squares of the given frames, each scaled as soon as it is decoded.

    box: the part of the picture that is used, as in `cropped`; None: all of it. Raises ValueError like `read_frames`.
    """
    return read_frames(data, indices, lambda frame: fit((frame if box is None else cropped(frame, box))[None], size)[0])


def cropped(frame: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """Returns a part of (H, W, 3); box: its left, top, right and bottom in 255ths of width and height, rounded inwards.

    At least one pixel is left.
    """
    (left, right), (top, bottom) = (
        (-(-start * length // 255), end * length // 255)
        for start, end, length in zip(box[:2], box[2:], frame.shape[1::-1], strict=True)
    )
    left, top = min(left, frame.shape[1] - 1), min(top, frame.shape[0] - 1)
    return frame[top : max(bottom, top + 1), left : max(right, left + 1)]


def read_frames(
    data: bytes | str,
    indices: Sequence[int] | np.ndarray | None = None,
    each: Callable[[np.ndarray], np.ndarray] = lambda frame: frame,
) -> np.ndarray:
    """Returns uint8 (F, H, W, 3) RGB of the given frame indices (None: all), after applying `each` to every frame.

    A video made for random access (MP4 of closed groups without B-frames, as `video-shards` makes them) is read by its
    index, group by group: the pixels equal decord's in about half the time, and widths (16, 24) work at which decord
    fails. decord reads any other. Raises ValueError when a frame is missing.
    """
    import decord

    reader = None
    wanted = None if indices is None else [int(i) for i in indices]
    try:
        with av.open(_source(data)) as container:
            stream = next(iter(video_streams(container)), None)
            if stream is not None and _made_for_access(container, stream):
                wanted = list(range(stream.frames)) if wanted is None else wanted
                found = {number: each(frame) for number, frame in _by_index(container, stream, sorted(set(wanted)))}
                return np.stack([found[number] for number in wanted])
        reader = open_video(data)
        batch = reader.get_batch(list(range(len(reader))) if wanted is None else wanted).asnumpy()
    except (av.error.FFmpegError, decord.DECORDError, RuntimeError, IndexError) as error:
        opened = reader is not None or isinstance(error, IndexError)
        what = "a frame cannot be decoded" if opened else "not a decodable video"
        raise ValueError(f"{what}: {str(error).splitlines()[0]}") from None
    return np.stack([each(frame) for frame in batch])


def _made_for_access(container: Any, stream: Any) -> bool:
    """Says whether the container's index names every frame, in the order shown."""
    whole = stream.frames > 0 and len(stream.index_entries) == stream.frames
    whole = whole and not any(entry.is_discard for entry in stream.index_entries)  # which an edit list hides
    return whole and container.format.name.startswith("mov") and not stream.codec_context.has_b_frames


def _by_index(container: Any, stream: Any, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields number and RGB of frames in increasing order, skipping groups without any. Raises IndexError."""
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    entries = list(stream.index_entries)
    keys = [number for number, entry in enumerate(entries) if entry.is_keyframe]
    reformatter = VideoReformatter()
    frames: Iterator[Any] = iter(())
    frame, at = None, -1
    for number in wanted:
        key = keys[bisect.bisect_right(keys, number) - 1]
        if at < key or frame is None:
            container.seek(entries[number].timestamp, stream=stream)
            frames, at = container.decode(stream), key - 1
        while at < number:
            frame, at = next(frames, None), at + 1
        if frame is None or frame.pts != entries[number].timestamp:
            raise IndexError(f"frame {number} is not where the index says")
        yield number, reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()


def fit(frames: np.ndarray, size: int) -> np.ndarray:
    """Scales uint8 (F, H, W, 3) to (F, size, size, 3): the central square, averaged down or interpolated (cubic) up."""
    height, width = frames.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[:, top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return np.stack([cv2.resize(np.ascontiguousarray(frame), (size, size), interpolation=how) for frame in square])
