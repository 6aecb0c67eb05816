"""Examines a video before it is encoded: refusals, its stream, its frames in time, and the metadata of a clip."""

import io
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from mav.data.videos.index_first import longest_track

# FFmpeg's name of a container -> extension. Playlists and slide lists are left out: they open other files.
CONTAINERS = {
    "mov,mp4,m4a,3gp,3g2,mj2": "mp4", "matroska,webm": "mkv", "avi": "avi", "mpegts": "ts", "mpeg": "mpg",
    "mpegvideo": "m2v", "flv": "flv", "asf": "wmv", "ogg": "ogv", "gif": "gif", "h264": "h264", "hevc": "hevc",
    "m4v": "m4v", "dv": "dv", "rm": "rm",
}  # fmt: skip
MIN_FRAMES = 8
MAX_PIXELS = 7680 * 4320  # of a frame
# Of all frames that are decoded of one video, each counted as LEAST_PIXELS at least: a minute of the largest at 120
# frames a second, or a million of any size.
MOST_PIXELS, LEAST_PIXELS = 1 << 38, 1 << 18
MOST_SAMPLES = 1 << 22  # of any track
BURST = 10.0  # seconds by which the frames may run ahead of the highest rate
RATES = (1.0, 120.0)  # frame rates that are believed
GAP = 10.0  # seconds from one frame to the next that are believed
SET_BACK = 0.5  # seconds: a clock that falls further was reset, and its later times are shifted
CORRECTED = 0.25  # share of times that may need correction
STEADY = 0.002  # seconds by which a frame of a constant rate may be off: containers round to milliseconds
NO_SIZE = (0, 0xFFFFFFFF)  # of a RIFF file whose writer could not go back to fill it in
NUMBERED = "avi"  # a container without times of its own
BOXES = (b"moov", b"moof", b"mdat")  # of an MP4: without the whole of each, frames are missing
ANIMATED = ("gif", "apng", "webp")  # animated pictures: like pictures, they lie over white
# Seconds: a frame of an animated picture that is shown for less is shown for the usual time.
SHORTEST, USUAL = 0.011, 0.1
PICTURED = Disposition.attached_pic | Disposition.timed_thumbnails  # streams that are no video
SEEK = 4.0  # seconds: spans that begin later are sought, earlier ones are reached by decoding


class ClipError(Exception):
    """A clip cannot be used; the message is its reason."""


