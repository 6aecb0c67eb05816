"""Small files that would take hours or gigabytes: sizes and numbers of frames are checked before decoding."""

import io
import struct

import pytest
from odd_videos import video
from PIL import Image

from mav.data.videos import probe, shown, transcode
from mav.data.videos.index_first import index_first, longest_track
from mav.data.videos.probe import ClipError
from mav.data.videos.shown import ShownVideo
from mav.data.videos.transcode import convert
from mav.recipes import VideoShards

RULE = VideoShards(short_side=32)


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def animation(form: str, frames: int = 12, size: int = 16) -> bytes:
    buffer = io.BytesIO()
    pictures = [Image.new("RGB", (size, size), (9 * i, 0, 0)) for i in range(frames)]
    pictures[0].save(buffer, form, save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


@pytest.fixture
def undecoded(monkeypatch):
    """Fails a test in which a frame is asked for."""
    monkeypatch.setattr(probe.TimedFrames, "__iter__", lambda _: pytest.fail("decoded"))


def test_too_large_frames_are_refused_before_one_is_decoded(undecoded, monkeypatch):
    large = video(size=(7696, 4320), frames=1, options={"preset": "ultrafast"})
    assert len(large) < 200_000
    with pytest.raises(ClipError, match="too_many_pixels"):
        convert(large, RULE)
    with pytest.raises(ValueError, match="too many pixels"):
        ShownVideo(large)
    monkeypatch.setattr(probe, "MAX_PIXELS", 100)
    for form in ("GIF", "WEBP", "PNG"):
        with pytest.raises(ValueError, match="too many pixels"):
            ShownVideo(animation(form))


def test_frames_that_grow_on_the_way_are_not_decoded(monkeypatch):
    """Two streams of MPEG-1 one behind the other: the header says the size of the first."""
    data = video("mpeg1video", "mpeg1video", rate=25) + video("mpeg1video", "mpeg1video", rate=25, size=(256, 192))
    assert convert(data, RULE).metadata["frames"] > 12
    monkeypatch.setattr(probe, "MAX_PIXELS", 64 * 48)
    with pytest.raises(ClipError, match=r"undecodable|truncated"):
        convert(data, RULE)


@pytest.mark.parametrize("form", ["mp4", "GIF", "WEBP", "PNG"])
def test_no_more_frames_are_shown_than_any_video_to_judge_has(form, monkeypatch):
    data = video() if form == "mp4" else animation(form)
    monkeypatch.setattr(shown, "MOST_SHOWN", 12 * probe.LEAST_PIXELS)
    assert len(ShownVideo(data)) == 12
    monkeypatch.setattr(shown, "MOST_SHOWN", 11 * probe.LEAST_PIXELS)
    monkeypatch.setattr(shown.ShownVideo, "_pixels", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="too many frames"):
        ShownVideo(data)


def test_an_index_of_too_many_frames_is_refused_before_one_is_decoded(undecoded, monkeypatch):
    monkeypatch.setattr(transcode.TimedFrames.__init__, "__kwdefaults__", None)
    *others, _ = transcode.TimedFrames.__init__.__defaults__
    monkeypatch.setattr(transcode.TimedFrames.__init__, "__defaults__", (*others, 11 * probe.LEAST_PIXELS))
    with pytest.raises(ClipError, match="too_many_frames"):
        convert(video(), RULE)


def test_a_table_of_billions_of_frames_is_refused_before_ffmpeg_makes_room_for_it():
    data = bytearray(video())
    at = data.index(b"stsz") + 4
    data[at + 4 : at + 12] = struct.pack(">II", 16, 1 << 31)
    assert longest_track(bytes(data)) == 1 << 31
    with pytest.raises(ClipError, match="too_many_frames"):
        convert(bytes(data), RULE)
    with pytest.raises(ValueError, match="too many frames"):
        ShownVideo(bytes(data))


def test_samples_are_counted_in_every_form_of_an_index():
    stsz = box(b"stsz", bytes(4), struct.pack(">II", 2, 10**9))
    ticks = box(b"stts", bytes(4), struct.pack(">III", 1, 10**9, 1))
    for kind, number in ((b"soun", 0), (b"vide", 10**9)):  # plain sound has a sample for each amplitude
        tables = box(b"minf", box(b"stbl", ticks, stsz))
        handler = box(b"hdlr", bytes(8), kind, bytes(12))
        assert longest_track(box(b"moov", box(b"trak", box(b"mdia", handler, tables)))) == number
    fragment = box(b"moof", box(b"traf", box(b"trun", bytes(4), struct.pack(">I", 3_000_000))))
    assert longest_track(fragment * 2) == 6_000_000
    nested = b""
    for _ in range(3000):
        nested = box(b"moov", nested)
    assert longest_track(nested) == 0
    assert index_first(box(b"mdat") + nested)
    torn = box(b"mdat") + box(b"moov", box(b"stbl", box(b"stco", bytes(4), b"\xff" * 4)))
    assert index_first(torn) == torn


def test_frames_closer_than_any_rate_end_the_decoding_early():
    many = video(size=(16, 16), frames=1400, times=[i / 1000 for i in range(1400)], options={"preset": "ultrafast"})
    with pytest.raises(ClipError, match="wild_frame_rate"):
        convert(many, RULE)
