"""One clip: decoded frame by frame, corrected where possible, cut, resized and encoded again for random access.

Every frame keeps its own time. Corrected are turned and interlaced pictures, pixels that are not square, transparency,
high dynamic range, other colour matrices, odd and changing sizes, clocks that stand still or are reset. The reasons of
ClipError are: error_page, truncated, no_video_stream, zero_frames, undecodable, too_short, too_many_pixels,
too_many_frames, wild_timestamps, wild_frame_rate, needs_reencoding.
"""

import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc, Interpolation, VideoReformatter

from mav.data.videos.probe import (
    CONTAINERS,
    ClipError,
    TimedFrames,
    clip_metadata,
    opened,
    refuse_early,
    video_stream,
    video_streams,
)
from mav.data.videos.scores import ClipScorer
from mav.data.videos.shown import HDR, Placings, deinterlaced, is_transparent, target_size, upright
from mav.data.videos.video_io import open_video, read_squares
from mav.recipes import VideoShards

TICKS = 90_000  # a second, of clips without a constant rate
UNSPECIFIED, ITU601 = 2, (5, 6)  # matrix coefficients


@dataclass(frozen=True)
class Converted:
    """A clip for the shard.

    metadata: fps, frames, width, height, seconds; times (s, from the first frame) unless frame i is shown at i / fps;
    first, the clip's first frame in `data`, unless it is 0. scores: of `mav.data.videos.scores.SCORES`, taken from the
    frames as they were decoded.
    """

    data: bytes
    extension: str
    metadata: dict[str, Any]
    scores: dict[str, Any]


def convert(data: bytes, rule: VideoShards, start: float = 0.0, end: float = 0.0, listed: float = 0.0) -> Converted:
    """Converts a span of a video, in seconds (end 0: to the end). Without `rule.reencode` its bytes are kept.

    Longer clips are cut at `rule.max_seconds`. listed: seconds that a list claims of the whole video, 0 = unknown; a
    video of less than half of them was cut off. Raises ClipError.
    """
    refuse_early(data)
    try:
        with opened(data) as container:
            last = min(end or np.inf, start + rule.max_seconds)
            source = TimedFrames(container, video_stream(container), start, last, listed, seek=rule.reencode)
            frames = iter(source)
            first = next(frames, None)
            if first is None:
                raise ClipError("zero_frames")
            every = itertools.chain([first], frames)
            if rule.reencode:
                return _encode(every, source, rule)
            if len(video_streams(container)) > 1:
                raise ClipError("needs_reencoding")  # training's decoder may choose another stream
            return _kept(data, CONTAINERS[container.format.name], every, source, rule)
    except (av.error.FFmpegError, ValueError, ArithmeticError, LookupError, TypeError, MemoryError):
        raise ClipError("undecodable") from None


def encoder_options(rule: VideoShards) -> dict[str, str]:
    """Returns libx264's options for random access: a reader jumps to any frame and decodes few others.

    Groups of pictures are closed, of one length, without B-frames and fast to decode. mbtree is off: its look-ahead
    sometimes depends on uninitialised memory, and two runs differ in bytes.
    """
    interval = str(rule.keyframe_interval)
    return {
        "preset": "veryfast", "tune": "fastdecode", "bf": "0", "threads": "1", "sc_threshold": "0",
        "x264-params": "mbtree=0", "crf": str(rule.crf), "g": interval, "keyint_min": interval,
        "flags": "+cgop+bitexact",
    }  # fmt: skip


