"""One clip: probed, decoded frame by frame, mended where it can be, cut, resized and encoded again for random access.

Every frame keeps its own time. What is odd is put right: turned and interlaced pictures, pixels that are not square, transparency, high
dynamic range, other colour matrices, odd sizes, sizes that change, clocks that stand still or are set back. What cannot be used raises
ClipError with a reason: error_page, truncated, no_video_stream, zero_frames, undecodable, too_short, too_many_pixels, wild_timestamps,
wild_frame_rate, needs_reencoding.
"""

import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc, Interpolation, VideoReformatter

from mav.data.videos.video_io import open_video, read_squares
from mav.recipes import VideoShards

MIN_FRAMES = 8
RATES = (1.0, 120.0)  # frame rates believed
GAP = 10.0  # seconds from one frame to the next that are believed
SET_BACK = 0.5  # seconds: a clock that falls further was set anew, and goes on from there
MENDED = 0.25  # share of times that may need mending
STEADY = 0.002  # seconds a frame of a constant rate may be off: containers round to milliseconds
SEEK = 4.0  # spans that begin later are sought, earlier ones decoded up to
MAX_PIXELS = 7680 * 4320
TICKS = 90_000  # a second, of clips without a constant rate
CONTAINERS = {  # FFmpeg's name -> extension. No playlists or slide lists: those open other files and addresses.
    "mov,mp4,m4a,3gp,3g2,mj2": "mp4",
    "matroska,webm": "mkv",
    "avi": "avi",
    "mpegts": "ts",
    "mpeg": "mpg",
    "mpegvideo": "m2v",
    "flv": "flv",
    "asf": "wmv",
    "ogg": "ogv",
    "gif": "gif",
    "h264": "h264",
    "hevc": "hevc",
    "m4v": "m4v",
    "dv": "dv",
    "rm": "rm",
}
HDR = (16, 18)  # transfer characteristics: PQ and HLG
UNSPECIFIED, ITU601 = 2, (5, 6)  # matrix coefficients


class ClipError(Exception):
    """A clip that cannot be used; the message is its reason."""


@dataclass(frozen=True)
class Converted:
    """A clip for the shard. facts: fps, frames, width, height, seconds; times (s, from the first frame) unless frame i is shown at i / fps;
    first, the clip's first frame in `data`, unless 0."""

    data: bytes
    extension: str
    facts: dict[str, Any]


def convert(data: bytes, rule: VideoShards, start: float = 0.0, end: float = 0.0, listed: float = 0.0) -> Converted:
    """The clip of a video's span, in seconds (end 0: to the end), re-encoded, or with its bytes kept when `rule.reencode` is off.

    Longer clips are cut at `rule.max_seconds`. listed: seconds that a list claims of the whole video, 0 = unknown: one of less than half
    of them was cut off. Raises ClipError.
    """
    _refuse_early(data)
    options = {"format_whitelist": ",".join(CONTAINERS)}
    try:
        with av.open(io.BytesIO(data), options=options) as container:
            stream = _video_stream(container)
            source = _Frames(
                container, stream, start, min(end or np.inf, start + rule.max_seconds), listed, seek=rule.reencode
            )
            frames = iter(source)
            first = next(frames, None)
            if first is None:
                raise ClipError("zero_frames")
            every = itertools.chain([first], frames)
            return (
                _encode(every, source, rule)
                if rule.reencode
                else _kept(data, CONTAINERS[container.format.name], every, source)
            )
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError):
        raise ClipError("undecodable") from None


def encoder_options(rule: VideoShards) -> dict[str, str]:
    """libx264's. Closed groups of pictures of one length without B-frames, and nothing that is slow to decode: a reader jumps to any frame
    and decodes few others. Without mbtree: its look-ahead depends, now and then, on memory that nobody wrote, and two runs differ in bytes.
    """
    interval = str(rule.keyframe_interval)
    fixed = {
        "preset": "veryfast",
        "tune": "fastdecode",
        "bf": "0",
        "threads": "1",
        "sc_threshold": "0",
        "x264-params": "mbtree=0",
    }
    return fixed | {"crf": str(rule.crf), "g": interval, "keyint_min": interval, "flags": "+cgop+bitexact"}


# ------------------------------------------------------------------------------------------------------------ frames in time


