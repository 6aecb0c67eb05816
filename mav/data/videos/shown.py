"""A video's frames as a player shows them: without hidden ones, upright, with square pixels, each at its own time.

Shards, evaluation, studies and the commands agree on what a video shows, because all read it through `TimedFrames` and
these functions.
"""

import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc, VideoReformatter
from PIL import Image

from mav.data.images.frames import frames_over_white
from mav.data.videos import probe
from mav.data.videos.probe import SHORTEST, USUAL, ClipError, TimedFrames, frame_rate, opened, video_stream

HDR = (16, 18)  # transfer characteristics: PQ and HLG
HELD = 256 << 20  # bytes of decoded frames that are kept; a longer video is decoded a second time
PICTURES = (b"GIF8", b"RIFF", b"\x89PNG")  # how animated pictures begin; of RIFF files, those that are WEBP
MOST_SHOWN = 1 << 36  # pixels of all frames, counted as in `probe`: 20 minutes of 1080p, a quarter of a million of any
FORMATS = ("GIF", "WEBP", "PNG")


class ShownVideo:
    """The frames of a video or of an animated picture, in bytes. Raises ValueError when there are none.

    times: seconds of each frame since the first; fps: their constant rate, or the mean one; uneven: there is only this.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._held, self._bytes = data, [], 0
        self._animated = data[:4] in PICTURES and (data[:4] != b"RIFF" or data[8:12] == b"WEBP")
        self.times: list[float] = []
        self._claimed, self._size = 0.0, (0, 0)
        self._placings = Placings()
        self._reformatter = VideoReformatter()  # one, since its tables for high dynamic range take seconds to make
        for time, frame in self._decoded():
            self.times.append(time)
            self._bytes += frame.nbytes if isinstance(frame, np.ndarray) else 3 * frame.width * frame.height
            self._held.append(frame)
            if self._bytes > HELD:
                self._held.clear()
        if not self.times:
            raise ValueError("not a decodable video: the video has no frames")
        mean, constant = frame_rate(self.times, self._claimed) if len(self.times) > 1 else (self._claimed, 0.0)
        self.fps, self.uneven = constant or mean, constant is None

    def __len__(self) -> int:
        return len(self.times)

    def nearest(self, places: Sequence[float]) -> list[int]:
        """Returns the frames at places counted in frames of the rate `fps`: of an uneven video, those shown then."""
        if self.uneven:
            at = np.asarray(places) / self.fps + self.times[0]
            places = np.interp(at, self.times, np.arange(len(self))).tolist()
        return [min(int(np.floor(place + 0.5)), len(self) - 1) for place in places]

    def frames(
        self, indices: Sequence[int] | None = None, change: Callable[[np.ndarray], np.ndarray] = lambda frame: frame
    ) -> np.ndarray:
        """Returns uint8 (F, H, W, 3) RGB of these frames, or of all, each changed before the next is made."""
        wanted = range(len(self)) if indices is None else indices
        chosen: dict[int, np.ndarray] = {}
        last, needed = max(wanted), set(wanted)
        frames = self._held if len(self._held) == len(self) else (frame for _, frame in self._decoded())
        for number, frame in enumerate(itertools.islice(frames, last + 1)):
            if number in needed:
                chosen[number] = change(frame if isinstance(frame, np.ndarray) else self._pixels(frame))
        return np.stack([chosen[number] for number in wanted])

    def _decoded(self) -> Iterator[tuple[float, Any]]:
        try:
            if self._animated:
                yield from _animation(self._data)
                return
            with opened(self._data) as container:
                source = TimedFrames(container, video_stream(container), strict=False, most=MOST_SHOWN)
                self._claimed, self._background = float(source.rate), source.background
                timed = iter(source)
                first = next(timed, None)
                if first is None:
                    return
                self._size = target_size(first[1], source.pixel_aspect)
                yield from _progressive(itertools.chain([first], timed))
        except ClipError as error:
            raise ValueError(f"not a decodable video: {str(error).replace('_', ' ')}") from None
        except Image.DecompressionBombError:
            raise ValueError("not a decodable video: too many pixels") from None
        except Exception as error:  # parsers of hostile bytes raise anything
            raise ValueError(f"not a decodable video: {getattr(error, 'strerror', None) or error}") from None

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
        frame = upright(frame, self._background, self._placings)
        if (frame.width, frame.height) != self._size or frame.color_trc in HDR:
            target: dict[str, Any] = {"width": self._size[0], "height": self._size[1], "format": "rgb24", "threads": 1}
            if frame.color_trc in HDR:
                target |= {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}
            frame = self._reformatter.reformat(frame, **target)
        pixels: np.ndarray = frame.to_ndarray(format="rgb24")
        return pixels


def _animation(data: bytes) -> Iterator[tuple[float, np.ndarray]]:
    """Yields the seconds and pixels of each frame of a GIF, WEBP or PNG, over white, timed as browsers do.

    Raises ClipError as soon as there is a frame too many.
    """
    time = 0.0
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        pixels = picture.width * picture.height
        if pixels > probe.MAX_PIXELS:
            raise ClipError("too_many_pixels")
        for number, frame in enumerate(frames_over_white(picture), 1):
            if number * max(pixels, probe.LEAST_PIXELS) > MOST_SHOWN:
                raise ClipError("too_many_frames")
            if number == 1 and picture.info.get("default_image"):  # of a PNG: for readers that show a still picture
                continue
            yield time, frame
            seconds = float(picture.info.get("duration") or 0) / 1000
            time += seconds if seconds >= SHORTEST else USUAL


def _progressive(timed: Iterable[tuple[float, av.VideoFrame]]) -> Iterator[tuple[float, Any]]:
    times, frames = itertools.tee(timed)
    yield from zip((time for time, _ in times), deinterlaced(frame for _, frame in frames), strict=False)


def deinterlaced(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Yields as many frames, each of one moment: the filter bwdif interpolates the lines of the other field.

    Broadcasts change between both kinds: frames are filtered from the first interlaced one on, progressive ones stay.
    """
    frames = iter(frames)
    for first in frames:
        if first.interlaced_frame:
            break
        yield first
    else:
        return
    graph = av.filter.Graph()
    graph.threads = 1
    base = Fraction(1, 1000)
    source = graph.add_buffer(width=first.width, height=first.height, format=first.format, time_base=base)
    bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
    for number, frame in enumerate(itertools.chain([first], frames, [None])):
        if frame is not None:
            frame.pts, frame.time_base = number, base
        graph.vpush(frame)
        while True:
            try:
                yield graph.vpull()
            except (av.BlockingIOError, av.EOFError):  # the filter waits for the next frame, or has ended
                break


