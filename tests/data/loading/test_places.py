"""Where samples are is known without opening tars, once for all processes of a machine."""

import base64
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_sources import clips, jpeg, scene, write_embeddings, write_tar

from mav.data.loading import places
from mav.data.loading.loaders import ImageSource
from mav.data.loading.source import Shared
from mav.data.shards import TarWriter, index_tar, json_bytes, write_table
from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.storage import Artifact, Folder
from mav.storage.ledger import LEDGER, retry_ledger, write_ledger
from mav.world.drawing import draw_clip

FIELDS = {"stage": "video-shards", "version": 2, "fingerprint": "f", "recipe": "r", "config": {}, "inputs": {}}
SHARDS = ("00000", "00001", "00001-retry1", "00002")


def artifact(url: str, old: bool = False) -> Folder:
    """Three shards and one of a retry pass; the last is empty. `old`: as releases before the places wrote it."""
    folder = Folder(url)
    video, metadata = encode_mp4(draw_clip(scene(0), 32, 24, 24), 24), json_bytes({"fps": 24.0, "frames": 24})
    markers = {}
    for number, shard in enumerate(SHARDS):
        with folder.create(f"{shard}.tar") as file, TarWriter(file) as tar:
            for row in range(3 - number):
                tar.add(f"{number:05d}{row:05d}", {"mp4": video, "json": metadata + b" " * row})
        markers[shard] = {
            "shard": shard,
            "counts": {"rows_in": 3, "rows_out": 3 - number},
            "files": {f"{shard}.tar": {}},
        }
        if not old:
            markers[shard]["places"] = base64.b64encode(places.pack_places(tar.index)).decode()
    for ledger, shards in ((retry_ledger(1), [SHARDS[2]]), (LEDGER, [SHARDS[0], SHARDS[1], SHARDS[3]])):
        write_ledger(folder, [[markers[shard] for shard in shards]])
        if ledger != LEDGER:
            folder.fs.mv(folder.path(LEDGER), folder.path(ledger))
    Artifact.publish(folder, **FIELDS)
    return folder