class _Frames:
    """Decoded frames of a span, each with its seconds since the video's beginning, growing; counts what it decoded.

    Raises ClipError when the video ends before half of the frames it announces, or of the seconds a list claims.
    """

    def __init__(
        self, container: Any, stream: av.VideoStream, start: float, end: float, listed: float, seek: bool
    ) -> None:
        self._container, self._stream, self._seek = container, stream, seek
        self._announced, self._listed = stream.frames, listed
        self.start, self.end = start, end
        self.claimed = _nominal_rate(stream)
        self.rate = float(self.claimed)  # frames a second, as claimed
        self.pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
        self.decoded = self.skipped = 0
        self.last = 0.0

    def __iter__(self) -> Iterator[tuple[float, av.VideoFrame]]:
        for time, frame in self._growing(self._decode()):
            if time >= self.end - 0.5 / self.rate:
                return
            if time >= self.start - 0.5 / self.rate:
                yield time, frame
            else:
                self.skipped += 1
        if self.decoded < 0.5 * self._announced or self.last + 1 / self.rate < 0.5 * self._listed:
            raise ClipError("truncated")

    def _decode(self) -> Iterator[av.VideoFrame]:
        """From shortly before the span where the container's index allows, else from the beginning."""
        container, stream, base = self._container, self._stream, self._stream.time_base
        if self._seek and self.start > SEEK and stream.start_time is not None and base is not None:
            container.seek(stream.start_time + int(self.start / base), stream=stream)
            frames = container.decode(stream)
            first = next(frames, None)
            if (
                first is not None
                and first.time is not None
                and 0 < first.time - float(stream.start_time * base) <= self.start
            ):
                self._announced = 0  # of which only some are decoded
                yield from itertools.chain([first], frames)
                return
            container.seek(0)
        yield from container.decode(stream)

    def _growing(self, frames: Iterable[av.VideoFrame]) -> Iterator[tuple[float, av.VideoFrame]]:
        """Times as the container says, mended: a frame without one, or not after the frame before, comes a tick after it."""
        stream = self._stream
        shift = (
            -float(stream.start_time * stream.time_base) if stream.start_time is not None and stream.time_base else None
        )
        timed = mended = 0
        for frame in frames:
            tick = self.last + 1 / self.rate if self.decoded else 0.0
            time = tick
            if frame.time is not None:
                timed += 1
                shift = -frame.time if shift is None else shift
                time = frame.time + shift
                if self.decoded and time <= self.last:
                    mended += 1
                    if self.last - time > SET_BACK:
                        shift += tick - time
                    time = tick
                elif self.decoded and time - self.last > GAP:
                    raise ClipError("wild_timestamps")
            self.decoded += 1
            self.last = time
            yield time, frame
        if mended > MENDED * timed:
            raise ClipError("wild_timestamps")


def _nominal_rate(stream: av.VideoStream) -> Fraction:
    """As the container claims; where the claim is wild, a usual one to begin with: the frames' own times decide in the end."""
    claims = (stream.average_rate, stream.guessed_rate, stream.base_rate)
    return next((Fraction(claim) for claim in claims if claim and RATES[0] <= claim <= RATES[1]), Fraction(25))


def _timing(times: list[float], claimed: float) -> tuple[float, bool]:
    """(frames a second, whether constant) of frames at these seconds."""
    at = np.array(times) - times[0]
    mean = (len(at) - 1) / at[-1] if len(at) > 1 else claimed
    if not RATES[0] <= mean <= RATES[1]:
        raise ClipError("wild_frame_rate")
    for rate in (claimed, float(Fraction(mean).limit_denominator(1001))):
        if np.abs(at - np.arange(len(at)) / rate).max() <= STEADY:
            return rate, True
    return float(mean), False


def _facts(times: list[float], width: int, height: int, claimed: float) -> dict[str, Any]:
    if len(times) < MIN_FRAMES:
        raise ClipError("too_short")
    fps, constant = _timing(times, claimed)
    facts = {"fps": fps, "frames": len(times), "width": width, "height": height, "seconds": round(len(times) / fps, 6)}
    return facts if constant else facts | {"times": [round(time - times[0], 6) for time in times]}


# --------------------------------------------------------------------------------------------------------- two ways to keep


def _encode(frames: Iterable[tuple[float, av.VideoFrame]], source: _Frames, rule: VideoShards) -> Converted:
    """H.264 in MP4 without sound. Frames are encoded as they come, and get their times when all are known."""
    times: list[float] = []
    pictures = _told(frames, times)
    first = next(pictures)
    width, height = _target_size(first, source.pixel_aspect, rule.short_side)
    pictures = itertools.chain([first], pictures)
    if first.interlaced_frame:
        pictures = _deinterlaced(pictures)
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=source.claimed)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {**encoder_options(rule)}
        packets: list[Any] = []
        for number, picture in enumerate(_fitted(pictures, width, height)):
            picture.pts, picture.time_base = number, 1 / source.claimed
            packets += stream.encode(picture)
        packets += stream.encode()
        facts = _facts(times, width, height, source.rate)
        steady = Fraction(facts["fps"]).limit_denominator(1001)
        base = Fraction(1, TICKS) if "times" in facts else 1 / steady
        ticks = [round(time * TICKS) for time in facts["times"]] if "times" in facts else range(len(times))
        stream.time_base = base
        lengths = [*np.diff(ticks).tolist(), round(1 / steady / base)]
        for packet, tick, length in zip(packets, ticks, lengths, strict=True):
            packet.time_base = base
            packet.pts, packet.dts, packet.duration = tick, tick, length
            container.mux(packet)
    return Converted(buffer.getvalue(), "mp4", facts)


