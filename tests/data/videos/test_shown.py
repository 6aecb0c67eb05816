"""What a player shows of a video is what is sharded, evaluated, rated and varied."""

import gc
import io
import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from odd_videos import HANDLED, picture, placed, video
from PIL import Image

from mav.data.videos.probe import ClipError
from mav.data.videos.shown import ShownVideo, placing
from mav.data.videos.transcode import convert
from mav.data.videos.video_io import read_frames
from mav.evaluation.reading import central_places, whole_video
from mav.recipes import VideoShards

RULE = VideoShards(short_side=48)
KEPT = VideoShards(short_side=48, reencode=False)
SECONDS, RATE = 4, 25


def brighter(form="mp4", codec="libx264", target=None, **options):
    """Four seconds that grow brighter: the level of frame i is 20 + 2 i."""
    buffer = target or io.BytesIO()
    with av.open(buffer, "w", format=form) as out:
        stream = out.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", options
        for i in range(RATE * SECONDS):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + 2 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


class Pipe(io.RawIOBase):
    """Cannot seek."""

    def __init__(self):
        self.data = b""

    def writable(self):
        return True

    def write(self, data):
        self.data += bytes(data)
        return len(data)

    def getvalue(self):
        return self.data


def boxes(data, at, end):
    while at + 8 <= end:
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        yield kind, at
        if kind in (b"moov", b"trak", b"edts", b"mdia"):
            yield from boxes(data, at + 8, at + size)
        at += size


def trimmed(data, first, seconds):
    """Only `seconds` from `first` on are shown, as the edit list says."""
    at = dict(boxes(data, 0, len(data)))
    movie = int.from_bytes(data[at[b"mvhd"] + 20 : at[b"mvhd"] + 24], "big")
    track = int.from_bytes(data[at[b"mdhd"] + 20 : at[b"mdhd"] + 24], "big")
    edit = at[b"elst"] + 16
    before = struct.unpack(">i", data[edit + 4 : edit + 8])[0]
    return data[:edit] + struct.pack(">Ii", round(seconds * movie), before + round(first * track)) + data[edit + 8 :]


def levels(frames):
    return frames.reshape(len(frames), -1).mean(axis=1)


def central_frames(data, frames, fps):
    shown = ShownVideo(data)
    return shown.frames(shown.nearest(central_places(len(shown), shown.fps, frames, fps)))


@pytest.mark.parametrize("b_frames", ["0", "2"])
@pytest.mark.parametrize(("first", "seconds"), [(0, 1), (1.52, 1), (3, 1), (2, 2), (0, 4)])
def test_hidden_packets_are_nowhere_seen(b_frames, first, seconds):
    data = trimmed(brighter(g="250", bf=b_frames), first, seconds)
    expected = 20 + 2 * (np.arange(seconds * RATE) + first * RATE)
    found = levels(whole_video(data))
    assert len(found) == len(expected)
    assert np.abs(found - expected).max() < 4
    assert np.abs(levels(read_frames(convert(data, RULE).data)) - expected).max() < 4
    middle = (len(expected) - 8) / 2
    assert np.abs(levels(central_frames(data, 8, 0.0)) - expected[int(middle + 0.5) :][:8]).max() < 4
    as_it_is = VideoShards(short_side=48, reencode=False)
    if seconds == SECONDS:
        assert np.abs(levels(read_frames(convert(data, as_it_is).data)) - expected).max() < 4
    else:
        with pytest.raises(ClipError, match="needs_reencoding"):
            convert(data, as_it_is)


@pytest.mark.parametrize("options", [{}, {"bf": "2"}], ids=["plain", "B-frames"])
def test_an_avi_from_a_pipe_is_whole(options):
    data = brighter("avi", "mpeg4", Pipe(), **options)
    assert data[4:8] == b"\xff\xff\xff\xff"
    assert convert(data, RULE).metadata["frames"] == len(ShownVideo(data)) == RATE * SECONDS
    for size in (0, 0xFFFFFFFF, len(data), len(data) - 8, len(data) - 100):
        assert convert(data[:4] + struct.pack("<I", size) + data[8:], RULE).metadata["frames"] == RATE * SECONDS
    whole = brighter("avi", "mpeg4", **options)
    claimed = whole.replace(struct.pack("<I", RATE * SECONDS), struct.pack("<I", 9 * RATE * SECONDS))
    assert convert(claimed, RULE).metadata["frames"] == RATE * SECONDS


