import dataclasses
import functools
import pickle
import random

import mmh3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters import screen as screen_module
from filters.duplicates import HashWork, RepeatWork, SeenRows, pair_hashes
from filters.screen import MetadataWork, Screen, reaches
from mav.data.images.laion import TYPES, read_part, source_parts
from mav.errors import UserError
from mav.recipes import Screening
from mav.storage import Folder
from mav.storage.counts import add_counts, unbalanced

ROW = {"url": "http://h/a.jpg", "caption": "a house", "width": 100, "height": 100, "punsafe": 0.1, "pwatermark": 0.1, "hash": None,
       "digest": None}  # fmt: skip


def table(*changes: dict) -> pa.Table:
    rows = [ROW | {"url": f"http://h/{i}.jpg"} | change for i, change in enumerate(changes)]
    return pa.Table.from_pylist(
        rows, schema=pa.schema([(name, pa.type_for_alias(kind)) for name, kind in TYPES.items()])
    )


def reasons(screening: Screening, *changes: dict) -> list[str]:
    kept, dropped = Screen(screening)(table(*changes))
    assert len(kept) + len(dropped) == len(changes)
    assert set(kept.column_names) == set(TYPES)
    return dropped.column("reason").to_pylist()


def test_thresholds_drop_the_boundary():
    scores = pa.array([0.49, 0.5, 0.51, None], pa.float32())
    assert reaches(scores, 0.5).to_pylist() == [False, True, True, False]


def test_each_reason_and_the_order_of_first_reasons():
    rule = Screening(min_side=50, max_aspect=3.0, min_caption=3, max_caption=40)
    assert reasons(
        rule,
        {},
        {"url": None},
        {"caption": None},
        {"caption": "   "},
        {"punsafe": 0.5},
        {"pwatermark": 0.5},
        {"width": 49},
        {"width": 301},
        {"caption": "ab"},
        {"caption": "x" * 41},
        {"caption": "this sucks"},
        {"punsafe": 0.9, "pwatermark": 0.9, "caption": "bollocks", "width": 1},
    ) == [
        *("no_url", "no_caption", "no_caption", "nsfw", "watermark", "too_small"),
        *("aspect", "caption_length", "caption_length", "toxic", "nsfw"),
    ]


@pytest.mark.parametrize(
    ("policy", "expected", "kept"), [("score", [], 2), ("keep", [], 2), ("drop", ["unknown_score"] * 2, 0)]
)
def test_unknown_scores_are_never_passed_silently(policy, expected, kept):
    screen = Screen(Screening(unknown_scores=policy))
    passed, dropped = screen(table({"punsafe": None}, {"pwatermark": None}))
    assert dropped.column("reason").to_pylist() == expected
    assert len(passed) == screen.unknown == kept


def test_a_known_bad_score_beside_an_unknown_one_drops():
    assert reasons(Screening(), {"punsafe": None, "pwatermark": 0.7}) == ["watermark"]


def test_duplicates_by_url_and_text_across_batches():
    screen = Screen(Screening())
    same = {"url": "http://h/x.jpg"}
    first, _ = screen(table(same, same | {"caption": "a barn"}))
    second, dropped = screen(table(same, {"url": "http://h/y.jpg"}))
    assert (len(first), len(second)) == (2, 1)
    assert dropped.to_pylist() == [{"url": "http://h/x.jpg", "caption": "a house", "reason": "duplicate", "word": None}]


def test_words_are_named_and_counted():
    screen = Screen(Screening())
    _, dropped = screen(table({"caption": "it sucks"}, {"caption": "bollocks"}, {"caption": "it sucks more"}))
    assert dropped.column("word").to_pylist() == ["sucks", "bollocks", "sucks"]
    assert screen.words == {"sucks": 2, "bollocks": 1}


