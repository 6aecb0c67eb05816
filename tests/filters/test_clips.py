"""The choice of clips by their scores: reasons, their order, their accounting, and the agreement with a truth."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pytest

from filters.clips import REASONS, SelectWork, agreement, failures, first_failures, read_scores
from flows.cli import diff
from mav.data.shards import VIDEO_LEDGER, TarWriter, read_table, shard_names, write_ledger
from mav.data.videos.scores import SCORES
from mav.errors import UserError
from mav.recipes import VideoSelect
from mav.storage import Folder

GOOD = {"cut": 0.0, "cut_frames": [], "cut_scores": [], "motion_global": 0.1, "motion_local": 0.4, "shake": 0.01,
        "repeated": 0.0, "overlay": 0.1, "border": 0.0, "blank": 0.0}  # fmt: skip
RULE = VideoSelect()
BAD = {
    "blank": {"blank": 1.0}, "border": {"border": 0.25}, "cut": {"cut": 9.0}, "still": {"motion_global": 0.0,
    "motion_local": 0.01}, "repeated": {"repeated": 0.66}, "too_fast": {"motion_global": 4.0}, "shaky": {"shake": 1.0},
    "overlay": {"overlay": 3.0},
}  # fmt: skip


def shard(folder: Folder, rows: list[dict], columns: dict | None = None) -> None:
    """A shard of one clip for each row; a failed row stands before them."""
    ledger = [{"key": "0000000000", "videoid": "gone", "status": "failed", "reason": "truncated"}]
    ledger += [
        {"key": f"{i:010d}", "videoid": f"v{i}", "status": "ok", "reason": "", **row} for i, row in enumerate(rows, 1)
    ]
    write_ledger(folder, "00000.parquet", VIDEO_LEDGER | SCORES if columns is None else columns, ledger)
    with folder.create("00000.tar") as file, TarWriter(file):
        pass


@pytest.fixture
def shards(tmp_path) -> Folder:
    folder = Folder(str(tmp_path / "shards"))
    shard(folder, [GOOD, *(GOOD | BAD[reason] for reason in REASONS), GOOD | BAD["cut"] | BAD["blank"]])
    return folder


def test_each_clip_is_kept_or_dropped_for_its_first_reason_and_counts_balance(shards, tmp_path) -> None:
    out = Folder(str(tmp_path / "out"))
    assert shard_names(shards) == ["00000"]
    done = SelectWork(shards, RULE, out)("00000")
    table = read_table(out, "00000.parquet")
    assert table["reason"].to_pylist() == [None, *REASONS, "blank"]
    assert table["kept"].to_pylist() == [True] + [False] * 9
    assert table["key"].to_pylist() == [f"{i:010d}" for i in range(1, 11)], "the failed row is the shards' own"
    assert done.counts == {
        "rows_in": 10, "rows_out": 1, "dropped": {reason: 1 + (reason == "blank") for reason in sorted(REASONS)},
        "failed": {},
    }  # fmt: skip
    assert done.places == b"\0\0\0\0", "the first of the tar"
    before = out.sha256("00000.parquet")
    assert SelectWork(shards, RULE, out)("00000") == done
    assert out.sha256("00000.parquet") == before


def test_a_score_at_its_threshold_is_kept(shards) -> None:
    at = {"cut": RULE.cut, "shake": RULE.shaky, "repeated": RULE.repeated, "overlay": RULE.overlay,
          "border": RULE.border, "blank": RULE.blank}  # fmt: skip
    rows = [GOOD | at | {"motion_local": RULE.still, "motion_global": 0.0}, GOOD | {"motion_local": RULE.too_fast}]
    table = pa.table({name: [row[name] for row in rows] for name in GOOD})
    assert first_failures(failures(table, RULE)).tolist() == [None, None]


def test_agreement_counts_every_filter_for_every_clip_of_the_truth(shards) -> None:
    scores = read_scores(shards, "00000")
    truth = {"v1": [], "v4": ["cut"], "v5": ["still"], "v10": ["blank"], "v6": ["still"]}
    found = agreement(scores, RULE, truth)
    assert found["cut"] == {"planted": 1, "dropped": 2, "found": 1, "precision": 0.5, "recall": 1.0, "f1": 0.6667}
    assert found["still"] == {"planted": 2, "dropped": 1, "found": 1, "precision": 1.0, "recall": 0.5, "f1": 0.6667}
    assert found["overlay"] == {
        "planted": 0, "dropped": 0, "found": 0, "precision": None, "recall": None, "f1": None
    }  # fmt: skip


def test_shards_without_scores_are_named_with_the_remedy(tmp_path) -> None:
    folder = Folder(str(tmp_path))
    shard(folder, [{}], VIDEO_LEDGER)
    with pytest.raises(UserError, match=r"00000\.parquet has no .*: rerun video-shards"):
        read_scores(folder, "00000")


def test_sweep_says_what_other_thresholds_keep_and_drop(shards, monkeypatch, capsys) -> None:
    graph = SimpleNamespace(node=lambda name: name)
    store = SimpleNamespace(find=lambda node: SimpleNamespace(folder=shards))
    monkeypatch.setattr(diff, "open_graph", lambda *_: (None, graph, store))
    diff.sweep("tiny", "video_select.cut=2.7,10", json_=True)
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 10
    assert [row["kept"] for row in found["values"].values()] == [1, 2]
    assert found["values"]["2.7"]["overlaps"] == {"blank+cut": 1}
    diff.sweep("tiny", "still=0.02")
    assert "blank+cut 1" in capsys.readouterr().out
    for wrong in ("still", "still=", "cascade.frames=4"):
        with pytest.raises(UserError, match="no threshold with its values"):
            diff.sweep("tiny", wrong)
    with pytest.raises(UserError, match=r"video_select\.border"):
        diff.sweep("tiny", "border=7")