def test_an_xvid_clip_has_a_frame_every_tick(real_data):
    """Its packets are numbered as they are decoded, from which FFmpeg guesses wrong times for B-frames."""
    data = (real_data / "ucf101/v_ApplyEyeMakeup_g01_c01.avi").read_bytes()
    shown = ShownVideo(data)
    assert (len(shown), shown.fps, shown.uneven) == (164, 25.0, False)
    assert shown.times == pytest.approx(np.arange(164) / 25)
    metadata = convert(data, RULE).metadata
    assert (metadata["frames"], metadata["fps"], metadata["seconds"]) == (164, 25.0, 6.56)
    assert "times" not in metadata


@pytest.mark.parametrize(("scale", "rate", "reason"), [(3600, 1, "wild_timestamps"), (1, 500, "wild_frame_rate")])
def test_an_avi_that_claims_a_wild_rate_is_refused(scale, rate, reason):
    data = bytearray(brighter("avi", "mpeg4", bf="2"))
    struct.pack_into("<II", data, data.index(b"strh") + 8 + 20, scale, rate)
    with pytest.raises(ClipError, match=reason):
        convert(bytes(data), RULE)


TRAILERS = [b"\x8d\xb4\x2d\x69" * 24, b"SEFT" + bytes(9), bytes(100), b"\0\0\xff\xffskip", b"\xff" * 7, b"\0\0\1\0free"]


@pytest.mark.parametrize("trailer", TRAILERS)
def test_bytes_behind_the_last_box_do_no_harm(trailer):
    for options in ({}, {"movflags": "faststart"}):
        data = video(format_options=options)
        assert convert(data + trailer, RULE).metadata["frames"] == 12
        for cut in (len(data) // 2, len(data) - 10):
            with pytest.raises(ClipError, match="truncated"):
                convert(data[:cut], RULE)


@pytest.mark.parametrize("name", sorted(HANDLED))
def test_evaluation_and_shards_see_the_same_frames(name):
    """Of every odd but good video: as many, of the same shape, of the same colours."""
    if name == "theora ogg" and "libtheora" not in av.codecs_available:
        pytest.skip("this build of FFmpeg does not write theora")
    data = HANDLED[name][0]()
    shard, seen = read_frames(convert(data, RULE).data), whole_video(data)
    assert len(shard) == len(seen)
    aspect = [frames.shape[1] / frames.shape[2] for frames in (shard, seen)]
    assert aspect[0] == pytest.approx(aspect[1], rel=0.1)  # the shard's sides are even
    small = [np.asarray(Image.fromarray(f).resize(shard.shape[2:0:-1], Image.Resampling.BOX)) for f in seen]
    assert np.abs(shard.astype(int) - np.array(small)).mean() < 12


@pytest.mark.parametrize(
    "matrix",
    [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0),
     (0, -1, -1, 0), (2, 0, 0, 2), (0, 0, 0, 0), (1, 1, -1, 1)],
)  # fmt: skip
def test_turned_and_mirrored_videos_are_seen_as_players_show_them(matrix):
    """A phone's camera towards its user mirrors. A matrix that is no turn by right angles does nothing."""
    stored = picture(0)
    across, down, right, below = np.sign(matrix)
    if matrix in ((0, 0, 0, 0), (1, 1, -1, 1)):
        across, down, right, below = 1, 0, 0, 1
    y, x = np.indices(stored.shape[:2])
    to_x, to_y = across * x + right * y, down * x + below * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    expected = np.empty((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    expected[to_y, to_x] = stored
    data = placed(*matrix)
    clip = read_frames(convert(data, VideoShards()).data)
    for seen in (whole_video(data)[0], clip[0]):
        assert seen.shape == expected.shape
        assert np.abs(seen.astype(int) - expected).mean() < 12


def test_frames_are_deinterlaced_from_where_a_broadcast_begins_to_be_interlaced():
    """The bar moves sideways; of an interlaced frame, every second line is of a later moment."""

    def broadcast(interlaced):
        numbers = itertools.count()

        def moving(_):
            pixels, number = np.full((48, 64), 40, np.uint8), next(numbers)
            for field in (0, 1):
                at = (6 * number + 3 * field * interlaced) % 52
                pixels[field::2, at : at + 12] = 240
            return av.VideoFrame.from_ndarray(np.dstack([pixels] * 3), format="rgb24").reformat(format="yuv420p")

        options = {"x264-params": "tff=1", "flags": "+ildct+ilme"} if interlaced else {}
        return video("mpegts", rate=25, frames=25, options=options, each=moving)

    data = broadcast(False) + broadcast(True)
    clip = read_frames(convert(data, VideoShards()).data)
    for frames in (whole_video(data), clip):
        assert len(frames) == 50
        lines = frames[:, 8:40, :, 1].astype(int)
        combs = np.abs(lines[:, 1:-1] - (lines[:, :-2] + lines[:, 2:]) / 2).mean(axis=(1, 2))
        assert combs.max() < 6, combs


def test_an_uneven_rate_is_sampled_by_time():
    """Twelve frames, the second half ten times as slow: at 2 fps nearly all of the middle is of the slow half."""
    times = [0.05 * i for i in range(6)] + [0.52 + 0.5 * i for i in range(6)]
    data = video("matroska", times=times)
    shown = ShownVideo(data)
    assert shown.uneven
    assert shown.times == pytest.approx(times, abs=0.002)
    frames = central_frames(data, 4, 2.0)
    wanted = np.linspace(0, 1, 4) * 1.5 + (times[-1] - 1.5) / 2
    nearest = [int(np.abs(np.array(times) - moment).argmin()) for moment in wanted]
    every = whole_video(data)
    assert [int(np.abs(every.astype(int) - frame).reshape(12, -1).mean(1).argmin()) for frame in frames] == nearest


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animated_pictures_have_their_own_times(form):
    durations = [100, 100, 500, 100, 0, 100, 100, 100]
    frames = [Image.fromarray(picture(i)) for i in range(8)]
    buffer = io.BytesIO()
    options = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], duration=durations, **options)
    shown = ShownVideo(buffer.getvalue())
    assert len(shown) == 8
    assert shown.times == pytest.approx([0, 0.1, 0.2, 0.7, 0.8, 0.9, 1.0, 1.1])
    assert np.abs(shown.frames([3])[0].astype(int) - picture(3)).mean() < 12


