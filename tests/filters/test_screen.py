"""Screening: the reasons and their order, counts, and the shards that `image-metadata` writes."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters.screen import MetadataWork, Screen, reaches
from mav.data.images.laion import TYPES, source_parts
from mav.recipes import Screening
from mav.storage import Folder
from mav.storage.counts import add_counts, unbalanced

ROW = {"url": "http://h/a.jpg", "caption": "a house", "width": 100, "height": 100, "punsafe": 0.1, "pwatermark": 0.1,
       "hash": None, "digest": None}  # fmt: skip


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


@pytest.fixture
def sources(tmp_path):
    upper = {"URL": [f"http://h/{i}.jpg" for i in range(25)], "TEXT": ["a house"] * 25, "WIDTH": [10] * 25,
             "HEIGHT": [20] * 25, "punsafe": [0.9 if i % 5 == 0 else 0.1 for i in range(25)],
             "pwatermark": [0.1] * 25}  # fmt: skip
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
