"""Bad input reaches the user as one sentence, through the real stages on a real Ray."""

import dataclasses
import io
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.cli.options import require_writing
from flows.engine.build import build
from flows.engine.run import Run
from flows.engine.store import Store
from flows.make_a_video import make_a_video
from flows.services.ports import reserve_port
from flows.services.terminal import Terminal
from mav.errors import UserError
from mav.recipes import ImageMetadata, Recipe, VideoShards, World
from mav.storage import MANIFEST

WORLD = World(images=60, clips=4, evaluation_clips=4, size=32, clip_frames=8)


class Runner:
    """Builds single stages of a recipe in this process."""

    def __init__(self, recipe: Recipe, runs: Path, services: ExitStack) -> None:
        self.plan, self.store = make_a_video(recipe), Store(str(runs))
        self.run = Run(recipe, self.store, Terminal(), services)

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
    return dataclasses.replace(small_recipe, world=dataclasses.replace(WORLD, port=reserve_port()))


def table(**columns: list[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("stage", "data", "words"),
    [
        ("image-metadata", table(link=["http://x"], alt=["a cat"]), ["link", "URL"]),
        ("image-metadata", b"URL,TEXT\nhttp://x,a cat\n", []),
        ("video-shards", b"", []),
        ("video-shards", b"videoid,name,page_idx,page_dir,duration,contentUrl\n", []),
        ("video-shards", b"who,knows\n1,2\n", []),
    ],
    ids=["other columns", "not parquet", "empty", "no clips", "foreign"],
)
def test_a_list_that_is_none_is_named(
    stage: str, data: bytes, words: list[str], small_recipe: Recipe, tmp_path: Path, services: ExitStack
) -> None:
    file = tmp_path / ("part.parquet" if stage == "image-metadata" else "clips.csv")
    file.write_bytes(data)
    sections = {
        "image_metadata": ImageMetadata(sources=(str(file),)),
        "video_shards": VideoShards(sources=(str(file),)),
    }
    name = stage.replace("-", "_")
    sentence = Runner(dataclasses.replace(small_recipe, **{name: sections[name]}), tmp_path / "runs", services).error(
        stage
    )
    assert all(word in sentence for word in [str(file), *words])


@pytest.mark.parametrize("place", ["/proc/runs", "http://127.0.0.1/runs"])
def test_runs_that_cannot_be_written_are_told_before_prefect_and_ray_start(place: str) -> None:
    with pytest.raises(UserError, match=rf"--runs {place} cannot be written \(.+\): name a folder or an s3:// address"):
        require_writing(Store(place))


def test_runs_that_can_be_written_keep_nothing_of_the_trial(tmp_path: Path) -> None:
    require_writing(Store(str(tmp_path / "runs")))
    assert list(tmp_path.rglob("*.tmp-*")) == [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_port_in_use(world_recipe: Recipe, tmp_path: Path, services: ExitStack) -> None:
    assert world_recipe.world is not None
    runner = Runner(world_recipe, tmp_path / "runs", services)
    runner("demo-world", "image-metadata")
    with socket.create_server(("127.0.0.1", world_recipe.world.port)):
        sentence = runner.error("image-download")
    assert str(world_recipe.world.port) in sentence
    assert "world.port" in sentence


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
