"""Training on parts of clips: windows inside of shots, pictures inside of borders, as the scores of the clips say."""

import base64
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_sources import clips, equal

from filters.clips import Clips, SelectWork
from mav.data.loading.loaders import ClipSource
from mav.data.shards import VIDEO_ROWS, TarWriter, json_bytes, write_rows
from mav.data.videos.scores import SCORES
from mav.data.videos.transcode import convert
from mav.data.videos.video_io import encode_mp4, fit
from mav.recipes import VideoSelect, VideoShards, World
from mav.storage import Artifact, Folder
from mav.storage.ledger import write_ledger
from mav.world.cast import ShapeCast
from mav.world.planted import Planted, plant

WORLD, SIZE = World(size=64, clip_frames=48, clip_fps=24), 32
SPLIT = VideoSelect(shot_seconds=0.4, crop_borders=0.4)


@pytest.fixture(scope="module")
def planted() -> list[Planted]:
    rng = np.random.default_rng(6)
    return [plant(kind, WORLD, ShapeCast(WORLD), rng) for kind in ("cut", "dissolve", "border", "cut", "fade")]


@pytest.fixture(scope="module")
def shards(planted: list[Planted], tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder, ledger = Folder(str(tmp_path_factory.mktemp("shards"))), []
    with folder.create("00000.tar") as file, TarWriter(file) as tar:
        for number, clip in enumerate(planted):
            video = convert(encode_mp4(clip.frames, WORLD.clip_fps), VideoShards(short_side=64))
            key = f"{number:010d}"
            tar.add(key, {"mp4": video.data, "json": json_bytes(video.metadata)})
            about = {field: video.metadata[field] for field in ("fps", "frames")}
            ledger.append({"key": key, "videoid": f"v{number}", "status": "ok", **about, **video.scores})
    write_rows(folder, "00000.parquet", VIDEO_ROWS | SCORES, ledger)
    return folder


def source(shards: Folder, rule: VideoSelect, url: str) -> ClipSource:
    """What training reads of these shards after `video-select`."""
    selection = Folder(url)
    places = SelectWork(Clips(shards, rule), None, selection)("00000").places or b""
    marker = {"shard": "00000", "counts": {}, "files": {}, "places": base64.b64encode(places).decode()}
    write_ledger(selection, [[marker]])
    about = {"stage": "video-select", "version": 2, "fingerprint": "f", "recipe": "r", "config": {}, "inputs": {}}
    Artifact.publish(selection, **about)
    return clips(shards, size=SIZE, selection=selection)


def test_no_window_crosses_a_cut_or_shows_a_frame_of_a_transition(
    planted: list[Planted], shards: Folder, tmp_path: Path
) -> None:
    found = source(shards, dataclasses.replace(SPLIT, crop_borders=0.0), str(tmp_path / "a"))
    known = [fit(clip.frames, SIZE).transpose(0, 3, 1, 2).astype(int) for clip in planted]
    every = np.concatenate(known)
    seen: set[tuple[int, int]] = set()
    for window in found.batch(0, 60)["pixels"].numpy().astype(int):
        places = [int(np.abs(every - frame).mean(axis=(1, 2, 3)).argmin()) for frame in window]
        (number,) = {place // WORLD.clip_frames for place in places}
        frames = [place % WORLD.clip_frames for place in places]
        ((first, last),) = planted[number].changes
        assert max(frames) <= max(first, last - 1) or min(frames) >= first, (planted[number].kind, first, last, frames)
        assert not any(first + 1 < frame < last - 1 for frame in frames), (planted[number].kind, first, last, frames)
        seen.add((number, int(frames[0] >= last)))
    assert {number for number, _ in seen} == {0, 1, 3, 4}
    assert {(0, 0), (0, 1), (3, 0), (3, 1)} <= seen, "both shots of a cut clip are trained on"


def test_pictures_are_those_within_the_borders(planted: list[Planted], shards: Folder, tmp_path: Path) -> None:
    alone = source(shards, dataclasses.replace(SPLIT, shot_seconds=0.0), str(tmp_path / "a"))
    assert len(alone) == 1, "the clips with cuts are dropped, as without the option"
    pixels = alone.batch(0, 1)["pixels"].numpy()
    picture = planted[2].frames[:, 8:-8] if not planted[2].frames[:, :8].any() else planted[2].frames[:, :, 8:-8]
    assert planted[2].frames[:, :7].max() == 0 or planted[2].frames[:, :, :7].max() == 0
    assert min(pixels.mean(axis=(0, 1, 2, 3)).min(), pixels.mean(axis=(0, 1, 2, 4)).min()) > 0.6 * picture.mean()


def test_samples_of_parts_have_one_order_which_a_resumed_training_goes_on_with(shards: Folder, tmp_path: Path) -> None:
    first, again = (source(shards, SPLIT, str(tmp_path / name)) for name in "ab")
    assert equal(first.batch(7, 9), again.batch(7, 9))
    held = first.hold_out(2, 100)
    assert held["pixels"].shape[0] == 2
    assert len(first) == len(again) - 2
