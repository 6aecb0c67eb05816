"""The choice of clips by their scores: reasons, their order, their accounting, and the agreement with a truth."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from filters.clips import REASONS, Clips, SelectWork, agreement
from filters.selection import first_reasons, in_threads, reasons_of
from mav.data.loading.places import BOX, PART
from mav.data.shards import VIDEO_ROWS, TarWriter, read_table, shard_names, write_rows
from mav.data.videos.scores import SCORES
from mav.errors import UserError
from mav.recipes import VideoSelect
from mav.storage import Folder

GOOD = {"cut": 0.0, "cut_before": [], "cut_after": [], "cut_scores": [], "motion_global": 0.1, "motion_local": 0.4,
        "shake": 0.01, "box": [0.0, 0.0, 1.0, 1.0],
        "repeated": 0.0, "overlay": 0.1, "border": 0.0, "blank": 0.0, "hash": 0, "fps": 24.0, "frames": 48}  # fmt: skip
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
    write_rows(folder, "00000.parquet", VIDEO_ROWS | SCORES if columns is None else columns, ledger)
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
    done = SelectWork(Clips(shards, RULE), None, out)("00000")
    table = read_table(out, "00000.parquet")
    assert table["reason"].to_pylist() == [None, *REASONS, "blank"]
    assert table["kept"].to_pylist() == [True] + [False] * 9
    assert table["key"].to_pylist() == [f"{i:010d}" for i in range(1, 11)], "the failed row is the shards' own"
    assert done.counts == {
        "rows_in": 10, "rows_out": 1, "dropped": {reason: 1 + (reason == "blank") for reason in sorted(REASONS)},
        "failed": {},
    }  # fmt: skip
    (part,) = np.frombuffer(done.places, PART)
    assert [int(part[field]) for field in ("clip", "first", "last")] == [0, 0, 47], "all of the first of the tar"
    assert tuple(part["box"]) == BOX
    before = out.sha256("00000.parquet")
    assert SelectWork(Clips(shards, RULE), None, out)("00000") == done
    assert out.sha256("00000.parquet") == before


def test_a_score_at_its_threshold_is_kept(shards) -> None:
    at = {"cut": RULE.cut, "shake": RULE.shaky, "repeated": RULE.repeated, "overlay": RULE.overlay,
          "border": RULE.border, "blank": RULE.blank}  # fmt: skip
    rows = [GOOD | at | {"motion_local": RULE.still, "motion_global": 0.0}, GOOD | {"motion_local": RULE.too_fast}]
    table = pa.table({name: [row[name] for row in rows] for name in GOOD})
    assert first_reasons(Clips(Folder("unused"), RULE).failures(table)).tolist() == [None, None]


def test_agreement_counts_every_filter_for_every_clip_of_the_truth(shards) -> None:
    clips = Clips(shards, RULE)
    scores = clips.read("00000")
    truth = {"v1": [], "v4": ["cut"], "v5": ["still"], "v10": ["blank"], "v6": ["still"]}
    found = agreement(scores["videoid"].to_pylist(), clips.failures(scores), truth)
    assert found["cut"] == {"planted": 1, "dropped": 2, "found": 1, "precision": 0.5, "recall": 1.0, "f1": 0.6667}
    assert found["still"] == {"planted": 2, "dropped": 1, "found": 1, "precision": 1.0, "recall": 0.5, "f1": 0.6667}
    assert found["overlay"] == {
        "planted": 0, "dropped": 0, "found": 0, "precision": None, "recall": None, "f1": None
    }  # fmt: skip


def test_shards_without_scores_are_named_with_the_remedy(tmp_path) -> None:
    folder = Folder(str(tmp_path))
    shard(folder, [{}], VIDEO_ROWS)
    with pytest.raises(UserError, match=r"00000\.parquet has no .*: rerun video-shards"):
        Clips(folder, RULE).read("00000")


def test_of_clips_whose_middle_frames_agree_the_longest_without_other_reasons_is_kept(tmp_path) -> None:
    folder, out = Folder(str(tmp_path / "shards")), Folder(str(tmp_path / "out"))
    scene = 0x0123456789ABCDEF  # the same in all clips but the last two
    rows = [
        {"frames": 24}, {"frames": 96} | BAD["shaky"], {"frames": 48}, {"hash": scene ^ 1}, {"hash": scene ^ 0b110},
        {"hash": 0}, {"hash": 0},
    ]  # fmt: skip
    shard(folder, [GOOD | {"hash": scene} | row for row in rows])
    near = ["near_duplicate", "shaky", None, "near_duplicate", None, None, None]
    for bits, reasons in ((0, [None, "shaky", *[None] * 5]), (2, near)):
        clips = Clips(folder, dataclasses.replace(RULE, hash_bits=bits))
        done = SelectWork(clips, clips.groups(in_threads(Folder(str(tmp_path / f"{bits}")), 1)), out)("00000")
        assert read_table(out, "00000.parquet")["reason"].to_pylist() == reasons
        assert done.counts["rows_in"] == done.counts["rows_out"] + sum(done.counts["dropped"].values())
    found = reasons_of(clips, clips.groups(in_threads(folder.child("again"), 1)), "00000", clips.read("00000"))
    assert np.flatnonzero(found["near_duplicate"]).tolist() == [0, 1, 3], "a filter is asked for every clip"


def test_a_clip_with_cuts_gives_its_long_shots_and_parents_and_children_are_counted(tmp_path) -> None:
    folder, out = Folder(str(tmp_path / "shards")), Folder(str(tmp_path / "out"))
    cut = {"cut": 9.0, "cut_before": [19, 30, 60], "cut_after": [20, 40, 61], "cut_scores": [9.0, 1.5, 5.0]}
    fade = {"cut": 4.0, "cut_before": [50], "cut_after": [90], "cut_scores": [4.0]}
    short = {"cut": 9.0, "cut_before": [9, 19], "cut_after": [10, 20], "cut_scores": [9.0, 9.0], "frames": 30}
    rows = [{}, cut, cut | BAD["blank"], fade, short, {"frames": 5}]
    shard(folder, [GOOD | {"frames": 100} | row for row in rows])
    done = SelectWork(Clips(folder, dataclasses.replace(RULE, shot_seconds=1.0)), None, out)("00000")
    table = read_table(out, "00000.parquet").to_pylist()
    assert [(int(row["key"]), row["first"], row["last"], row["reason"]) for row in table] == [
        (1, 0, 99, None),
        (2, 0, 19, "short_shot"), (2, 20, 60, None), (2, 61, 99, None),
        (3, 0, 19, "blank"), (3, 20, 60, "blank"), (3, 61, 99, "blank"),
        (4, 0, 50, None), (4, 90, 99, "short_shot"),
        (5, 0, 9, "cut"), (5, 10, 19, "cut"), (5, 20, 29, "cut"),
        (6, 0, 4, None),
    ], "a weak cut parts nothing, a fade belongs to no shot, and a short clip without cuts stays"  # fmt: skip
    assert [row["kept"] for row in table] == [row["reason"] is None for row in table]
    counts = {"rows_in": 6, "rows_out": 4, "dropped": {"blank": 1, "cut": 1}, "failed": {}}
    assert done.counts == counts | {"shots": {"found": 7, "kept": 5, "short": 2}}
    parts = np.frombuffer(done.places, PART)
    assert parts[["clip", "first", "last"]].tolist() == [(0, 0, 99), (1, 20, 60), (1, 61, 99), (3, 0, 50), (5, 0, 4)]


def test_overlapping_changes_leave_no_frame_of_theirs_in_a_shot(tmp_path) -> None:
    clips = Clips(Folder("unused"), dataclasses.replace(RULE, shot_seconds=0.1))
    row = GOOD | {"cut": 9.0, "cut_before": [10, 33, 38], "cut_after": [40, 34, 60], "cut_scores": [4.0, 9.0, 4.0]}
    shots = clips.shots(pa.table({name: [value] for name, value in (row | {"frames": 80}).items()}))
    assert [(shot["first"], shot["last"]) for shot in shots] == [(0, 10), (60, 79)]


def test_a_clip_of_several_shots_is_cropped_once(tmp_path) -> None:
    folder, out = Folder(str(tmp_path / "shards")), Folder(str(tmp_path / "out"))
    cut = {"cut": 9.0, "cut_before": [49], "cut_after": [50], "cut_scores": [9.0], "frames": 100}
    shard(folder, [GOOD | cut | {"border": 0.25, "box": [0.0, 0.126, 1.0, 0.874]}, GOOD | {"frames": 100}])
    rule = dataclasses.replace(RULE, shot_seconds=1.0, crop_borders=0.25)
    counts = SelectWork(Clips(folder, rule), None, out)("00000").counts
    assert counts["shots"] == {"found": 3, "kept": 3, "short": 0}
    assert counts["cropped"] == 1


def test_borders_are_cropped_unless_too_little_is_left(tmp_path) -> None:
    folder, out = Folder(str(tmp_path / "shards")), Folder(str(tmp_path / "out"))
    wide = {"border": 0.25, "box": [0.0, 0.126, 1.0, 0.874]}
    shard(folder, [GOOD | row for row in ({}, wide, wide | {"border": 0.6})])
    for share, reasons in ((0.0, [None, "border", "border"]), (0.25, [None, None, "border"])):
        done = SelectWork(Clips(folder, dataclasses.replace(RULE, crop_borders=share)), None, out)("00000")
        assert read_table(out, "00000.parquet")["reason"].to_pylist() == reasons
        assert done.counts.get("cropped") == (1 if share else None), "whole pictures are not cropped"
    assert np.frombuffer(done.places, PART)["box"].tolist() == [list(BOX), [0, 33, 255, 222]], "rounded inwards"
