"""The image stages as the graph builds them, on a real Ray: real rows without a network, and duplicates across
tables."""

import dataclasses
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import images
from flows.engine.build import build
from flows.engine.run import Run
from flows.engine.stage import Graph, Node, Outcome
from flows.engine.store import Store
from flows.services.terminal import Terminal
from mav.errors import UserError
from mav.recipes import ImageDownload, ImageMetadata, Recipe, Screening
from mav.storage import Folder
from mav.storage.counts import add_counts


def knows_no_host(host: str, port: int) -> Sequence[str]:
    raise socket.gaierror(-2, "Name or service not known")


def planned(recipe: Recipe, folder: Path, **sections: Any) -> tuple[Node, Node, Run]:
    recipe = dataclasses.replace(recipe, **sections)
    plan = Graph(recipe)
    metadata = images.image_metadata(plan)
    download = images.image_download(plan, metadata)
    return metadata, download, Run(recipe, Store(str(folder / "runs")), Terminal(), ExitStack())


def test_real_rows_without_a_network_fail_below_the_floor_and_are_accounted_for(
    real_data: Path, small_recipe: Recipe, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ImageMetadata(sources=(str(real_data / "laion/laion_1000.parquet"),), rows_per_shard=500)
    rule = ImageDownload(threads=16, shard_floor=0.0)
    metadata, download, run = planned(
        small_recipe, tmp_path, image_metadata=source, image_download=rule, screening=Screening(word_lists=())
    )
    screened = build(metadata, run).manifest.counts
    assert screened["rows_in"] == screened["rows_out"] + sum(screened["dropped"].values()) == 1000

    ordinary = images.download_work
    monkeypatch.setattr(images, "download_work", lambda job: dataclasses.replace(ordinary(job), resolver=knows_no_host))
    kept = screened["rows_out"]
    with pytest.raises(
        UserError,
        match=rf"image-download: only 0 of {kept:,} rows came through, below the floor of 50% .failed: dns {kept:,}",
    ):
        build(download, run)
    assert run.store.state(download, run.recipe.name) == "failed"
    out = run.store.artifact(download)
    ledgers = [pq.read_table(out.path(f"00000-0000{n}.parquet")) for n in range(2)]
    reasons = [reason for ledger in ledgers for reason in ledger.column("reason").to_pylist()]
    assert reasons == ["dns"] * kept
    assert kept + sum(screened["dropped"].values()) == 1000


def test_duplicates_across_tables_are_found_by_the_stage(
    small_recipe: Recipe, tmp_path: Path, ray_session: None
) -> None:
    for number in range(3):
        urls = [f"http://h/{i}.jpg" for i in range(number * 5, number * 5 + 10)]
        pq.write_table(pa.table({"URL": urls, "TEXT": ["a house"] * 10}), tmp_path / f"{number}.parquet")
    counts = {}
    for duplicates in ("part", "all"):
        metadata, _, run = planned(
            small_recipe,
            tmp_path,
            image_metadata=ImageMetadata(sources=(str(tmp_path / "*.parquet"),)),
            screening=Screening(duplicates=duplicates),
        )
        artifact = build(metadata, run)
        counts[duplicates] = artifact.manifest.counts
        tables = [pq.read_table(artifact.folder.path(name)) for name in artifact.files(prefix="shards/")]
        assert sum(map(len, tables)) == counts[duplicates]["rows_out"]
        assert list(artifact.problems()) == []
    assert (counts["part"]["rows_out"], counts["part"]["dropped"]) == (30, {})
    assert (counts["all"]["rows_out"], counts["all"]["dropped"]) == (20, {"duplicate": 10})
    kept = {url for table in tables for url in table.column("url").to_pylist()}
    assert kept == {f"http://h/{i}.jpg" for i in range(20)}
    assert add_counts([counts["all"]])["forms"] == {"URL and TEXT": 30}


def test_pictures_that_all_lack_scores_end_the_stage_with_the_way_out(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: dict[str, Any] = {"rows_in": 7, "rows_out": 0, "dropped": {"unknown_score": 7}}
    monkeypatch.setattr(images, "shard_map", lambda *_, **__: Outcome(counts))
    monkeypatch.setattr("mav.data.shards.shard_names", lambda _: ["00000"])
    folder = Folder(str(tmp_path))
    inputs = {"image-download": folder, "clip": folder}
    job = SimpleNamespace(inputs=inputs, recipe=small_recipe, out=folder, device="cpu")
    with pytest.raises(UserError, match=r"None of the 7 pictures has a score, .*`screening.unknown_scores: keep`"):
        images.image_screen.body(job)
    counts |= {"rows_out": 1, "dropped": {"unknown_score": 6}}
    assert images.image_screen.body(job).counts == counts
