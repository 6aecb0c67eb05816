"""The choice of pictures: near duplicates by embeddings and by hashes, which of them is kept, and the accounting."""

import base64
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from filters import near_duplicates
from filters.groups import GroupWork, ScoreWork, join
from filters.near_duplicates import CellWork, CentreWork, PairWork, buckets
from filters.near_hashes import HashPairWork
from filters.pictures import Pictures, SelectWork, agreement
from filters.selection import in_threads
from mav.data.images.hashes import mirrored, perceptual_hash
from mav.data.loading.loaders import ImageSource
from mav.data.shards import TarWriter, read_array, read_table, write_array, write_table
from mav.errors import UserError
from mav.recipes import ImageSelect
from mav.report.selection import contact_sheets
from mav.storage import Folder
from mav.storage.counts import add_counts

DIM = 32


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def embeddings(folder: Folder, image: np.ndarray, shards: int, native: np.ndarray | None = None) -> tuple[str, ...]:
    """Writes embeddings as `image-embed` does. Captions fit all pictures equally."""
    names = tuple(f"00000-{number:05d}" for number in range(shards))
    native = np.ones(len(image), bool) if native is None else native
    for name, rows in zip(names, np.array_split(np.arange(len(image)), shards), strict=True):
        for kind in ("image", "text"):
            write_array(folder, f"{name}.{kind}.npy", image[rows].astype(np.float16))
        keys = [f"{row:010d}" for row in rows]
        write_table(folder, f"{name}.parquet", pa.table({"key": keys, "native": native[rows]}))
    return names


def groups(place: Folder, embeds: Folder, names: tuple[str, ...], pairs: list[tuple[Folder, str]]) -> Folder:
    for name in names:
        ScoreWork(Pictures(embeds, embeds, ImageSelect()), place.child("scores"))(name)
    GroupWork(names, place.child("scores"), tuple(pairs), place.child("groups"))("groups")
    return place.child("groups")


def near(place: Folder, embeds: Folder, names: tuple[str, ...], threshold: float) -> list[int]:
    """Returns the rows that are dropped for their embeddings."""
    CentreWork(embeds, names, place.child("centres"))("centres")
    cells = CellWork(embeds, names, place.child("centres"), threshold, place.child("cells"))
    for name in reversed(names):
        cells(name)
    pairs = PairWork(names, place.child("cells"), threshold, place.child("pairs"))
    for bucket in buckets(place.child("centres")):
        pairs(bucket)
    found = groups(place, embeds, names, [(cells.out, "/equal.npy"), (pairs.out, ".npy")])
    sizes = np.cumsum([0, *(len(read_table(embeds, f"{name}.parquet")) for name in names)])
    return [
        int(first + row)
        for first, name in zip(sizes, names, strict=False)
        for row in read_array(found, f"{name}.npy")["place"]
    ]


