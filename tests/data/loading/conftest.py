"""The small artifacts that the tests of this folder read."""

import pytest
from small_sources import CLIPS, N, jpeg, scene, write_embeddings, write_tar

from mav.data.shards import json_bytes
from mav.data.videos.video_io import encode_mp4
from mav.storage import Folder
from mav.world.drawing import draw_clip


@pytest.fixture
def images(tmp_path):
    """Two shards of images, and embeddings of all but one of them: row i's embeddings are filled with i."""
    images, embeds = Folder(str(tmp_path / "images")), Folder(str(tmp_path / "embeds"))
    for shard, rows in (("00000-00000", range(4)), ("00000-00001", range(4, N + 1))):
        keys = {i: f"{shard.replace('-', '')}{i:05d}" for i in rows}
        metadata = {"punsafe": 0.5, "pwatermark": None}
        samples = {
            keys[i]: {"jpg": jpeg(i), "json": json_bytes(metadata), "txt": f"caption {i}".encode()} for i in rows
        }
        write_tar(images, f"{shard}.tar", samples)
        kept = [i for i in rows if i != N]
        write_embeddings(embeds, shard, [keys[i] for i in kept], kept, 3)
    return images, embeds


@pytest.fixture
def shards(tmp_path):
    folder = Folder(str(tmp_path / "clips"))
    metadata = json_bytes({"fps": 24.0, "frames": 24})
    write_tar(
        folder,
        "00000.tar",
        {f"{i:010d}": {"mp4": encode_mp4(draw_clip(scene(i), 32, 24, 24), 24), "json": metadata} for i in range(CLIPS)},
    )
    return folder
