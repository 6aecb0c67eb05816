"""`video-shards`: clips from the web or from a folder to WebDataset tars, each decoded to its end before it counts.

A clip is fetched (or read), decoded frame by frame at its own timestamps, brought to a constant rate and the recipe's short side,
and encoded again with short closed groups of pictures, so that a reader can jump to any frame. Sound and captions stay behind. What
cannot be used goes to the ledger with a reason: an error page served as a video, no video stream, no frames, a cut file, too few frames.
"""

from __future__ import annotations

import collections
import hashlib
import io
import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mav.artifact import Folder
from mav.data.cliplist import Clip, Part, read_clips, split_lists
from mav.data.guards import FetchError, GuardedOpener, Resolver, system_resolver
from mav.data.shards import VIDEO_LEDGER, ShardOutput, TarWriter, count, json_bytes, write_ledger
from mav.data.video_io import encode_frames
from mav.recipe import Recipe, VideoShards

if TYPE_CHECKING:
    import av

MIN_FRAMES = 8
FETCHING = 8  # clips fetched ahead of the one being encoded
RATES = (1.0, 120.0)  # frame rates believed


class ClipError(Exception):
    """A clip that cannot be used; the message is its reason."""


@dataclass(frozen=True)
class VideoWork:
    """The shard work of `video-shards`: writes `NNNNN.tar` (key.mp4, key.json) and the ledger `NNNNN.parquet`.

    parts: the rows of each shard. Clips come from `rule.files` (page_dir/videoid.mp4) when given, else from their addresses.
    """

    parts: tuple[Part, ...]
    rule: VideoShards
    seed: int
    out: Folder
    resolver: Resolver = system_resolver

    @classmethod
    def of(cls, recipe: Recipe, inputs: Mapping[str, Folder], out: Folder, rule: VideoShards | None = None) -> VideoWork:
        """The work of a recipe; walks its lists. Without lists of its own, the demo world's list is read.

        `rule` replaces the recipe's section, for the addresses that may be fetched while the demo world is served.
        """
        rule = rule or recipe.video_shards
        sources = rule.sources
        if not sources and "demo-world" in inputs:
            sources = (inputs["demo-world"].child("webvid/clips.csv").url,)
        return cls(tuple(split_lists(sources, rule.clips_per_shard)), rule, recipe.seed, out)

    def shard_names(self) -> list[str]:
        return [f"{number:05d}" for number in range(len(self.parts))]

    def __call__(self, name: str) -> ShardOutput:
        ledger: list[dict[str, Any]] = []
        frames = 0
        with self.out.create(f"{name}.tar") as file, TarWriter(file) as tar:
            for row, (clip, data) in enumerate(self._fetched(self.parts[int(name)])):
                key = f"{name}{row:05d}"
                entry: dict[str, Any] = {"key": key, "videoid": clip.videoid}
                try:
                    if isinstance(data, ClipError):
                        raise data
                    entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
                    video, facts = convert(data, self.rule, clip.start, clip.end)
                    tar.add(key, {"mp4": video, "json": json_bytes(facts | {"videoid": clip.videoid})})
                    frames += facts["frames"]
                    entry |= {"status": "ok", "reason": ""} | {n: facts[n] for n in ("fps", "frames", "width", "height")}
                except ClipError as error:
                    reason = str(error)
                    entry |= {"status": "dropped" if reason in ("duplicate", "opted_out") else "failed", "reason": reason}
                ledger.append(entry)
        write_ledger(self.out, f"{name}.parquet", VIDEO_LEDGER, ledger)
        return ShardOutput(count(ledger, frames=frames), (f"{name}.tar", f"{name}.parquet"))

    def _fetched(self, part: Part) -> Iterator[tuple[Clip, bytes | ClipError]]:
        """Clips in the list's order with their bytes, a few fetched ahead."""
        rule = self.rule
        opener = GuardedOpener(
            timeout=rule.timeout_seconds,
            deadline=rule.deadline_seconds,
            max_bytes=rule.max_bytes,
            contact=rule.contact,
            allow_addresses=rule.allow_addresses,
            refuse=("noai", "noml"),
            resolver=self.resolver,
        )
        files = Folder(rule.files) if rule.files else None
        waiting: collections.deque[tuple[Clip, Future[bytes | ClipError]]] = collections.deque()
        with ThreadPoolExecutor(FETCHING) as pool:
            for clip in read_clips(part, self.seed):
                waiting.append((clip, pool.submit(_fetch, clip, files, opener)))
                if len(waiting) > FETCHING:
                    done, future = waiting.popleft()
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()