class Placing(NamedTuple):
    """What is done with a frame, in this order, to show it."""

    exchanged: bool  # rows become columns
    mirrored: bool  # left becomes right
    upside_down: bool


def placing(frame: av.VideoFrame) -> Placing:
    """Returns what a frame's display matrix says. One that is no turn by right angles does nothing, as in browsers."""
    data: Any = _corner(frame).side_data.get("DISPLAYMATRIX")  # a buffer, which its type does not tell
    if not data:
        return Placing(False, False, False)
    entries = np.frombuffer(bytes(data), np.int32)[[0, 1, 3, 4]]
    across, down, right, below = np.rint(entries / max(np.abs(entries).max(), 1)).tolist()
    if across and below and not down and not right:
        return Placing(False, across < 0, below < 0)
    if down and right and not across and not below:
        return Placing(True, right < 0, down < 0)
    return Placing(False, False, False)


def _corner(frame: av.VideoFrame) -> av.VideoFrame:
    """Returns a copy of a frame's first pixels, with all of its side data.

    PyAV's side data and their frame refer to each other, so that a frame whose side data were asked for waits for
    Python's collector, which comes rarely where much is imported. Of a corner little waits.
    """
    graph = av.filter.Graph()
    graph.threads = 1
    base = Fraction(1, 1000)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=base)
    crop = graph.add("crop", f"w={min(frame.width, 8)}:h={min(frame.height, 8)}:x=0:y=0:exact=1")
    graph.link_nodes(source, crop, graph.add("copy"), graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull()


class Placings:
    """The placings of a stream's frames, each read where the rotation is another than that of the frame before.

    To read one takes a tenth of a millisecond, about as long as the decoding of a small frame.
    """

    def __init__(self) -> None:
        self._rotation: int | None = None
        self._placing = Placing(False, False, False)

    def of(self, frame: av.VideoFrame) -> Placing:
        """Returns the placing of a frame."""
        if frame.rotation != self._rotation:
            self._rotation, self._placing = frame.rotation, placing(frame)
        return self._placing


def upright(frame: av.VideoFrame, background: int, placings: Placings) -> av.VideoFrame:
    """Returns a frame turned and mirrored as its placing says, or over a background (a level of grey), or itself."""
    if any(placed := placings.of(frame)):
        turned: Any = frame.to_ndarray(format="rgb24")
        turned = turned.swapaxes(0, 1) if placed.exchanged else turned
        turned = turned[:: -1 if placed.upside_down else 1, :: -1 if placed.mirrored else 1]
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(turned), format="rgb24")
    if not is_transparent(frame):
        return frame
    colours: Any = frame.to_ndarray(format="rgba")
    alpha = colours[..., 3:].astype(np.uint16)
    opaque = ((colours[..., :3] * alpha + background * (255 - alpha)) // 255).astype(np.uint8)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(opaque), format="rgb24")


def is_transparent(frame: av.VideoFrame) -> bool:
    """Says whether a frame has an alpha channel."""
    return any(component.is_alpha for component in frame.format.components)


def target_size(frame: av.VideoFrame, aspect: Fraction, short_side: int = 0) -> tuple[int, int]:
    """Returns the sides of a frame, upright and with square pixels.

    With a `short_side` they are even, and the shorter is at most this: enlarging adds nothing.
    """
    width, height = frame.width * float(aspect), float(frame.height)
    if placing(frame).exchanged:
        width, height = height, width
    if not short_side:
        return max(round(width), 1), max(round(height), 1)
    scale = min(short_side / min(width, height), 1.0)
    return max(2 * round(width * scale / 2), 2), max(2 * round(height * scale / 2), 2)
