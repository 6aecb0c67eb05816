"""Bad input reaches the user as one sentence, through the real stages on a real Ray."""

import dataclasses
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.build import build
from flows.console import Screen
from flows.make_a_video import make_a_video
from flows.runtime import free_port
from flows.stage import Run, Store
from mav.artifact import MANIFEST
from mav.errors import UserError
from mav.recipe import ImageMetadata, Recipe, VideoShards, World

WORLD = World(images=60, clips=4, evaluation_clips=4, size=32, clip_frames=8)


class Runner:
    """Builds single stages of a recipe in this process."""

    def __init__(self, recipe: Recipe, runs: Path, services: ExitStack) -> None:
        self.plan, self.store = make_a_video(recipe), Store(str(runs))
        self.run = Run(recipe, self.store, Screen(), services)

    def __call__(self, *stages: str) -> None:
        for name in stages:
            build(self.plan.node(name), self.run)

    def error(self, stage: str) -> str:
        """The sentence a stage fails with; nothing half-made stays."""
        with pytest.raises(UserError) as caught:
            self(stage)
        assert not self.store.artifact(self.plan.node(stage)).exists(MANIFEST)
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def services(ray_session: None) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def world_recipe(small_recipe: Recipe) -> Recipe:
    return dataclasses.replace(small_recipe, world=dataclasses.replace(WORLD, port=free_port()))


def test_a_table_without_the_columns(small_recipe: Recipe, tmp_path: Path, services: ExitStack) -> None:
    table = tmp_path / "part.parquet"
    pq.write_table(pa.table({"link": ["http://x"], "alt": ["a cat"]}), table)
    recipe = dataclasses.replace(small_recipe, image_metadata=ImageMetadata(sources=(str(table),)))
    sentence = Runner(recipe, tmp_path / "runs", services).error("image-metadata")
    assert str(table) in sentence
    assert "link" in sentence
    assert "URL" in sentence


def test_a_table_that_is_not_parquet(small_recipe: Recipe, tmp_path: Path, services: ExitStack) -> None:
    table = tmp_path / "part.parquet"
    table.write_bytes(b"URL,TEXT\nhttp://x,a cat\n")
    recipe = dataclasses.replace(small_recipe, image_metadata=ImageMetadata(sources=(str(table),)))
    assert str(table) in Runner(recipe, tmp_path / "runs", services).error("image-metadata")


@pytest.mark.parametrize("text", ["", "videoid,name,page_idx,page_dir,duration,contentUrl\n", "who,knows\n1,2\n"])
def test_an_empty_or_foreign_list_of_videos(text: str, small_recipe: Recipe, tmp_path: Path, services: ExitStack) -> None:
    clips = tmp_path / "clips.csv"
    clips.write_text(text)
    recipe = dataclasses.replace(small_recipe, video_shards=VideoShards(sources=(str(clips),)))
    assert str(clips) in Runner(recipe, tmp_path / "runs", services).error("video-shards")


def test_a_port_in_use(world_recipe: Recipe, tmp_path: Path, services: ExitStack) -> None:
    assert world_recipe.world is not None
    runner = Runner(world_recipe, tmp_path / "runs", services)
    runner("demo-world", "image-metadata")
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", world_recipe.world.port))
        squatter.listen()
        sentence = runner.error("image-download")
    assert str(world_recipe.world.port) in sentence
    assert "world.port" in sentence


def test_a_corrupted_tar(world_recipe: Recipe, tmp_path: Path, services: ExitStack) -> None:
    from mav.data.embed import shard_names
    from mav.data.loaders import ClipSource

    runner = Runner(world_recipe, tmp_path / "runs", services)
    runner("demo-world", "image-metadata", "image-download", "video-shards")
    clips = runner.store.artifact(runner.plan.node("video-shards"))
    tar = Path(clips.path("00000.tar"))
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=str(tar)):
        ClipSource(clips, 4, 16, 0, world_recipe.train_decoder_video.fps, 8).batch(0, 4)
    images = runner.store.artifact(runner.plan.node("image-download"))
    assert shard_names(images)


def test_a_full_disk(world_recipe: Recipe, tmp_path: Path, services: ExitStack) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], check=False).returncode
    ):
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        sentence = Runner(world_recipe, disk / "runs", services).error("demo-world")
        assert "no space is left" in sentence
        assert str(disk) in sentence
        assert not list(disk.rglob(".tmp-*"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