def _fetch(clip: Clip, files: Folder | None, opener: GuardedOpener) -> bytes | ClipError:
    if clip.repeated:
        return ClipError("duplicate")
    try:
        if files is None:
            return opener.fetch(clip.url).body
        name = f"{clip.page_dir}/{clip.videoid}.mp4" if clip.page_dir else f"{clip.videoid}.mp4"
        if clip.end and not files.exists(name):  # HD-VILA: spans of one file
            name = f"{clip.page_dir}.mp4"
        if files.size(name) > opener.max_bytes:
            return ClipError("too_large")
        return files.read_bytes(name)
    except FetchError as error:
        return ClipError(error.reason)
    except FileNotFoundError:
        return ClipError("missing_file")


def convert(data: bytes, rule: VideoShards, start: float = 0.0, end: float = 0.0) -> tuple[bytes, dict[str, Any]]:
    """(mp4, facts {fps, frames, width, height, seconds}) of one clip, or of its span in seconds.

    Longer clips are cut at `rule.max_seconds`. Raises ClipError with a reason.
    """
    import av

    _refuse_early(data)
    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.video:
                raise ClipError("no_video_stream")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # one thread: the machine's other cores have shards of their own
            rate = _rate(stream)
            width, height = _target_size(stream.codec_context.width, stream.codec_context.height, rule.short_side)
            announced = stream.frames
            source = _Frames(container, stream, rate, start, end or start + rule.max_seconds)
            decoded = iter(source)
            first = next(decoded, None)
            if first is None:
                raise ClipError("zero_frames")
            if first[1].rotation % 180:
                width, height = height, width
            steady = _steady(itertools.chain([first], decoded), rate, rule.max_seconds)
            frames = (_fitted(frame, width, height) for frame in steady)
            video, number = encode_frames(frames, width, height, rate, crf=rule.crf, keyframe_interval=rule.keyframe_interval)
    except (av.error.FFmpegError, ValueError, OverflowError):
        raise ClipError("undecodable") from None
    if source.complete and source.decoded < 0.5 * announced:
        raise ClipError("truncated")
    if number < MIN_FRAMES:
        raise ClipError("too_short")
    return video, {"fps": rate, "frames": number, "width": width, "height": height, "seconds": round(number / rate, 6)}


class _Frames:
    """Decoded frames of a span, each with its seconds since the clip's first; counts what it decoded."""

    def __init__(self, container: Any, stream: av.VideoStream, rate: float, start: float, end: float) -> None:
        self._container, self._stream = container, stream
        self.rate, self.start, self.end = rate, start, end
        self.decoded, self.complete = 0, False

    def __iter__(self) -> Iterator[tuple[float, av.VideoFrame]]:
        origin = None
        for frame in self._container.decode(self._stream):
            time = frame.time if frame.time is not None else self.decoded / self.rate
            origin = time if origin is None else origin
            self.decoded += 1
            if time - origin >= self.end:
                return
            if time - origin >= self.start - 0.5 / self.rate:
                yield time - origin, frame
        self.complete = True


def _steady(frames: Iterator[tuple[float, av.VideoFrame]], rate: float, longest: float) -> Iterator[av.VideoFrame]:
    """Frames at a constant rate: at each tick the one nearest in time. A clip of constant rate comes through frame by frame."""
    limit = int(longest * rate)
    origin, held = next(frames)
    shown, tick = origin, 0
    for time, frame in frames:
        time = time if time > shown else shown + 1 / rate  # time that stands still or runs backwards: a tick later
        while tick / rate < (shown + time) / 2 - origin and tick < limit:
            yield held
            tick += 1
        shown, held = time, frame
    while tick / rate < shown - origin + 0.5 / rate and tick < limit:
        yield held
        tick += 1


def _fitted(frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
    """A copy of the frame, upright, in the size and format to encode; a frame shown twice is two."""
    import av

    if turn := frame.rotation % 360:
        upright: Any = np.rot90(frame.to_ndarray(format="rgb24"), turn // 90)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(upright), format="rgb24")
    fitted = frame.reformat(width=width, height=height, format="yuv420p", interpolation="AREA")
    # A fresh frame: one may be shown twice, and the picture types of the old encoding must not steer the new one.
    planes: Any = fitted.to_ndarray()
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


def _target_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Even sides, the shorter at most `short_side`: enlarging adds nothing."""
    scale = min(short_side / max(min(width, height), 1), 1.0)
    return max(2 * round(width * scale / 2), 2), max(2 * round(height * scale / 2), 2)


def _rate(stream: av.VideoStream) -> float:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    if rate is None or not RATES[0] <= rate <= RATES[1]:
        raise ClipError("wild_frame_rate")
    return float(rate)


def _refuse_early(data: bytes) -> None:
    """What needs no decoder to be refused."""
    if not data:
        raise ClipError("empty")
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"{")):
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