def test_scores_are_counted_in_bins():
    screen = Screen(Screening())
    screen(
        table(
            {"punsafe": 0.0},
            {"punsafe": 0.049},
            {"punsafe": 0.05},
            {"punsafe": 1.0, "pwatermark": None},
            {"punsafe": None},
        )
    )
    counts = screen.counts()
    assert {edge: n for edge, n in counts["punsafe_histogram"].items() if n} == {
        "0.00": 2,
        "0.05": 1,
        "0.95": 1,
        "unknown": 1,
    }
    assert {edge: n for edge, n in counts["pwatermark_histogram"].items() if n} == {"0.10": 4, "unknown": 1}
    assert len(counts["punsafe_histogram"]) == 21


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


@pytest.fixture
def sources(tmp_path):
    upper = {"URL": [f"http://h/{i}.jpg" for i in range(25)], "TEXT": ["a house"] * 25, "WIDTH": [10] * 25, "HEIGHT": [20] * 25,
             "punsafe": [0.9 if i % 5 == 0 else 0.1 for i in range(25)], "pwatermark": [0.1] * 25}  # fmt: skip
    pq.write_table(pa.table(upper), tmp_path / "a.parquet", row_group_size=4)
    lower = {"url": [f"http://g/{i}.jpg" for i in range(5)], "caption": ["a barn"] * 5}
    pq.write_table(pa.table(lower), tmp_path / "b.parquet")
    return tuple(source_parts([str(tmp_path / "*.parquet")]))


def test_metadata_work(sources, tmp_path):
    work = MetadataWork(sources, Screening(), 8, Folder(str(tmp_path / "out")))
    assert work.names() == ["00000", "00001"]
    outputs = [work(name) for name in work.names()]
    assert outputs[0].files == (*(f"shards/00000-0000{shard}.parquet" for shard in range(3)), "dropped/00000.parquet")
    counts = add_counts([o.counts for o in outputs])
    assert not list(unbalanced(counts))
    assert counts["rows_in"] == 30
    assert counts["dropped"] == {"nsfw": 5}
    assert counts["unknown_scores"] == 5
    assert counts["forms"] == {"joined": 25, "url and caption": 5}
    shard = pq.read_table(work.out.path("shards/00000-00001.parquet"))
    assert shard.column_names[0] == "key"
    assert shard.column("key")[0].as_py() == "000000000100000"
    assert shard.column("width")[0].as_py() == 10
    assert [pq.read_metadata(work.out.path(f)).num_rows for f in outputs[0].files] == [8, 8, 4, 5]


def test_same_rows_same_bytes_also_after_pickling(sources, tmp_path):
    first = MetadataWork(sources, Screening(), 8, Folder(str(tmp_path / "one")))
    again = pickle.loads(pickle.dumps(MetadataWork(sources, Screening(), 8, Folder(str(tmp_path / "two")))))
    assert first("00000") == again("00000")
    assert [first.out.sha256(n) for n in first.out.names()] == [again.out.sha256(n) for n in again.out.names()]


def test_rows_per_shard_must_fit_the_key(sources, tmp_path):
    with pytest.raises(UserError, match="rows_per_shard"):
        MetadataWork(sources, Screening(), 100_001, Folder(str(tmp_path)))("00000")


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
        {"URL": [url for url, _ in rows], "TEXT": [caption for _, caption in rows], "hash": pa.array(change(hashes), pa.int64()),
         "punsafe": [rng.choice([0.1, 0.1, 0.9]) for _ in rows], "pwatermark": [0.1] * 400}
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


def test_lengths_are_of_trimmed_captions():
    blanks = ["", " ", "\t", "\u00a0", "\u2003", "\u3000", "\x1f"]
    captions = [
        before + text + after for text in ("", "a", "é", "a b", "日本") for before in blanks for after in blanks
    ]
    rule = Screening(min_caption=2, max_caption=2)
    kept, dropped = Screen(rule)(table(*({"caption": caption} for caption in [*captions, None])))
    assert set(kept.column("caption").to_pylist()) == {caption for caption in captions if len(caption.strip()) == 2}
    reasons = {row["caption"]: row["reason"] for row in dropped.to_pylist()}
    assert reasons.pop(None) == "no_caption"
    assert all((reason == "no_caption") == (not caption.strip()) for caption, reason in reasons.items())
