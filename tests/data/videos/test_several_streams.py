"""A video of several video streams: all readers take the same one, the one that players show."""

import dataclasses
import tempfile

import av
import numpy as np
import pytest
from av.stream import Disposition
from odd_videos import FRAMES, RATE, picture, video

from mav.data.videos.probe import ClipError
from mav.data.videos.shown import ShownVideo
from mav.data.videos.transcode import convert
from mav.data.videos.video_io import read_frames
from mav.recipes import VideoShards

RULE = VideoShards(short_side=48, keyframe_interval=4)
SHOWN = picture(0)  # every frame of the stream that is shown; the others are black


def several(container, *streams):
    """A video of streams (size, codec, frames, disposition); the one of SHOWN's size shows it."""
    with tempfile.NamedTemporaryFile() as buffer, av.open(buffer.name, "w", format=container) as out:
        made = []
        for size, codec, _, disposition in streams:
            stream = out.add_stream(codec, rate=RATE)
            stream.width, stream.height = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = disposition
            made.append(stream)
        for number in range(FRAMES):
            for stream, (size, _, frames, _) in zip(made, streams, strict=True):
                if number < frames:
                    pixels = SHOWN if size == SHOWN.shape[1::-1] else np.zeros((*size[::-1], 3), np.uint8)
                    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=stream.pix_fmt)
                    frame.pts = number
                    out.mux(stream.encode(frame))
        for stream in made:
            out.mux(stream.encode())
        out.close()
        return buffer.read()


SIZE, SMALL, LARGE = (64, 48), (32, 24), (128, 96)
NONE, DEFAULT, COVER = Disposition(0), Disposition.default, Disposition.attached_pic
FILES = {
    "a preview first": ("mp4", (SMALL, "libx264", FRAMES, DEFAULT), (SIZE, "libx264", FRAMES, DEFAULT)),
    "a preview last": ("mp4", (SIZE, "libx264", FRAMES, DEFAULT), (SMALL, "libx264", FRAMES, DEFAULT)),
    "a preview in a transport stream": ("mpegts", (SMALL, "libx264", FRAMES, NONE), (SIZE, "libx264", FRAMES, NONE)),
    "a larger one that is not the default": (
        "matroska", (LARGE, "libx264", FRAMES, NONE), (SIZE, "libx264", FRAMES, DEFAULT),
    ),
    "a large cover that is not marked": ("mov", (LARGE, "mjpeg", 1, DEFAULT), (SIZE, "libx264", FRAMES, DEFAULT)),
    "a cover first": ("mp4", (LARGE, "mjpeg", 1, COVER), (SIZE, "libx264", FRAMES, DEFAULT)),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_reader_takes_the_stream_that_is_shown(name):
    data = several(*FILES[name])
    clip, shown = convert(data, RULE), ShownVideo(data)
    assert (clip.metadata["width"], clip.metadata["height"], clip.metadata["frames"]) == (*SIZE, FRAMES)
    seen = [read_frames(clip.data), shown.frames()]
    as_it_is = dataclasses.replace(RULE, reencode=False)
    if name == "a cover first":
        seen.append(read_frames(convert(data, as_it_is).data))
    else:  # training's reader may take another stream
        with pytest.raises(ClipError, match="needs_reencoding"):
            convert(data, as_it_is)
    for frames in seen:
        assert frames.shape == (FRAMES, *SHOWN.shape)
        assert np.abs(frames[:, 16:44, 4:28, 0].mean() - 200) < 25


def test_a_video_with_a_marked_cover_is_kept():
    data = video(cover=True)
    assert convert(data, dataclasses.replace(RULE, reencode=False)).data == data
