import dataclasses
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mav.data.shards import read_tar
from mav.data.videos.clip_list import read_clips, split_lists
from mav.data.videos.transcode import convert
from mav.data.videos.video_io import encode_mp4, fit, open_video, read_frames
from mav.data.videos.video_shards import VideoWork
from mav.recipes import VideoShards, World
from mav.storage import Folder
from mav.storage.counts import add_counts, unbalanced
from mav.world.drawing import PALETTE, SHAPES, draw_clip, random_scene
from mav.world.server import WorldServer
from mav.world.world import draw_world

RULE = VideoShards(short_side=32, clips_per_shard=5, keyframe_interval=4)


def scene_clip(frames=24, size=64, fps=24.0, seed=0) -> bytes:
    scene = random_scene(np.random.default_rng(seed), tuple(PALETTE), SHAPES)
    return encode_mp4(draw_clip(scene, size, frames, fps), fps)


def test_convert_keeps_frames_and_places_key_frames():
    source = scene_clip(frames=21)
    clip = convert(source, RULE)
    video, metadata = clip.data, clip.metadata
    assert metadata == {"fps": 24.0, "frames": 21, "width": 32, "height": 32, "seconds": 0.875}
    reader = open_video(video)
    assert len(reader) == 21
    assert reader.get_key_indices() == list(range(0, 21, 4))
    small = fit(read_frames(source), 32).astype(float)
    assert 10 * np.log10(255**2 / np.mean((read_frames(video) - small) ** 2)) > 25
    assert convert(source, RULE).data == video


def test_sides_stay_even_and_are_never_enlarged():
    wide = np.zeros((10, 50, 91, 3), np.uint8)
    assert convert(encode_mp4(wide, 10), RULE).metadata["width"] == 58
    assert convert(encode_mp4(wide, 10), dataclasses.replace(RULE, short_side=300)).metadata["height"] == 50


def test_long_clips_are_cut():
    assert convert(scene_clip(frames=48), dataclasses.replace(RULE, max_seconds=1.0)).metadata["frames"] == 24


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    section = World(images=16, clips=9, clip_frames=24, evaluation_clips=1)
    root = Folder(str(tmp_path_factory.mktemp("videos")))
    draw_world(section, 0, root)
    return root


def run(work: VideoWork) -> dict:
    work = pickle.loads(pickle.dumps(work))
    return add_counts([work(name).counts for name in work.names()])


def works(world: Folder, tmp_path: Path, port: int, **more) -> VideoWork:
    """Work over the world's list with its port replaced by that of the running server."""
    text = world.read_bytes("webvid/clips.csv").decode().replace(":8787/", f":{port}/")
    (tmp_path / "clips.csv").write_text(text)
    rule = dataclasses.replace(RULE, allow_addresses=(f"127.0.0.1:{port}",), **more)
    return VideoWork(
        tuple(split_lists([str(tmp_path / "clips.csv")], rule.clips_per_shard)), rule, 0, Folder(str(tmp_path / "out"))
    )


def test_world_over_http(world, tmp_path):
    with WorldServer(world.child("site"), 0) as server:
        work = works(world, tmp_path, server.port)
        counts = run(work)
    assert not list(unbalanced(counts))
    assert counts["rows_in"] == 24  # 9 that are good, 10 that are planted
    assert counts["rows_out"] == 19
    assert counts["dropped"] == {"duplicate": 1}
    assert counts["failed"] == {"empty": 1, "error_page": 1, "http_404": 1, "truncated": 1}
    samples = [s for name in work.names() for s in read_tar(work.out, f"{name}.tar")]
    assert [key for key, _ in samples] == sorted(key for key, _ in samples)
    metadata = json.loads(samples[0][1]["json"])
    assert set(metadata) == {"fps", "frames", "width", "height", "seconds", "videoid"}
    assert len(open_video(samples[0][1]["mp4"])) == metadata["frames"] == 24
    assert sorted(os.listdir(tmp_path / "out")) == [
        f"{shard}.{kind}" for shard in work.names() for kind in ("parquet", "tar")
    ]
    assert len(work.names()) == 5


def test_files_instead_of_addresses_and_same_bytes(world, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = works(world, tmp_path / "one", 1, files=world.path("site/videos"))
    two = works(world, tmp_path / "two", 1, files=world.path("site/videos"))
    counts = run(one)
    assert counts == run(two)
    assert counts["failed"] == {"empty": 1, "error_page": 1, "missing_file": 1, "truncated": 1}
    assert [one.out.sha256(n) for n in one.out.names()] == [two.out.sha256(n) for n in two.out.names()]


def test_text_never_meets_motion(world, tmp_path):
    """No caption, no name and no address (stock footage writes its caption there) reaches anything the stage makes."""
    lines = world.read_bytes("webvid/clips.csv").decode().splitlines()
    secret = "unmistakable-caption-of-this-clip"
    rows = [line.rsplit(",", 1)[0].replace(".mp4,", f".mp4?{secret},") + f",{secret}" for line in lines[1:]]
    (tmp_path / "clips.csv").write_text("\n".join([lines[0], *rows]))
    rule = dataclasses.replace(RULE, files=world.path("site/videos"))
    work = VideoWork(tuple(split_lists([str(tmp_path / "clips.csv")], 5)), rule, 0, Folder(str(tmp_path / "out")))
    assert run(work)["rows_out"] == 19
    for name in work.out.names():
        data = work.out.read_bytes(name)
        assert secret.encode() not in data
        assert b"stock footage" not in data
    for name in work.names():
        with work.out.open(f"{name}.parquet") as file:
            assert secret not in str(pq.read_table(file).to_pydict())
    assert secret not in repr(work)


def test_real_clips_under_a_real_header(real_data, tmp_path):
    """The real WebVid rows, their ids standing on real clips: mp4 with sound, XviD avi, 15 to 30 frames a second."""
    names = ("videos/real1.mp4", "videos/real3.mp4", "ucf101/v_ApplyEyeMakeup_g01_c01.avi", "msrvtt/video7010.mp4")
    sources = [real_data / name for name in names]
    rule = dataclasses.replace(RULE, files=str(tmp_path / "files"), max_seconds=2.0, short_side=64)
    work = VideoWork(
        tuple(split_lists([str(real_data / "webvid/webvid_2m_sample.csv")], 50)), rule, 0, Folder(str(tmp_path / "out"))
    )
    listed = list(read_clips(work.parts[0], 0))
    for clip, source in zip(listed, sources, strict=False):
        (tmp_path / "files" / clip.page_dir).mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / "files" / clip.page_dir / f"{clip.videoid}.mp4")
    counts = work("00000").counts
    assert counts["rows_out"] == len(sources)
    assert counts["failed"] == {"missing_file": len(listed) - len(sources)}
    for _, files in read_tar(work.out, "00000.tar"):
        metadata = json.loads(files["json"])
        assert min(metadata["width"], metadata["height"]) == 64
        assert len(open_video(files["mp4"])) == metadata["frames"] >= 2 * 15 - 1