def _encode(frames: Iterable[tuple[float, av.VideoFrame]], source: TimedFrames, rule: VideoShards) -> Converted:
    """Encodes H.264 in MP4 without sound. Frames are encoded as they arrive and get their times when all are known."""
    times: list[float] = []
    pictures = _record_times(frames, times)
    first = next(pictures)
    width, height = target_size(first, source.pixel_aspect, rule.short_side)
    pictures = deinterlaced(itertools.chain([first], pictures))
    buffer, scorer = io.BytesIO(), ClipScorer(rule.shot_weights)
    with av.open(buffer, mode="w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=source.rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {**encoder_options(rule)}
        packets: list[Any] = []
        for number, planes in enumerate(_fitted(pictures, width, height, source.background)):
            scorer.add(planes)
            # A new frame, because the picture types and the subtitles in the old one's side data must not be encoded.
            picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            picture.pts, picture.time_base = number, 1 / source.rate
            packets += stream.encode(picture)
        packets += stream.encode()
        # Without B-frames there is one packet a frame, in order: each gets its frame's time.
        metadata = clip_metadata(times, width, height, float(source.rate))
        steady = Fraction(metadata["fps"]).limit_denominator(1001)
        uneven = metadata.get("times")
        base = Fraction(1, TICKS) if uneven else 1 / steady
        ticks = [round(time * TICKS) for time in uneven] if uneven else range(len(times))
        stream.time_base = base
        lengths = [*np.diff(ticks).tolist(), round(1 / steady / base)]
        for packet, tick, length in zip(packets, ticks, lengths, strict=True):
            packet.time_base = base
            packet.pts, packet.dts, packet.duration = tick, tick, length
            container.mux(packet)
    return Converted(buffer.getvalue(), "mp4", metadata, scorer.scores(metadata["fps"], metadata.get("times", ())))


def _kept(
    data: bytes, extension: str, frames: Iterable[tuple[float, av.VideoFrame]], source: TimedFrames, rule: VideoShards
) -> Converted:
    """Keeps the original bytes if training's decoder shows them correctly and finds as many frames."""
    times: list[float] = []
    sizes: set[tuple[int, int]] = set()
    odd = source.pixel_aspect != 1 or source.hidden
    scorer, reformatter, placings = ClipScorer(rule.shot_weights), VideoReformatter(), Placings()
    for frame in _record_times(frames, times):
        odd |= any(placings.of(frame)) or frame.interlaced_frame or frame.color_trc in HDR or is_transparent(frame)
        if not sizes:
            width, height = target_size(frame, source.pixel_aspect, rule.short_side)
        sizes.add((frame.width, frame.height))
        if len(sizes) == 1:
            scorer.add(_planes(reformatter, frame, width, height))
    metadata = clip_metadata(times, *min(sizes), float(source.rate))
    if odd or len(sizes) > 1:
        raise ClipError("needs_reencoding")
    ends = [source.skipped, source.skipped + len(times) - 1]
    if len(open_video(data)) <= ends[1] or read_squares(data, ends, 16).shape != (2, 16, 16, 3):
        raise ClipError("needs_reencoding")
    first = {"first": source.skipped} if source.skipped else {}
    return Converted(data, extension, metadata | first, scorer.scores(metadata["fps"], metadata.get("times", ())))


def _record_times(frames: Iterable[tuple[float, av.VideoFrame]], times: list[float]) -> Iterator[av.VideoFrame]:
    for time, frame in frames:
        times.append(time)
        yield frame


def _fitted(frames: Iterable[av.VideoFrame], width: int, height: int, background: int) -> Iterator[np.ndarray]:
    """Yields the planes of each frame: upright, opaque, of the size, 8-bit 4:2:0 of limited range, the usual matrix."""
    reformatter, placings = VideoReformatter(), Placings()
    for frame in frames:
        yield _planes(reformatter, upright(frame, background, placings), width, height)


def _planes(reformatter: VideoReformatter, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    target: dict[str, Any] = {"width": width, "height": height, "format": "yuv420p", "threads": 1}
    target |= {"interpolation": Interpolation.BILINEAR, "dst_color_range": ColorRange.MPEG}
    if frame.colorspace not in (UNSPECIFIED, *ITU601):
        target["dst_colorspace"] = "ITU601"
    if frame.color_trc in HDR:
        target |= {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}
    return np.asarray(reformatter.reformat(frame, **target).to_ndarray())