def exactly(image: np.ndarray, threshold: float) -> list[int]:
    """Returns all rows but the first of each connected group, all pairs being compared."""
    rows = near_duplicates.unit_rows(image.astype(np.float16))
    group = np.arange(len(rows))
    join(group, *np.nonzero(rows @ rows.T >= threshold))
    return np.flatnonzero(group != np.arange(len(rows))).tolist()


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Random directions in many small cells and buckets, with near duplicates in shards far from each other."""
    for name, value in {"CELL_ROWS": 60, "BUCKET_CELLS": 3, "BLOCK": 32, "ACROSS": 128, "BORDERS": 6}.items():
        monkeypatch.setattr(near_duplicates, name, value)
    draws = np.random.default_rng(0)
    image = unit(draws.normal(size=(1200, DIM)))
    copies = draws.permutation(1200)[:400].reshape(2, 200)
    image[copies[1]] = unit(image[copies[0]] + 0.03 * draws.normal(size=(200, DIM)))
    image[copies[1][:20]] = image[copies[0][:20]]
    image[7] = 0
    return image


def test_the_cells_find_what_comparing_all_pairs_finds(many: np.ndarray, tmp_path: Path) -> None:
    embeds = Folder(str(tmp_path / "embeds"))
    names = embeddings(embeds, many, 5)
    found, right = near(Folder(str(tmp_path)), embeds, names, 0.95), exactly(many, 0.95)
    assert set(found) <= set(right), "nothing is dropped that is no near duplicate"
    assert len(found) >= 0.98 * len(right) >= 190
    assert len(buckets(Folder(str(tmp_path / "centres")))) > 5
    assert near(Folder(str(tmp_path / "one")), embeds, names, 0.99999) == exactly(many, 0.99999), "only equal ones"


def test_rows_far_from_every_border_enter_no_second_cell(many: np.ndarray, tmp_path: Path) -> None:
    topics = unit(np.random.default_rng(1).normal(size=(20, DIM)))
    image = unit(np.repeat(topics, 60, axis=0) + 0.02 * np.random.default_rng(2).normal(size=(1200, DIM)))
    embeds, place = Folder(str(tmp_path / "embeds")), Folder(str(tmp_path))
    names = embeddings(embeds, image, 2)
    CentreWork(embeds, names, place.child("centres"))("centres")
    work = CellWork(embeds, names, place.child("centres"), 0.999, place.child("cells"))
    assert sum(work(name).counts["entries"] for name in names) < 1.2 * 1200


def test_of_a_group_the_best_is_kept_and_a_chain_is_one_group(tmp_path: Path) -> None:
    """Three rows each near the next; the last is the only one that was not enlarged. Two more equal each other."""
    angle = np.array([0.0, 0.1, 0.2, 2.0, 2.0])
    image = np.zeros((5, DIM))
    image[:, 0], image[:, 1] = np.cos(angle), np.sin(angle)
    embeds, native = Folder(str(tmp_path / "embeds")), np.array([False, False, True, True, True])
    names = embeddings(embeds, image, 2, native)
    assert near(Folder(str(tmp_path)), embeds, names, 0.99) == [0, 1, 4]
    captions = read_array(embeds, f"{names[1]}.text.npy")
    captions[0] = np.roll(captions[0], 2)  # fits row 3 less
    write_array(embeds, f"{names[1]}.text.npy", captions)
    assert near(Folder(str(tmp_path / "other")), embeds, names, 0.99) == [0, 1, 3]


def picture(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (12, 12, 3)).astype(np.uint8)
    return cv2.resize(small, (96, 96), interpolation=cv2.INTER_CUBIC)


def test_a_hash_survives_another_size_and_is_turned_by_a_mirror() -> None:
    first = perceptual_hash(picture(0))
    assert (first ^ perceptual_hash(cv2.resize(picture(0), (80, 64)))).bit_count() <= 1
    turned = perceptual_hash(np.ascontiguousarray(picture(0)[:, ::-1]))
    assert (int(mirrored(np.array([first], np.uint64))[0]) ^ turned).bit_count() <= 1
    assert (first ^ perceptual_hash(picture(1))).bit_count() > 15
    assert perceptual_hash(np.full((40, 30, 3), 77, np.uint8)) == 0
    assert perceptual_hash(cv2.cvtColor(picture(0), cv2.COLOR_BGR2GRAY)) == first, "a grey picture has no third axis"


@pytest.mark.parametrize("bits", [1, 3, 6])
def test_hashes_that_differ_in_fewer_bits_are_near_within_and_across_shards(bits: int, tmp_path: Path) -> None:
    draws = np.random.default_rng(bits)
    hashes = draws.integers(1, 1 << 63, 60).astype(np.uint64)
    for row, changed in enumerate(range(8)):  # row 30 + n differs from row n in n bits
        places = draws.permutation(64)[:changed]
        hashes[30 + row] = hashes[row] ^ np.uint64(sum(1 << int(place) for place in places))
    hashes[50:52] = mirrored(hashes[10:12])
    hashes[55:] = 0  # of pictures of one brightness
    place, names = Folder(str(tmp_path)), tuple("abc")
    for name, part in zip(names, np.split(hashes, 3), strict=True):
        write_array(place, f"{name}.npy", part)
    work = HashPairWork(names, place, bits, place.child("pairs"))
    found = np.concatenate([read_array(place.child("pairs"), work(name).files[0]) for name in work.names()])
    rows = (found >> np.uint64(32)).astype(int) * 20 + (found & np.uint64(2**32 - 1)).astype(int)
    assert {tuple(sorted(pair)) for pair in rows.tolist()} == {
        *((row, 30 + row) for row in range(bits)), (10, 50), (11, 51)
    }  # fmt: skip


@pytest.mark.parametrize("hash_of_all", [0, 7])
def test_shards_of_which_no_picture_or_every_picture_is_the_same(hash_of_all: int, tmp_path: Path, monkeypatch) -> None:
    """The hashes of flat pictures say nothing. Of copies of one picture, most slices of the bands have no row."""
    monkeypatch.setattr("filters.near_hashes.SLICE_SHARDS", 1)
    place, names = Folder(str(tmp_path)), tuple("abc")
    for name in names:
        write_array(place, f"{name}.npy", np.full(4, hash_of_all, np.uint64))
    work = HashPairWork(names, place, 3, place.child("pairs"))
    found = np.concatenate([read_array(place.child("pairs"), work(name).files[0]) for name in work.names()])
    assert len(np.unique(found, axis=0)) == (11 if hash_of_all else 0)


def test_copies_of_one_picture_in_several_shards_are_near_duplicates_at_a_threshold_of_one(tmp_path: Path) -> None:
    image = np.tile(unit(np.random.default_rng(0).normal(size=(20, DIM))), (3, 1))
    place, embeds = Folder(str(tmp_path)), Folder(str(tmp_path / "embeds"))
    names = embeddings(embeds, image, 3)
    assert near(place, embeds, names, 1.0) == list(range(20, 60))


def test_hashes_are_found_by_key_and_older_shards_are_named(tmp_path: Path) -> None:
    images, embeds = (Folder(str(tmp_path / name)) for name in ("images", "embeds"))
    pictures = Pictures(images, embeds, ImageSelect())
    write_table(embeds, "a.parquet", pa.table({"key": ["1", "3"]}))
    write_table(
        images, "a.parquet", pa.table({"key": ["1", "2", "3"], "hash": pa.array([5, None, 2**63], pa.uint64())})
    )
    assert pictures.hashes("a").tolist() == [5, 2**63]
    write_table(images, "a.parquet", pa.table({"key": ["1", "3"]}))
    with pytest.raises(UserError, match=r"a\.parquet has no hashes: rerun image-download"):
        pictures.hashes("a")


def test_counts_balance_and_the_networks_learn_from_the_kept_rows(tmp_path: Path) -> None:
    embeds, out, place = (Folder(str(tmp_path / name)) for name in ("embeds", "out", "place"))
    draws = np.random.default_rng(0)
    image = unit(draws.normal(size=(12, DIM)))
    image[9] = image[2]
    names = embeddings(embeds, image, 3, np.arange(12) % 2 == 0)
    for name in names:
        write_array(embeds, f"{name}.tokens.npy", np.zeros((4, 2), np.uint16))
    pairs = place.child("pairs")
    write_array(pairs, "0.npy", np.array([[2, (2 << 32) + 1]], np.uint64))
    chosen = groups(place, embeds, names, [(pairs, ".npy")])
    assert read_array(chosen, f"{names[2]}.npy").tolist() == [(1, 2)], "which row is kept instead"
    work = SelectWork(Pictures(embeds, embeds, ImageSelect()), chosen, out)
    counts = [work(name).counts for name in names]
    assert counts[2] == {
        "rows_in": 4, "rows_out": 3, "dropped": {"near_duplicate": 1}, "failed": {}, "native": 2
    }  # fmt: skip
    assert sum(each["rows_out"] for each in counts) == 11
    assert read_table(out, f"{names[2]}.parquet").to_pylist()[1] == {
        "key": "0000000009", "kept": False, "reason": "near_duplicate"
    }  # fmt: skip
    source = ImageSource(embeds, embeds, 0, 0, pixels=False, selection=out)
    seen = source.batch(0, len(source))["image_embedding"].numpy()
    assert len(seen) == 11
    assert sorted(seen[:, 0].tolist()) == sorted(np.delete(image[:, 0], 9).astype(np.float16).astype(float).tolist())
    assert len(ImageSource(embeds, embeds, 0, 0, pixels=False, selection=out, enlarged=False)) == 6
    write_table(out, f"{names[0]}.parquet", pa.table({"key": ["1"] * 4, "kept": [True] * 4}))
    with pytest.raises(UserError, match="of other pictures: rerun image-select"):
        ImageSource(embeds, embeds, 0, 0, pixels=False, selection=out)


def test_a_picture_of_a_low_score_is_dropped_and_its_near_duplicate_is_not(tmp_path: Path) -> None:
    embeds, out = Folder(str(tmp_path / "embeds")), Folder(str(tmp_path / "out"))
    image = np.array([[1, 0], [0.9, 0.436], [0.0, 1.0], [-1.0, 0.0], [0.8, 0.6]])
    names = embeddings(embeds, image, 1, np.array([True, False, True, True, True]))
    with embeds.create(f"{names[0]}.tar") as file, TarWriter(file):
        pass
    np.savez(tmp_path / "head.npz", weight=np.array([[-2.0, 1.0]]), bias=np.array([5.0]))
    for least, reasons in (
        (0.0, [None, "near_duplicate", None, None, "near_duplicate"]),
        (3.3, ["aesthetic", "near_duplicate", None, None, None]),
        (6.5, ["aesthetic", "aesthetic", "aesthetic", None, "aesthetic"]),
    ):
        rule = ImageSelect(near_duplicate=0.89, aesthetic=least, aesthetic_head=str(tmp_path / "head.npz"))
        pictures = Pictures.open(embeds, embeds, rule)
        groups = pictures.groups(in_threads(Folder(str(tmp_path / f"{least}")), 1))
        counts = SelectWork(pictures, groups, out)(names[0]).counts
        table = read_table(out, f"{names[0]}.parquet")
        assert table["reason"].to_pylist() == reasons
        assert table["aesthetic"].to_pylist() == pytest.approx([3.0, 3.636, 6.0, 7.0, 4.0], abs=2e-3)
        assert counts["rows_in"] == counts["rows_out"] + sum(counts["dropped"].values()) == 5
    with pytest.raises(UserError, match=r"for embeddings of length 3, but this CLIP's have 2: give the matching head"):
        Pictures(embeds, embeds, rule, (np.zeros(3), 0.0)).read(names[0])


def test_the_bytes_of_a_selection_do_not_depend_on_how_many_work_at_it_or_in_which_order(
    many: np.ndarray, tmp_path: Path
) -> None:
    embeds = Folder(str(tmp_path / "embeds"))
    names = embeddings(embeds, many[:400], 5, np.arange(400) % 3 == 0)
    hashes = np.random.default_rng(3).integers(1, 1 << 20, 400)  # of so few bits that some are near
    for name, rows in zip(names, np.array_split(np.arange(400), 5), strict=True):
        with embeds.create(f"{name}.tar") as file, TarWriter(file):
            pass
        table = read_table(embeds, f"{name}.parquet")
        write_table(embeds, f"{name}.parquet", table.append_column("hash", pa.array(hashes[rows], pa.uint64())))
    np.savez(tmp_path / "head.npz", weight=np.random.default_rng(4).normal(size=(1, DIM)), bias=np.array([5.0]))
    rule = ImageSelect(near_duplicate=0.95, hash_bits=4, aesthetic=4.5, aesthetic_head=str(tmp_path / "head.npz"))
    pictures = Pictures.open(embeds, embeds, rule)

    def made(threads: int, turn: int) -> dict[str, str]:
        place, out = Folder(str(tmp_path / f"passes-{threads}")), Folder(str(tmp_path / f"out-{threads}"))
        one_pass = in_threads(place, threads)

        def turned(make: Any, folder: Folder) -> Any:
            work, shards = make(folder)
            return work, shards[::turn]

        groups = pictures.groups(lambda name, make: one_pass(name, partial(turned, make)))
        work = SelectWork(pictures, groups, out)
        counts = add_counts([work(name).counts for name in names[::turn]])
        assert min(counts["dropped"].values()) > 10
        return {name: folder.sha256(name) for folder in (place, out) for name in folder.names()}

    assert made(1, 1) == made(4, -1)


def test_agreement_counts_all_but_one_of_a_family() -> None:
    family = {"/a": "/a", "/b": "/a", "/c": "/a", "/d": "/d", "/e": "/d", "/f": "/f"}
    kept = dict(zip(family, itertools.cycle([True, False]), strict=False))  # a, c and e are kept
    assert agreement(kept, family)["near_duplicate"] == {
        "planted": 3, "dropped": 3, "found": 2, "precision": 0.6667, "recall": 0.6667, "f1": 0.6667
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(16, 40_000), (40_000, 16), (64, 64)])
def test_a_banner_does_not_make_too_large_a_sheet(shape: tuple[int, int], tmp_path: Path) -> None:
    shards = Folder(str(tmp_path))
    picture = cv2.imencode(".jpg", np.full((*shape, 3), 90, np.uint8))[1].tobytes()
    with shards.create("a.tar") as file, TarWriter(file) as tar:
        tar.add("1", {"jpg": picture, "json": b"{}", "txt": b"a banner"})
    (found,) = contact_sheets(shards, {"kept": [(("a", "1"), ("a", "1"))]}, {"kept": 1})
    sheet = cv2.imdecode(np.frombuffer(base64.b64decode(found["sheet"].partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
    assert sheet.shape[0] <= 100
    assert sheet.shape[1] <= 2000
