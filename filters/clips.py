"""Which clips the video networks may learn from: the thresholds of `video-select` over the scores of `video-shards`.

A clip is dropped for the first reason of `REASONS` that it has, or else as a near duplicate of a better one, and may
have other reasons: `filters.selection.reasons_of` says all of them. Only ledgers are read, so that another threshold
costs seconds and makes no shard anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filters.selection import Walk, measured, near_duplicates, reasons_of, write_choice
from mav.data.shards import ShardOutput, read_table, shard_names
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


@dataclass(frozen=True)
class Clips:
    """The `filters.groups.Rows` of `video-select`: what the ledgers of `video-shards` know of each clip."""

    shards: Folder
    rule: VideoSelect

    @property
    def tars(self) -> Folder:
        return self.shards

    def names(self) -> list[str]:
        return shard_names(self.shards)

    def read(self, name: str) -> pa.Table:
        """Returns key, videoid, fps, frames and scores. Raises UserError for shards without scores."""
        with self.shards.open(f"{name}.parquet") as file:
            there = set(pq.read_schema(file).names)
        if missing := set(SCORES) - there:
            raise UserError(
                f"{self.shards.path(name)}.parquet has no {min(missing)}: rerun video-shards, which scores its clips."
            )
        table = read_table(self.shards, f"{name}.parquet", ["key", "videoid", "status", "fps", "frames", *SCORES])
        return table.filter(pc.equal(table.column("status"), "ok")).drop_columns(["status"])

    def failures(self, scores: pa.Table) -> dict[str, np.ndarray]:
        """Returns for each reason of `REASONS` which rows have it. A score at its threshold is kept."""
        score = {name: scores.column(name).to_numpy() for name in COLUMNS}
        speed, rule = np.maximum(score["motion_global"], score["motion_local"]), self.rule
        found = {name: score[name] > getattr(rule, name) for name in ("blank", "border", "cut", "repeated", "overlay")}
        found |= {"still": speed < rule.still, "too_fast": speed > rule.too_fast, "shaky": score["shake"] > rule.shaky}
        return {reason: found[reason] for reason in REASONS}

    def worth(self, name: str, scores: pa.Table) -> np.ndarray:
        """The longest clip is the best."""
        return pc.divide(scores.column("frames"), scores.column("fps")).to_numpy()

    def hashes(self, name: str) -> np.ndarray:
        return self.read(name).column("hash").to_numpy()

    def groups(self, walk: Walk) -> Folder | None:
        """Returns the near duplicates that the rule asks for, as `filters.selection.near_duplicates` does."""
        return near_duplicates(self, walk, self.rule.hash_bits)


@dataclass(frozen=True)
class SelectWork:
    """The shard work of `video-select`: writes NAME.parquet with key, kept and reason (null when kept) of every clip.

    The shard's places in the stage's ledger are the numbers of the kept clips within the tar (uint32). groups: what
    `clips.groups` returned.
    """

    clips: Clips
    groups: Folder | None
    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        scores = self.clips.read(name)
        kept, counts = write_choice(self.out, name, scores, reasons_of(self.clips, self.groups, name, scores))
        return ShardOutput(counts, (f"{name}.parquet",), np.flatnonzero(kept).astype("<u4").tobytes())


def agreement(
    ids: Sequence[str], found: Mapping[str, np.ndarray], truth: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Returns how each filter agrees with the truth: planted, dropped and found clips, precision, recall and F1.

    found: as `filters.selection.reasons_of` returns it, of the clips with these ids. truth: the reasons of each clip by
    its videoid, empty for a good one; other clips are left out. A filter is asked for all clips, also those that
    another one has dropped. A share of nothing is None.
    """
    known = np.array([videoid in truth for videoid in ids], bool)
    figures = {}
    for reason, mask in found.items():
        meant = np.array([reason in truth.get(videoid, ()) for videoid in ids], bool)
        figures[reason] = measured(int(meant.sum()), int((mask & known).sum()), int((mask & meant).sum()))
    return figures