def test_the_writer_knows_what_the_tar_will_say(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with folder.create("a.tar") as file, TarWriter(file) as tar:
        tar.add("1", {"mp4": b"x" * 1000, "json": b"{}"})
        tar.add("2", {"mp4": b"", "json": b"{ }"})
    assert tar.index == index_tar(folder, "a.tar")


def test_places_in_the_ledger_are_those_of_the_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = places.clip_places(artifact(str(tmp_path / "old"), old=True))
    monkeypatch.setattr(places, "index_tar", None)
    new = places.clip_places(artifact(str(tmp_path / "new")))
    assert new.names == old.names == sorted(f"{shard}.tar" for shard in SHARDS), "a listing's order, as before"
    assert new.sizes == old.sizes == [3, 1, 2, 0]
    assert np.array_equal(new.where, old.where)


def select(url: str, kept: dict[str, list[int]]) -> Folder:
    """An artifact of `video-select` that keeps these clips of each shard."""
    folder = Folder(url)
    parts = {name: np.array([(row, 0, 23, places.BOX) for row in rows], places.PART) for name, rows in kept.items()}
    packed = {name: base64.b64encode(found.tobytes()).decode() for name, found in parts.items()}
    write_ledger(
        folder, [[{"shard": name, "counts": {}, "files": {}, "places": text} for name, text in packed.items()]]
    )
    Artifact.publish(folder, **FIELDS | {"stage": "video-select"})
    return folder


def test_a_selection_leaves_clips_out_and_an_unknown_shard_is_named(tmp_path: Path) -> None:
    shards = artifact(str(tmp_path / "shards"))
    every = places.clip_places(shards)
    selection = select(str(tmp_path / "a"), {"00000": [0, 2], "00001": [], "00001-retry1": [0], "00002": []})
    chosen = places.clip_places(shards, selection)
    assert chosen.sizes == [2, 1], "a shard of which nothing is left does not count"
    assert [chosen.place(i) for i in range(3)] == [every.place(i) for i in (0, 2, 3)]
    source = clips(shards, selection=selection)
    assert len(source) == 3
    assert source.batch(0, 3)["pixels"].shape[0] == 3
    with pytest.raises(UserError, match=r"does not know 00001-retry1\.tar .*: rerun video-select"):
        places.clip_places(shards, select(str(tmp_path / "b"), {"00000": [0], "00001": []}))


def test_a_bucket_is_asked_once_and_no_tar_is_opened(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = artifact(f"{s3}/places")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    asked: list[tuple[str, int | None]] = []
    ask = folder.fs.cat_file

    def counted(path: str, start: int | None = None, end: int | None = None) -> bytes:
        asked.append((path, end))
        return bytes(ask(path, start=start, end=end))

    monkeypatch.setattr(folder.fs, "cat_file", counted)
    monkeypatch.setattr(folder.fs, "open", None)
    sources = [clips(folder) for _ in range(2)]
    assert [Path(path).name for path, _ in asked].count("shards.parquet") == 1, "the second finds what the first read"
    assert not any(path.endswith(".tar") for path, _ in asked)
    (own,) = tmp_path.iterdir()
    assert own.stat().st_mode & 0o077 == 0
    asked.clear()
    assert sources[1].batch(0, 6)["pixels"].shape[0] == 6
    assert all(end is not None for _, end in asked), "ranges, not whole tars"
    (lost,) = tmp_path.glob("*/*/where.npy")
    lost.unlink()  # as systems clear away old files in temporary folders
    assert clips(folder).batch(0, 6)["pixels"].shape[0] == 6


def test_pictures_are_read_at_the_places_beside_their_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, embeds = Folder(str(tmp_path / "images")), Folder(str(tmp_path / "embeds"))
    write_tar(images, "0.tar", {f"{i}": {"jpg": jpeg(i), "txt": b""} for i in range(3)})
    write_embeddings(embeds, "0", ["0", "2"], [0, 2], 3)
    expected = ImageSource(images, embeds, 12, 0).batch(0, 2)["pixels"]
    index = index_tar(images, "0.tar")
    told = {"offset": [index[key]["jpg"][0] for key in "02"], "size": [index[key]["jpg"][1] for key in "02"]}
    write_table(embeds, "0.parquet", pa.table({"key": ["0", "2"], **told}))
    monkeypatch.setattr("mav.data.loading.source.index_tar", dict)  # which would find nothing
    assert torch.equal(ImageSource(images, embeds, 12, 0).batch(0, 2)["pixels"], expected)


def test_enlarged_pictures_are_left_out_where_the_recipe_says_so(tmp_path: Path) -> None:
    """By the table of a shard, and by the ledger's count of native pictures, which have to agree."""
    images, embeds = Folder(str(tmp_path / "images")), Folder(str(tmp_path / "embeds"))
    write_tar(images, "0.tar", {f"{i}": {"jpg": jpeg(i)} for i in range(4)})
    write_embeddings(embeds, "0", list("0123"), range(4), 3)
    write_table(embeds, "0.parquet", pa.table({"key": list("0123"), "native": [True, False, True, False]}))
    for _ in range(2):
        native = ImageSource(images, embeds, 12, 0, enlarged=False)
        assert len(native) == 2
        batch = native.batch(0, 2)
        order = batch["tokens"][:, 0].argsort()
        assert batch["tokens"][order, 0].tolist() == [0, 2]
        whole = ImageSource(images, embeds, 12, 0).batch(0, 4)
        assert torch.equal(batch["pixels"][order], whole["pixels"][whole["tokens"][:, 0].argsort()][[0, 2]])
        counts = {"rows_in": 4, "rows_out": 4, "native": 2}
        write_ledger(embeds, [[{"shard": "0", "counts": counts, "files": {name: {} for name in embeds.names()}}]])
        Artifact.publish(embeds, **FIELDS)
    write_table(embeds, "0.parquet", pa.table({"key": list("0123"), "native": [False] * 4}))
    embeds.remove("manifest.json")
    with pytest.raises(UserError, match=r"Every picture .* was enlarged: lower `image_download.image_size`"):
        ImageSource(images, embeds, 12, 0, enlarged=False)


def test_equal_requests_in_flight_are_one() -> None:
    made, go, got = [], threading.Event(), []

    def make(key: int) -> int:
        made.append(key)
        assert go.wait(10)
        if key < 0:
            raise ValueError("not there")
        return key + 1

    cache = Shared(make, 2)
    threads = [threading.Thread(target=lambda: got.append(cache(1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert (made, got) == ([1], [2] * 4)
    for _ in range(2):
        with pytest.raises(ValueError, match="not there"):
            cache(-1)  # what failed is tried again
    assert [cache(2), cache(3), cache(1)] == [3, 4, 2]
    assert made == [1, -1, -1, 2, 3, 1], "of two at most"
