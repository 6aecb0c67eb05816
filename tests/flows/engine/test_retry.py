"""A download stage on a real Ray and a loopback web that is down for some, then mends: only what failed in passing is
tried again."""

import dataclasses
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback import Quiet, served
from PIL import Image

from flows import images, videos
from flows.engine.build import build
from flows.engine.lease import exclusive
from flows.engine.retry import Retried, joined_counts, retry_failed
from flows.engine.run import Run
from flows.engine.stage import Graph, Node
from flows.engine.store import Store
from flows.services.terminal import Terminal
from mav.data.shards import read_tar, shard_names
from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.recipes import ImageDownload, ImageMetadata, Recipe, VideoShards
from mav.storage.counts import unbalanced

ROWS = 40


class Web(Quiet):
    """0 to 9 are away until they are not, 10 to 14 are gone, the others are there."""

    away: frozenset[int] = frozenset()
    asked: list[int] = []  # noqa: RUF012 (one list for all requests on purpose)

    def get(self) -> None:
        number = int(Path(self.path).stem)
        Web.asked.append(number)
        status = 503 if number in Web.away else 404 if 10 <= number < 15 else 200
        self.answer(status, video(number) if self.path.endswith(".mp4") else picture(number), Retry_After="0")


def picture(number: int) -> bytes:
    body = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), number * 6, np.uint8)).save(body, "JPEG")
    return body.getvalue()


def video(number: int) -> bytes:
    return encode_mp4(np.full((8, 16, 16, 3), number * 6, np.uint8), 8)


@pytest.fixture
def downloaded(small_recipe: Recipe, tmp_path: Path, ray_session: None) -> Iterator[tuple[Node, Run]]:
    Web.away, Web.asked = frozenset(range(10)), []
    with served(Web) as base, ExitStack() as services:
        rows = {"url": [f"http://{base}/{i}.jpg" for i in range(ROWS)], "caption": [f"number {i}" for i in range(ROWS)]}
        pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
        recipe = dataclasses.replace(
            small_recipe,
            image_metadata=ImageMetadata(sources=(str(tmp_path / "rows.parquet"),), rows_per_shard=20),
            image_download=ImageDownload(image_size=16, allow_addresses=(base,), success_floor=0.2),
        )
        plan = Graph(recipe)
        node = images.image_download(plan, images.image_metadata(plan))
        run = Run(recipe, Store(str(tmp_path / "runs")), Terminal(), services)
        for each in plan.nodes.values():
            build(each, run)
        yield node, run


def test_passes_recover_what_can_be(downloaded: tuple[Node, Run]) -> None:
    node, run = downloaded
    first = run.store.find(node)
    assert first is not None
    assert first.manifest.counts["failed"] == {"http_404": 5, "http_503": 10}

    assert retry_failed(node, run) == Retried(10, 0, {"http_503": 10}), "nothing comes, nothing changes"
    unchanged = run.store.find(node)
    assert unchanged is not None
    assert unchanged.manifest == first.manifest

    Web.away, Web.asked = frozenset({3, 4}), []
    assert retry_failed(node, run) == Retried(10, 8, {"http_503": 2})
    assert set(Web.asked) == set(range(10)), "what came before and what is gone is not asked for"
    second = run.store.find(node)
    assert second is not None
    assert list(second.problems()) == []
    assert not list(unbalanced(second.manifest.counts))
    assert second.manifest.counts["failed"] == {"http_404": 5, "http_503": 2}
    assert (
        second.manifest.counts["rows_in"],
        second.manifest.counts["rows_out"],
        second.manifest.counts["recovered"],
    ) == (40, 33, 8)
    assert second.manifest.fingerprint == first.manifest.fingerprint
    told, before = dict(second.entries()), dict(first.entries())
    assert {name: told[name] for name in before} == before, "what the first pass brought is as it was"
    assert len(told) > len(before) + 1

    Web.away = frozenset()
    assert retry_failed(node, run) == Retried(2, 2, {})
    assert retry_failed(node, run) == Retried(0, 0, {})
    third = run.store.find(node)
    assert third is not None
    assert third.manifest.counts["failed"] == {"http_404": 5}
    assert list(third.problems()) == []
    assert shard_names(third.folder) == ["00000-00000", "00000-00000-retry1", "00000-00000-retry2", "00000-00001"]
    keys = [key for name in third.files(suffix=".tar") for key, _ in read_tar(third.folder, name)]
    assert len(keys) == len(set(keys)) == 35
    captions = {
        files["txt"].decode() for name in third.files(suffix=".tar") for _, files in read_tar(third.folder, name)
    }
    assert captions == {f"number {i}" for i in range(ROWS) if not 10 <= i < 15}


