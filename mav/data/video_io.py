"""Reading and writing short videos: decord decodes, PyAV (FFmpeg's libraries) encodes."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from typing import IO

import numpy as np


def encode_mp4(frames: np.ndarray, fps: float, *, crf: int = 12, target: str | IO[bytes] | None = None) -> bytes:
    """H.264 in MP4, playable by browsers, the same bytes for the same input.

    frames: uint8 (F, H, W, 3) RGB; odd sizes are padded by one repeated row or column, as 4:2:0 needs even ones. Written to `target` as
    well when given.
    """
    import av

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 (F, H, W, 3) with F >= 1, not {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    buffer, rate = io.BytesIO(), Fraction(fps).limit_denominator(1001)
    with av.open(buffer, mode="w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        # Without mbtree: its look-ahead depends, now and then, on memory that nobody wrote, and two runs differ in bytes.
        stream.options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = buffer.getvalue()
    if isinstance(target, (str, os.PathLike)):
        with open(target, "wb") as file:
            file.write(data)
    elif target is not None:
        target.write(data)
    return data


def open_video(data: bytes | str):  # type: ignore[no-untyped-def]
    """decord's reader over a path or bytes.

    Raises ValueError with a reason when it is not a video with frames.
    """
    import av
    import decord

    try:
        # decord writes to stderr what it cannot open, bytes and all; PyAV says it in an exception.
        with av.open(io.BytesIO(data) if isinstance(data, bytes) else data) as container:
            if not container.streams.video:
                raise ValueError("it holds no video stream")
        reader = decord.VideoReader(io.BytesIO(data) if isinstance(data, bytes) else data, ctx=decord.cpu(0), num_threads=1)
    except (av.error.FFmpegError, decord.DECORDError, RuntimeError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"not a decodable video: {reason}") from None
    if len(reader) == 0:
        raise ValueError("the video has no frames")
    return reader


def read_frames(data: bytes | str, indices: list[int] | np.ndarray | None = None, width: int = -1, height: int = -1) -> np.ndarray:
    """uint8 (F, H, W, 3) RGB of the given frame indices (all when None), averaged to width x height when given.

    Raises ValueError when one cannot be had.
    """
    import cv2
    import decord

    reader = open_video(data)
    wanted = range(len(reader)) if indices is None else [int(i) for i in indices]
    try:
        frames: np.ndarray = reader.get_batch(list(wanted)).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise ValueError(f"a frame cannot be decoded: {str(error).splitlines()[0]}") from None
    if width > 0 and height > 0 and frames.shape[1:3] != (height, width):
        # decord can scale while it decodes, but fails for some small widths (8, 12, 16, 24, 48, 72).
        frames = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])
    return frames
