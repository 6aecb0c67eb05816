"""The clips of the small studies."""

import pytest
from small_videos import frames

from mav.data.videos.video_io import encode_mp4


@pytest.fixture(scope="session")
def clips():
    return [encode_mp4(frames(seed, 6), 8) for seed in range(6)]