def test_a_damaged_packet_does_not_end_an_evaluation():
    data = bytearray(brighter("avi", "mpeg4", g="10"))
    data[len(data) // 2 : len(data) // 2 + 4] = b"\xff" * 4
    assert len(whole_video(bytes(data))) >= RATE * SECONDS - 10


def test_what_is_no_video():
    for data in (b"", b"<html>", b"GIF89a", b"RIFF\0\0\0\0WEBP", video(frames=0), b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(ValueError, match=r"not a decodable video|unreadable"):
            whole_video(data)
        with pytest.raises(ValueError, match="not a decodable video"):
            ShownVideo(data)


def test_real_videos(real_data):
    for path in [*sorted((real_data / "cuts").iterdir()), *sorted((real_data / "videos").iterdir())]:
        data = path.read_bytes()
        with av.open(io.BytesIO(data)) as container:
            assert len(ShownVideo(data)) == sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("delay", [10, 20, 50])
def test_a_fast_gif_has_the_same_times_in_shards(delay):
    """Browsers and the reader of evaluations take a delay of a hundredth of a second for none."""
    frames, buffer = [Image.fromarray(picture(i)) for i in range(9)], io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=[delay] * 5 + [100] * 4)
    shown, shard = ShownVideo(buffer.getvalue()), convert(buffer.getvalue(), VideoShards())
    times = shard.metadata.get("times") or [i / shard.metadata["fps"] for i in range(9)]
    assert times == pytest.approx(shown.times, abs=0.001)


def test_the_still_picture_of_an_animated_png_is_no_frame():
    frames, buffer = [Image.fromarray(picture(i)) for i in range(3)], io.BytesIO()
    frames[2].save(buffer, "PNG", save_all=True, default_image=True, append_images=frames[:2], duration=100)
    shown = ShownVideo(buffer.getvalue())
    assert shown.times == [0, 0.1]
    assert np.array_equal(shown.frames(), np.stack([picture(0), picture(1)]))


@pytest.mark.parametrize("read", [whole_video, lambda data: convert(data, RULE), lambda data: convert(data, KEPT)])
def test_the_frames_of_a_video_do_not_wait_for_the_collector(read):
    """A frame that refers to itself would stay, megabytes each, until Python's collector comes."""
    data = brighter()
    read(data)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        read(data)
        gc.collect()
        left = [max(found.width, found.height) for found in gc.garbage if isinstance(found, av.VideoFrame)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert all(side <= 8 for side in left), "a corner of the first one is asked how it is placed"


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 9), (720, 480)])
def test_a_frame_of_any_format_and_size_has_a_placing(size):
    """DV's colours are four pixels wide; a corner of less than that has none."""
    for form in ("yuv420p", "yuv411p", "yuv410p", "yuv420p10le", "gbrap", "pal8", "monob", "nv12", "p010le"):
        assert not any(placing(av.VideoFrame(*size, form)))