def _kept(data: bytes, extension: str, frames: Iterable[tuple[float, av.VideoFrame]], source: _Frames) -> Converted:
    """The original bytes, when training's decoder shows them as they should be shown and finds as many frames."""
    times: list[float] = []
    sizes: set[tuple[int, int]] = set()
    odd = source.pixel_aspect != 1
    for frame in _told(frames, times):
        odd |= bool(frame.rotation or frame.interlaced_frame or frame.color_trc in HDR or _transparent(frame))
        sizes.add((frame.width, frame.height))
    facts = _facts(times, *min(sizes), source.rate)
    if odd or len(sizes) > 1:
        raise ClipError("needs_reencoding")
    ends = [source.skipped, source.skipped + len(times) - 1]
    if len(open_video(data)) <= ends[1] or read_squares(data, ends, 16).shape != (2, 16, 16, 3):
        raise ClipError("needs_reencoding")
    return Converted(data, extension, facts | ({"first": source.skipped} if source.skipped else {}))


def _told(frames: Iterable[tuple[float, av.VideoFrame]], times: list[float]) -> Iterator[av.VideoFrame]:
    for time, frame in frames:
        if frame.width * frame.height > MAX_PIXELS:
            raise ClipError("too_many_pixels")
        times.append(time)
        yield frame


# ----------------------------------------------------------------------------------------------------------------- pictures


def _deinterlaced(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """As many frames, each of one moment: the lines of the other field are made up (bwdif)."""
    frames = iter(frames)
    first = next(frames)
    graph = av.filter.Graph()
    graph.threads = 1
    base = Fraction(1, 1000)
    source = graph.add_buffer(width=first.width, height=first.height, format=first.format, time_base=base)
    graph.link_nodes(
        source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    ).configure()
    for number, frame in enumerate(itertools.chain([first], frames, [None])):
        if frame is not None:
            frame.pts, frame.time_base = number, base
        graph.vpush(frame)
        while True:
            try:
                yield graph.vpull()
            except (av.BlockingIOError, av.EOFError):  # it holds a frame back, or is done
                break


def _fitted(frames: Iterable[av.VideoFrame], width: int, height: int) -> Iterator[av.VideoFrame]:
    """Fresh frames to encode: upright, opaque, of the size, in 8-bit 4:2:0 of limited range with the matrix that players take for granted.

    Fresh, because the picture types and the subtitles in the side data of the old encoding must not reach the new one.
    """
    reformatter = VideoReformatter()
    for frame in frames:
        if turn := frame.rotation % 360:
            upright: Any = np.rot90(frame.to_ndarray(format="rgb24"), turn // 90)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(upright), format="rgb24")
        elif _transparent(frame):  # over black
            colours: Any = frame.to_ndarray(format="rgba")
            opaque = (colours[..., :3].astype(np.uint16) * colours[..., 3:] // 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(opaque), format="rgb24")
        target: dict[str, Any] = {"width": width, "height": height, "format": "yuv420p", "threads": 1}
        target |= {"interpolation": Interpolation.BILINEAR, "dst_color_range": ColorRange.MPEG}
        if frame.colorspace not in (UNSPECIFIED, *ITU601):
            target["dst_colorspace"] = "ITU601"
        if frame.color_trc in HDR:
            target |= {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}
        planes: Any = reformatter.reformat(frame, **target).to_ndarray()
        yield av.VideoFrame.from_ndarray(planes, format="yuv420p")


def _transparent(frame: av.VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def _target_size(frame: av.VideoFrame, aspect: Fraction, short_side: int) -> tuple[int, int]:
    """Even sides as shown, upright and with square pixels, the shorter at most `short_side`: enlarging adds nothing."""
    width, height = frame.width * float(aspect), float(frame.height)
    if frame.rotation % 180:
        width, height = height, width
    scale = min(short_side / min(width, height), 1.0)
    return max(2 * round(width * scale / 2), 2), max(2 * round(height * scale / 2), 2)


# ----------------------------------------------------------------------------------------------------------- before decoding


def _video_stream(container: Any) -> av.VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover of a song is no video
            stream.thread_type = "NONE"  # one thread: the machine's other cores have shards of their own
            found: av.VideoStream = stream
            return found
    raise ClipError("no_video_stream")


def _refuse_early(data: bytes) -> None:
    """What needs no decoder to be refused."""
    if not data:
        raise ClipError("empty")
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<error", b"{", b"[")):
        raise ClipError("error_page")
    if _is_cut(data):
        raise ClipError("truncated")


def _is_cut(data: bytes) -> bool:
    """Whether an MP4 or AVI ends before its own headers say."""
    if data[:4] == b"RIFF":
        return int.from_bytes(data[4:8], "little") + 8 > len(data) + 1
    if data[4:8] not in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
        return False
    at, found = 0, False
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else len(data) - at if size == 0 else size
        found = found or kind in (b"moov", b"moof")
        if size < 8 or at + size > len(data):
            return at + size > len(data)
        at += size
    return not found
