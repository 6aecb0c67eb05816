"""Which clips the video networks may learn from: the thresholds of `video-select` over the scores of `video-shards`.

A clip is dropped for the first reason of `REASONS` that it has, and may have others: `failures` says all of them. Only
ledgers are read, so that another threshold costs seconds and makes no shard anew.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mav.data.shards import ShardOutput, read_table, write_table
from mav.data.videos.scores import SCORES
from mav.errors import UserError
from mav.recipes import VideoSelect
from mav.storage import Folder

REASONS = (
    "blank",
    "border",
    "cut",
    "still",
    "repeated",
    "too_fast",
    "shaky",
    "overlay",
)  # in the order of their checks
COLUMNS = tuple(name for name, kind in SCORES.items() if kind == "double")  # one number a clip


def read_scores(shards: Folder, name: str) -> pa.Table:
    """Returns key, videoid and scores of the clips of a shard of `video-shards`, in the order of its tar."""
    with shards.open(f"{name}.parquet") as file:
        there = set(pq.read_schema(file).names)
    if missing := set(SCORES) - there:
        raise UserError(
            f"{shards.path(name)}.parquet has no {min(missing)}: rerun video-shards, which scores its clips."
        )
    table = read_table(shards, f"{name}.parquet", ["key", "videoid", "status", *SCORES])
    return table.filter(pc.equal(table.column("status"), "ok")).drop_columns(["status"])


def failures(scores: pa.Table, rule: VideoSelect) -> dict[str, np.ndarray]:
    """Returns for each reason of `REASONS` which rows have it, bool (rows,). A score at its threshold is kept."""
    score = {name: scores.column(name).to_numpy() for name in COLUMNS}
    speed = np.maximum(score["motion_global"], score["motion_local"])
    found = {name: score[name] > getattr(rule, name) for name in ("blank", "border", "cut", "repeated", "overlay")}
    found |= {"still": speed < rule.still, "too_fast": speed > rule.too_fast, "shaky": score["shake"] > rule.shaky}
    return {reason: found[reason] for reason in REASONS}


def first_failures(found: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the first reason of each row, None where there is none."""
    masks = list(found.values())
    return np.select(masks, [np.array(reason, object) for reason in found], np.array(None, object))


@dataclass(frozen=True)
class SelectWork:
    """The shard work of `video-select`: writes NAME.parquet with key, kept and reason (null when kept) of every clip.

    The shard's places in the stage's ledger are the numbers of the kept clips within the tar (uint32).
    """

    shards: Folder
    rule: VideoSelect
    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        scores = read_scores(self.shards, name)
        reasons = first_failures(failures(scores, self.rule))
        kept = np.array([reason is None for reason in reasons], bool)
        columns = {"key": scores.column("key"), "kept": pa.array(kept, pa.bool_())}
        write_table(self.out, f"{name}.parquet", pa.table({**columns, "reason": pa.array(reasons, pa.string())}))
        counts = {"rows_in": len(kept), "rows_out": int(kept.sum()), "dropped": tally(reasons), "failed": {}}
        return ShardOutput(counts, (f"{name}.parquet",), np.flatnonzero(kept).astype("<u4").tobytes())


def tally(reasons: Iterable[str | None]) -> dict[str, int]:
    """Returns how often each reason occurs, those that do not left out."""
    given = list(reasons)
    return {reason: given.count(reason) for reason in sorted(REASONS) if reason in given}


def agreement(scores: pa.Table, rule: VideoSelect, truth: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Returns how each filter agrees with the truth: planted, dropped and found clips, precision, recall and F1.

    truth: the reasons of each clip by its videoid, empty for a good one; other clips are left out. A filter is asked
    for all clips, also those that another one has dropped. A share of nothing is None.
    """
    ids = scores.column("videoid").to_pylist()
    known = np.array([videoid in truth for videoid in ids], bool)
    figures = {}
    for reason, mask in failures(scores, rule).items():
        meant = np.array([reason in truth.get(videoid, ()) for videoid in ids], bool)
        figures[reason] = measured(int(meant.sum()), int((mask & known).sum()), int((mask & meant).sum()))
    return figures


def measured(planted: int, dropped: int, found: int) -> dict[str, Any]:
    """Returns these numbers of rows, with the precision, recall and F1 that follow. A share of nothing is None."""
    shares = {"precision": (found, dropped), "recall": (found, planted), "f1": (2 * found, dropped + planted)}
    ratios = {name: round(n / of, 4) if of else None for name, (n, of) in shares.items()}
    return {"planted": planted, "dropped": dropped, "found": found, **ratios}