def refuse_early(data: bytes) -> None:
    """Raises ClipError for bytes that are refused without a decoder: empty, error_page, truncated."""
    if not data:
        raise ClipError("empty")
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<error", b"{", b"[")):
        raise ClipError("error_page")
    if _is_cut(data):
        raise ClipError("truncated")


@contextmanager
def opened(data: bytes) -> Iterator[Any]:
    """Opens a container of one of the known forms, in which no decoder takes a frame of more than MAX_PIXELS."""
    if longest_track(data) > MOST_SAMPLES:
        raise ClipError("too_many_frames")
    options = {"format_whitelist": ",".join(CONTAINERS), "max_pixels": str(MAX_PIXELS)}
    with av.open(io.BytesIO(data), options=options) as container:
        yield container


def _is_cut(data: bytes) -> bool:
    """Says whether an MP4 or AVI ends before its own headers say.

    An AVI that was written into a pipe has no size. Behind the boxes of an MP4 may stand what is none.
    """
    if data[:4] == b"RIFF":
        size = int.from_bytes(data[4:8], "little")
        return size not in NO_SIZE and size > len(data)  # some writers count the first eight bytes too
    if data[4:8] not in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
        return False
    at = 0
    found: set[bytes] = set()
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else len(data) - at if size == 0 else size
        if size < 8 or at + size > len(data):
            return kind in BOXES or not ({b"moov", b"moof"} & found and b"mdat" in found)
        found.add(kind)
        at += size
    return not {b"moov", b"moof"} & found


def video_streams(container: Any) -> list[av.VideoStream]:
    """Returns the video streams without cover pictures and thumbnails; first the one that is shown.

    It is the one that the container marks as default, of several the one of the most pixels, as previews are smaller,
    and of equal ones the first. A stream of one frame comes last: it is a cover picture that is not marked as such.
    """

    def rank(stream: av.VideoStream) -> tuple[bool, bool, int]:
        codec = stream.codec_context
        marked = bool(stream.disposition & Disposition.default)
        return stream.frames != 1, marked, codec.width * codec.height if codec else 0

    streams = (stream for stream in container.streams.video if not stream.disposition & PICTURED)
    return sorted(streams, key=rank, reverse=True)


def video_stream(container: Any) -> av.VideoStream:
    """Returns the first of the `video_streams`, set to decode in one thread.

    Raises ClipError: no_video_stream, too_many_pixels.
    """
    for stream in video_streams(container):
        if stream.codec_context is not None:
            if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                raise ClipError("too_many_pixels")
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # sizes may change on the way
            stream.thread_type = "NONE"  # the machine's other cores have shards of their own
        return stream
    raise ClipError("no_video_stream")


class TimedFrames:
    """Iterates over the decoded frames of a span, each with its seconds since the video's beginning, increasing.

    Raises ClipError when the video ends before half of the frames it announces, or of the seconds that a list claims,
    and as soon as it has more to decode than any clip needs (`most`, see MOST_PIXELS). rate: frames a second, as the
    container claims; skipped: frames decoded before the span; hidden: whether the file holds frames that players do not
    show, as its edit list says. Without `strict` damaged packets are left out, and odd times are taken as they are.
    """

    def __init__(
        self, container: Any, stream: av.VideoStream, start: float = 0.0, end: float = np.inf, listed: float = 0.0,
        seek: bool = False, strict: bool = True, most: int = MOST_PIXELS,
    ) -> None:  # fmt: skip
        codec = stream.codec_context
        if codec is None:
            raise ClipError("undecodable")
        self._most = most // max(codec.width * codec.height, LEAST_PIXELS)
        self._numbered = container.format.name == NUMBERED
        seek = seek and start > SEEK and not self._numbered  # the decoder's delay is known from the beginning on alone
        self._most_announced(stream, end, seek)
        self._container, self._stream, self._seek, self._strict = container, stream, seek, strict
        # The index has what is shown; a header may claim any number.
        shown = [not entry.is_discard for entry in stream.index_entries]
        self._announced, self._listed = min(stream.frames, sum(shown)), listed
        self.hidden = not all(shown)
        self._animated = stream.codec_context.name in ANIMATED
        self.background = 255 if self._animated else 0
        self._start, self._end = start, end
        # Where the claimed rate is wild, a usual one is assumed: the frames' own times decide in the end.
        claims = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        believed = (Fraction(claim) for claim in claims if claim and RATES[0] <= claim <= RATES[1])
        self.rate = next(believed, Fraction(25))
        self.pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
        self.skipped = self._decoded = 0
        self._tick, self._last = 1 / float(self.rate), 0.0

    def _most_announced(self, stream: av.VideoStream, end: float, seeks: bool) -> None:
        """Raises ClipError("too_many_frames") when the index lists more frames until `end` than may be decoded."""
        listed = len(stream.index_entries)
        if listed > MOST_SAMPLES:
            raise ClipError("too_many_frames")
        if listed > self._most and not seeks:
            base, first = float(stream.time_base or 0), stream.index_entries[0].timestamp
            if sum((entry.timestamp - first) * base < end for entry in stream.index_entries) > self._most:
                raise ClipError("too_many_frames")

    def __iter__(self) -> Iterator[tuple[float, av.VideoFrame]]:
        for time, frame in self._increasing(self._decode()):
            if time >= self._end - 0.5 * self._tick:
                return
            if time >= self._start - 0.5 * self._tick:
                yield time, frame
            else:
                self.skipped += 1
        if not self._strict:
            return
        if self._decoded < 0.5 * self._announced or self._last + self._tick < 0.5 * self._listed:
            raise ClipError("truncated")

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Decodes from shortly before the span where the container's index allows it, otherwise from the beginning."""
        container, stream, base = self._container, self._stream, self._stream.time_base
        if self._seek and stream.start_time is not None and base is not None:
            container.seek(stream.start_time + int(self._start / base), stream=stream)
            frames = container.decode(stream)
            first = next(frames, None)
            time = None if first is None else first.time
            if time is not None and 0 < time - float(stream.start_time * base) <= self._start:
                self._announced = 0  # only some of the announced frames are decoded
                yield from itertools.chain([first], frames)
                return
            container.seek(0)
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:
                if self._strict:
                    raise

    def _told(self, frame: av.VideoFrame) -> float | None:
        """Returns the time at which the container says that a frame is shown; None where it does not.

        An AVI only numbers its packets, in the order in which they are decoded, and what is made of that for frames
        that are shown in another order (B-frames) is wrong. As the decoder gives one frame for each packet from the
        first one on, in the order shown, the number of that packet is the frame's own, later by the decoder's delay.
        """
        if not self._numbered:
            return frame.time
        base = self._stream.time_base
        return None if frame.dts is None or base is None else float(frame.dts * base)

    def _increasing(self, frames: Iterable[av.VideoFrame]) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yields the container's times, corrected: one that is missing or not after the last is a tick later."""
        start, base = self._stream.start_time, self._stream.time_base
        shift = -float(start * base) if start is not None and base and not self._numbered else None
        timed = corrected = 0
        for frame in frames:
            next_tick = self._last + self._tick if self._decoded else 0.0
            time, told = next_tick, self._told(frame)
            if told is not None:
                timed += 1
                shift = -told if shift is None else shift
                time = told + shift
                if self._animated and self._decoded and 0 < time - self._last < SHORTEST:
                    shift += self._last + USUAL - time
                    time = self._last + USUAL
                if self._decoded and time <= self._last:
                    corrected += 1
                    if self._last - time > SET_BACK:
                        shift += next_tick - time
                    time = next_tick
                elif self._decoded and time - self._last > GAP and self._strict:
                    raise ClipError("wild_timestamps")
            self._decoded += 1
            self._last = time
            if self._decoded > self._most:
                raise ClipError("too_many_frames")
            if self._decoded > RATES[1] * (time + BURST) and self._strict:
                raise ClipError("wild_frame_rate")
            yield time, frame
        if corrected > CORRECTED * timed and self._strict:
            raise ClipError("wild_timestamps")


def clip_metadata(times: list[float], width: int, height: int, claimed: float) -> dict[str, Any]:
    """Returns fps, frames, width, height, seconds of a clip with frames at these times (s), and uneven times.

    claimed: frames a second, as the container says. Raises ClipError: too_short, wild_frame_rate.
    """
    if len(times) < MIN_FRAMES:
        raise ClipError("too_short")
    mean, constant = frame_rate(times, claimed)
    if not RATES[0] <= mean <= RATES[1]:
        raise ClipError("wild_frame_rate")
    fps = mean if constant is None else constant
    size = {"width": width, "height": height, "seconds": round(len(times) / fps, 6)}
    uneven = {"times": [round(time - times[0], 6) for time in times]} if constant is None else {}
    return {"fps": fps, "frames": len(times), **size, **uneven}


def frame_rate(times: list[float], claimed: float) -> tuple[float, float | None]:
    """Returns the mean rate of two frames or more at these times (s), and their constant one, None without one.

    claimed: frames a second, as the container says.
    """
    at = np.array(times) - times[0]
    mean = float((len(at) - 1) / at[-1])
    rates = (claimed, float(Fraction(mean).limit_denominator(1001)))
    steady = (rate for rate in rates if rate and np.abs(at - np.arange(len(at)) / rate).max() <= STEADY)
    return mean, next(steady, None)
