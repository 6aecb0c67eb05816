"""A user's videos as files: nothing is written over, a GIF lasts as long as its mp4, and both play before they end."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from small_videos import frames

from mav.data.videos.index_first import index_first
from mav.data.videos.video_io import encode_mp4, read_frames
from mav.generation.outputs import encode_gif, find_output, write_output


def made(out: Path, title: str, seed: int = 0, **description: object) -> Path:
    output = find_output(out, title, seed, {"prompt": title, "seed": seed, **description})
    if not output.done:
        write_output(output, frames(seed, 4, 16), 8)
    return output.path


def test_no_video_is_written_over(tmp_path):
    titles = ["a cat", "A cat!", "\U0001f408", "\U0001f415", "../..", "\u732b" * 200, "a cat"]
    paths = [made(tmp_path, title) for title in titles]
    assert len(set(paths[:-1])) == len(paths) - 1, "different prompts, different files"
    assert paths[-1] == paths[0], "the same video is not made twice"
    assert {path.parent for path in paths} == {tmp_path}
    other = made(tmp_path, "a cat", steps=50)
    assert other not in paths
    assert json.loads(other.with_suffix(".json").read_text()) == {"prompt": "a cat", "seed": 0, "steps": 50}
    for suffix in (".mp4", ".gif", ".json"):
        (tmp_path / f"my{suffix[1:]}-0{suffix}").write_text("{}")
        assert made(tmp_path, f"my{suffix[1:]}").stem == f"my{suffix[1:]}-0-2"
        assert (tmp_path / f"my{suffix[1:]}-0{suffix}").read_text() == "{}"


def test_what_a_stopped_command_left_is_made_again_in_its_place(tmp_path):
    path = made(tmp_path, "a cat")
    path.unlink()
    assert made(tmp_path, "a cat") == path
    assert path.exists()
    path.with_suffix(".gif").write_bytes(b"")  # a disk that filled, or a power cut
    assert made(tmp_path, "a cat") == path
    assert path.with_suffix(".gif").stat().st_size > 0


@pytest.mark.parametrize("fps", [1, 8, 12, 23.976, 24, 30, 40, 48, 50, 60, 66, 100, 240])
@pytest.mark.parametrize("count", [1, 2, 7, 76])
def test_a_gif_lasts_as_long_as_the_mp4(fps, count):
    gif, delays = Image.open(io.BytesIO(encode_gif(frames(0, count, 8), fps))), []
    for number in range(getattr(gif, "n_frames", 1)):
        gif.seek(number)
        delays.append(gif.info["duration"])
    assert all(delay >= 20 for delay in delays), "a browser makes a tenth of a second of a shorter delay"
    assert abs(sum(delays) / 1000 - count / fps) <= max(0.02, 0.005 + 1 / fps * (count == 1))


def test_the_index_comes_first_and_the_frames_stay(tmp_path):
    data = encode_mp4(frames(3, 12, 32), 16)
    moved = index_first(data)
    assert data.index(b"moov") > data.index(b"mdat")
    assert moved.index(b"moov") < moved.index(b"mdat")
    assert np.array_equal(read_frames(moved), read_frames(data))
    assert len(moved) == len(data)
    assert index_first(moved) == moved
    with av.open(io.BytesIO(moved)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12
    for other in (b"", b"no video", data[:50]):
        assert index_first(other) == other
