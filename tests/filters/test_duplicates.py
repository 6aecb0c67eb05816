"""Duplicates: hashes of pairs, the sets of seen rows, and the same rows found with and without the table's own hash."""

import dataclasses
import functools
import random

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters import screen as screen_module
from filters.duplicates import HashWork, RepeatWork, SeenRows, pair_hashes
from filters.screen import MetadataWork
from mav.data.images.laion import read_part
from mav.recipes import Screening
from mav.storage import Folder


def test_hashes_tell_rows_apart_as_pairs_do():
    rng = random.Random(0)
    texts = ["".join(rng.choices("ab", k=rng.randrange(30))) for _ in range(20_000)]
    pairs = [
        *zip(texts[::2], texts[1::2], strict=True),
        ("ab", "c"),
        ("a", "bc"),
        ("", "abc"),
        ("abc", ""),
        ("x" * 70_000, "y"),
    ]
    rows = pa.table({"url": [a for a, _ in pairs], "caption": [b for _, b in pairs]})
    hashes = pair_hashes(rows)
    assert len(set(hashes.tolist())) == len(set(pairs))
    assert len({*zip(pairs, hashes.tolist(), strict=True)}) == len(set(pairs)), "equal pairs, equal hashes"
    assert pair_hashes(rows.slice(777, 100)).tolist() == hashes[777:877].tolist(), "whatever stands before"
    assert len(pair_hashes(rows.slice(0, 0))) == 0


def test_seen_rows_agree_with_a_set():
    rng, seen, plain = np.random.default_rng(1), SeenRows(), set()
    for _ in range(40):
        batch = rng.integers(0, 3000, rng.integers(0, 200)).astype(np.uint64)
        expected = [bool(x in plain or plain.add(x)) for x in batch.tolist()]
        assert seen.repeated(batch).tolist() == expected
    assert seen.sorted().tolist() == sorted(plain)


def test_duplicates_across_parts(tmp_path):
    """The earliest part keeps a row; a row that was dropped there for another reason is not seen."""
    parts = []
    for number in range(3):
        rows = [
            {"url": f"http://h/{i}.jpg", "punsafe": 0.9 if (number, i) == (0, 5) else 0.1}
            for i in range(number * 4, number * 4 + 8)
        ]
        parts.append(str(tmp_path / f"{number}.parquet"))
        pq.write_table(
            pa.Table.from_pylist([{"caption": "a house", "pwatermark": 0.1, **row} for row in rows]), parts[-1]
        )
    work = MetadataWork(tuple(parts), Screening(duplicates="all"), 100, Folder(str(tmp_path / "out")))
    hashes, found = Folder(str(tmp_path / "hashes")), Folder(str(tmp_path / "repeats"))
    sizes = [HashWork(work.kept_rows, hashes)(name).counts["hashes"] for name in work.names()]
    assert sizes == [7, 8, 8]
    repeats = RepeatWork(tuple(work.names()), hashes, found)
    assert sum(repeats(name).counts["repeats"] for name in repeats.names()) == 7
    outputs = [dataclasses.replace(work, repeats=found)(name).counts for name in work.names()]
    assert [counts["dropped"] for counts in outputs] == [{"nsfw": 1}, {"duplicate": 3}, {"duplicate": 4}]
    assert [counts["rows_out"] for counts in outputs] == [7, 5, 4]


def with_hashes(change=lambda hashes: hashes):
    """A joined table of 400 rows, nearly half of them seen before, with LAION's `hash` or what `change` makes of it."""
    rng = random.Random(3)
    addresses, captions = (
        [f"http://h/{i}.jpg" for i in range(30)] + [None, ""],
        ["a house", " a barn ", "bollocks", "été", None],
    )
    rows = [(rng.choice(addresses), rng.choice(captions)) for _ in range(400)]
    hashes = [mmh3.hash64((url or "") + (caption or ""))[0] for url, caption in rows]
    return pa.table(
        {"URL": [url for url, _ in rows], "TEXT": [caption for _, caption in rows],
         "hash": pa.array(change(hashes), pa.int64()), "punsafe": [rng.choice([0.1, 0.1, 0.9]) for _ in rows],
         "pwatermark": [0.1] * 400}
    )  # fmt: skip


def wrong_from(first):
    return lambda hashes: [value if at < first else at for at, value in enumerate(hashes)]


@pytest.mark.parametrize(
    ("change", "hashed"),
    [
        (lambda hashes: hashes, "repeats"),
        (lambda hashes: list(range(400)), "all"),
        (lambda hashes: [7] * 400, "all"),
        (wrong_from(300), "again"),
        (lambda hashes: [None if at % 3 else value for at, value in enumerate(hashes)], "all"),
        (lambda hashes: [None] * 400, "all"),
    ],
    ids=["true", "numbers", "constant", "wrong from a later batch on", "gaps", "nulls"],
)
def test_the_same_duplicates_whatever_the_hash_column_holds(change, hashed, tmp_path, monkeypatch):
    monkeypatch.setattr(screen_module, "read_part", functools.partial(read_part, batch_rows=100))
    counted = []
    monkeypatch.setattr(screen_module, "pair_hashes", lambda rows: counted.append(len(rows)) or pair_hashes(rows))

    def screened(table, name):
        pq.write_table(table, tmp_path / f"{name}.parquet")
        work = MetadataWork((str(tmp_path / f"{name}.parquet"),), Screening(), 10, Folder(str(tmp_path / name)))
        counted.clear()
        output = work("00000")
        assert sorted(work.out.names()) == sorted(output.files), "nothing is left of a first try"
        kept = pa.concat_tables([pq.read_table(work.out.path(file)) for file in output.files[:-1]]).drop_columns(
            ["hash"]
        )
        return kept, pq.read_table(work.out.path(output.files[-1])), output, sum(counted)

    table = with_hashes(change)
    plain, dropped, expected, all_rows = screened(table.drop_columns(["hash"]), "plain")
    kept, refused, output, some = screened(table, "hashed")
    assert kept.equals(plain)
    assert refused.equals(dropped)
    assert output == expected
    assert expected.counts["dropped"]["duplicate"] > 80
    if hashed == "repeats":
        values = table.column("hash").to_pylist()
        assert 0 < some < all_rows
        assert some <= sum(values.count(value) > 1 for value in values)
    else:
        assert some == all_rows if hashed == "all" else some > all_rows


def test_rows_that_occur_once_are_not_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        screen_module, "pair_hashes", lambda rows: pair_hashes(rows) if not len(rows) else pytest.fail("no row repeats")
    )
    rows = [(f"http://h/{i}.jpg", "a house") for i in range(50)]
    pq.write_table(
        pa.table(
            {
                "URL": [a for a, _ in rows],
                "TEXT": [b for _, b in rows],
                "hash": [mmh3.hash64(a + b)[0] for a, b in rows],
            }
        ),
        tmp_path / "a.parquet",
    )
    assert (
        MetadataWork((str(tmp_path / "a.parquet"),), Screening(), 10, Folder(str(tmp_path / "out")))("00000").counts[
            "rows_out"
        ]
        == 50
    )