def test_shards_of_a_pass_that_was_never_told_are_cleared(downloaded: tuple[Node, Run]) -> None:
    node, run = downloaded
    Web.away = frozenset()
    folder = run.store.artifact(node)
    untold = ["00000-00001-retry7.tar", "shards-retry7.parquet"]
    for name in untold:
        folder.write_bytes(name, b"half a file")
    assert retry_failed(node, run).recovered == 10
    artifact = run.store.find(node)
    assert artifact is not None
    assert list(artifact.problems()) == []
    assert not any(folder.exists(name) for name in untold)


def test_a_pass_that_another_process_makes_is_left_alone(downloaded: tuple[Node, Run]) -> None:
    """Its shards lie in the artifact before the manifest names them: who comes second must not clear them away."""
    node, run = downloaded
    joining = run.store.artifact(node)
    joining.write_bytes("00000-00001-retry1.tar", b"half a file")
    with (
        exclusive(run.store.work(node), node.name),
        pytest.raises(UserError, match="Another run is building image-download"),
    ):
        retry_failed(node, run)
    assert joining.exists("00000-00001-retry1.tar")


def test_other_stages_and_unfinished_ones_are_refused(downloaded: tuple[Node, Run]) -> None:
    node, run = downloaded
    with pytest.raises(UserError, match="leave --failed out"):
        retry_failed(node.inputs[0], run)
    run.store.artifact(node).remove()
    with pytest.raises(UserError, match="--until image-download"):
        retry_failed(node, run)


def test_clips_are_tried_again_too(small_recipe: Recipe, tmp_path: Path, ray_session: None) -> None:
    Web.away, Web.asked = frozenset({2, 5, 7}), []
    with served(Web) as base, ExitStack() as services:
        rows = [f"{i},http://{base}/{i}.mp4,PT00H00M01S,a,not read" for i in range(12)]
        (tmp_path / "clips.csv").write_text("\n".join(["videoid,contentUrl,duration,page_dir,name", *rows]))
        rule = VideoShards(
            sources=(str(tmp_path / "clips.csv"),),
            short_side=16,
            clips_per_shard=6,
            allow_addresses=(base,),
            success_floor=0.2,
        )
        recipe = dataclasses.replace(small_recipe, video_shards=rule)
        plan = Graph(recipe)
        node = videos.video_shards(plan)
        run = Run(recipe, Store(str(tmp_path / "runs")), Terminal(), services)
        first = build(node, run)
        assert first.manifest.counts["failed"] == {"http_404": 2, "http_503": 3}

        Web.away, Web.asked = frozenset({7}), []
        assert retry_failed(node, run) == Retried(3, 2, {"http_503": 1})
    assert set(Web.asked) == {2, 5, 7}
    artifact = run.store.find(node)
    assert artifact is not None
    assert list(artifact.problems()) == []
    assert artifact.manifest.counts["failed"] == {"http_404": 2, "http_503": 1}
    assert artifact.manifest.counts["frames"] == 8 * artifact.manifest.counts["rows_out"] == 8 * 9
    samples = {
        json.loads(files["json"])["videoid"]
        for name in artifact.files(suffix=".tar")
        for _, files in read_tar(artifact.folder, name)
    }
    assert samples == {str(i) for i in range(12)} - {"7", "10", "11"}


def test_joined_counts_balance() -> None:
    before = {
        "rows_in": 10,
        "rows_out": 3,
        "dropped": {"opted_out": 1},
        "failed": {"dns": 4, "http_404": 2},
        "bytes": 30,
    }
    retry = {
        "rows_in": 4,
        "rows_out": 2,
        "dropped": {"opted_out": 1},
        "failed": {"timeout": 1},
        "bytes": 20,
        "retried": {"dns": 4},
    }
    after = joined_counts(before, retry)
    assert after == {"rows_in": 10, "rows_out": 5, "dropped": {"opted_out": 2}, "failed": {"http_404": 2, "timeout": 1},
                     "bytes": 50,
                     "recovered": 2}  # fmt: skip
    assert not list(unbalanced(after))
