import numpy as np
import pytest

from mav.data.videos.video_io import encode_mp4, open_video, read_frames
from mav.world.drawing import PALETTE, SHAPES, draw_clip, random_scene


def clip(frames=12, size=32, seed=0):
    return draw_clip(random_scene(np.random.default_rng(seed), tuple(PALETTE), SHAPES), size, frames, 24)


def test_what_goes_in_comes_out(tmp_path):
    frames = clip()
    target = tmp_path / "a.mp4"
    data = encode_mp4(frames, 24)
    target.write_bytes(data)
    for source in (data, str(target)):
        back = read_frames(source)
        assert back.shape == frames.shape
        assert np.abs(back.astype(int) - frames).mean() < 6
    assert (read_frames(data, [5, 1, 1]) == read_frames(data)[[5, 1, 1]]).all()
    assert open_video(data).get_avg_fps() == 24


def test_same_frames_same_bytes_whatever_memory_held():
    clips = [clip(seed=seed) for seed in range(12)]
    first = [encode_mp4(frames, 24) for frames in clips]
    for seed in range(3):
        np.random.default_rng(seed).bytes(1 << 20)
        assert [encode_mp4(frames, 24) for frames in clips[::-1]][::-1] == first


def test_odd_sizes_are_padded():
    assert read_frames(encode_mp4(np.zeros((3, 15, 17, 3), np.uint8), 10)).shape == (3, 16, 18, 3)


@pytest.mark.parametrize(
    "bad", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.float32)]
)
def test_wrong_frames_are_refused(bad):
    with pytest.raises(ValueError, match="uint8"):
        encode_mp4(bad, 24)


def test_bad_videos_raise_quietly(tmp_path, capfd):
    good = encode_mp4(clip(), 24)
    for data in (b"", b"<html>403</html>", bytes(4000), good[:300], str(tmp_path / "none.mp4")):
        with pytest.raises(ValueError, match="not a decodable video"):
            open_video(data)
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_frames(good, [99])
    assert capfd.readouterr().err == ""
