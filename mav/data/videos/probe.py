"""Examines a video before it is encoded: refusals, its stream, its frames in time, and the metadata of a clip."""

import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Disposition

MIN_FRAMES = 8
RATES = (1.0, 120.0)  # frame rates that are believed
GAP = 10.0  # seconds from one frame to the next that are believed
SET_BACK = 0.5  # seconds: a clock that falls further was reset, and its later times are shifted
CORRECTED = 0.25  # share of times that may need correction
STEADY = 0.002  # seconds by which a frame of a constant rate may be off: containers round to milliseconds
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


def _is_cut(data: bytes) -> bool:
    """Says whether an MP4 or AVI ends before its own headers say."""
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


def video_stream(container: Any) -> av.VideoStream:
    """Returns the first video stream, set to decode in one thread. Raises ClipError("no_video_stream")."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover picture of a song is no video
            stream.thread_type = "NONE"  # the machine's other cores have shards of their own
            found: av.VideoStream = stream
            return found
    raise ClipError("no_video_stream")


class TimedFrames:
    """Iterates over the decoded frames of a span, each with its seconds since the video's beginning, increasing.

    Raises ClipError when the video ends before half of the frames it announces, or of the seconds that a list claims.
    rate: frames a second, as the container claims; skipped: frames decoded before the span.
    """

    def __init__(
        self, container: Any, stream: av.VideoStream, start: float, end: float, listed: float, seek: bool
    ) -> None:
        self._container, self._stream, self._seek = container, stream, seek
        self._announced, self._listed = stream.frames, listed
        self._start, self._end = start, end
        # Where the claimed rate is wild, a usual one is assumed: the frames' own times decide in the end.
        claims = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        believed = (Fraction(claim) for claim in claims if claim and RATES[0] <= claim <= RATES[1])
        self.rate = next(believed, Fraction(25))
        self.pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
        self.skipped = self._decoded = 0
        self._tick, self._last = 1 / float(self.rate), 0.0

    def __iter__(self) -> Iterator[tuple[float, av.VideoFrame]]:
        for time, frame in self._increasing(self._decode()):
            if time >= self._end - 0.5 * self._tick:
                return
            if time >= self._start - 0.5 * self._tick:
                yield time, frame
            else:
                self.skipped += 1
        if self._decoded < 0.5 * self._announced or self._last + self._tick < 0.5 * self._listed:
            raise ClipError("truncated")

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Decodes from shortly before the span where the container's index allows it, otherwise from the beginning."""
        container, stream, base = self._container, self._stream, self._stream.time_base
        if self._seek and self._start > SEEK and stream.start_time is not None and base is not None:
            container.seek(stream.start_time + int(self._start / base), stream=stream)
            frames = container.decode(stream)
            first = next(frames, None)
            time = None if first is None else first.time
            if time is not None and 0 < time - float(stream.start_time * base) <= self._start:
                self._announced = 0  # only some of the announced frames are decoded
                yield from itertools.chain([first], frames)
                return
            container.seek(0)
        yield from container.decode(stream)

    def _increasing(self, frames: Iterable[av.VideoFrame]) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yields the container's times, corrected: one that is missing or not after the last is a tick later."""
        start, base = self._stream.start_time, self._stream.time_base
        shift = -float(start * base) if start is not None and base else None
        timed = corrected = 0
        for frame in frames:
            next_tick = self._last + self._tick if self._decoded else 0.0
            time = next_tick
            if frame.time is not None:
                timed += 1
                shift = -frame.time if shift is None else shift
                time = frame.time + shift
                if self._decoded and time <= self._last:
                    corrected += 1
                    if self._last - time > SET_BACK:
                        shift += next_tick - time
                    time = next_tick
                elif self._decoded and time - self._last > GAP:
                    raise ClipError("wild_timestamps")
            self._decoded += 1
            self._last = time
            yield time, frame
        if corrected > CORRECTED * timed:
            raise ClipError("wild_timestamps")


def clip_metadata(times: list[float], width: int, height: int, claimed: float) -> dict[str, Any]:
    """Returns fps, frames, width, height, seconds of a clip with frames at these times (s), and uneven times.

    claimed: frames a second, as the container says. Raises ClipError: too_short, wild_frame_rate.
    """
    if len(times) < MIN_FRAMES:
        raise ClipError("too_short")
    at = np.array(times) - times[0]
    mean = float((len(at) - 1) / at[-1])
    if not RATES[0] <= mean <= RATES[1]:
        raise ClipError("wild_frame_rate")
    rates = (claimed, float(Fraction(mean).limit_denominator(1001)))
    steady = (rate for rate in rates if np.abs(at - np.arange(len(at)) / rate).max() <= STEADY)
    constant = next(steady, None)
    fps = mean if constant is None else constant
    size = {"width": width, "height": height, "seconds": round(len(times) / fps, 6)}
    uneven = {"times": [round(time - times[0], 6) for time in times]} if constant is None else {}
    return {"fps": fps, "frames": len(times), **size, **uneven}
