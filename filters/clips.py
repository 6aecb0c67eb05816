"""Which clips the video networks may learn from: the thresholds of `video-select` over the scores of `video-shards`.

A clip is dropped for the first reason of `REASONS` that it has, or else as a near duplicate of a better one, and may
have other reasons: `filters.selection.reasons_of` says all of them. With `shot_seconds` a clip is split at its cuts
rather than dropped, and each long shot is a sample; with `crop_borders` it is cropped to the picture within. Only
tables of rows are read, and nothing is decoded or encoded again: another threshold costs seconds and makes no shard
anew.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filters.selection import Pass, counts_of, measured, near_duplicates, reasons_of, write_choice
from mav.data.loading.places import BOX, PART
from mav.data.shards import ShardOutput, read_table, shard_names
from mav.data.videos.scores import SCORES
from mav.errors import UserError
from mav.recipes import VideoSelect
from mav.storage import Folder

# In the order of their checks.
REASONS = ("blank", "border", "cut", "still", "repeated", "too_fast", "shaky", "overlay")
SHORT_SHOT = "short_shot"  # of a clip that has longer ones
SHOT = np.dtype([("clip", "<u4"), ("first", "<u4"), ("last", "<u4"), ("long", "?")])  # a clip's row, frames of it
COLUMNS = tuple(name for name, kind in SCORES.items() if kind == "double")  # one number a clip


@dataclass(frozen=True)
class Clips:
    """The `filters.groups.Rows` of `video-select`: what the rows of `video-shards` say of each clip."""

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
        if rule.crop_borders:
            found["border"] &= score["border"] > rule.crop_borders
        if rule.shot_seconds:
            shots = self.shots(scores)
            found["cut"][shots["clip"][shots["long"]]] = False
        return {reason: found[reason] for reason in REASONS}

    def shots(self, scores: pa.Table) -> np.ndarray:
        """Returns the shots of the clips, SHOT (n,), in order. A clip that is not split is one, and long enough."""
        whole, rule = np.zeros(len(scores), SHOT), self.rule
        whole["clip"], whole["last"], whole["long"] = np.arange(len(scores)), _numbers(scores, "frames") - 1, True
        if not rule.shot_seconds:
            return whole
        split = _numbers(scores, "cut") > rule.cut
        found = [whole[~split]]
        for row in scores.add_column(0, "row", pa.array(np.arange(len(scores)))).filter(pa.array(split)).to_pylist():
            changes = zip(row["cut_before"], row["cut_after"], row["cut_scores"], strict=True)
            meant = [(before, after) for before, after, score in changes if score > rule.cut]
            least = rule.shot_seconds * row["fps"]
            shots = [(row["row"], *shot, shot[1] - shot[0] + 1 >= least) for shot in _between(meant, row["frames"])]
            found.append(np.array(shots, SHOT))
        return np.sort(np.concatenate(found), order=["clip", "first"])

    def boxes(self, scores: pa.Table) -> np.ndarray:
        """Returns the part of the picture to train on, uint8 (clips, 4), as in `mav.data.loading.places.PART`."""
        if not self.rule.crop_borders:
            return np.tile(np.array(BOX, np.uint8), (len(scores), 1))
        box = np.array(scores.column("box").to_pylist(), np.float64).reshape(-1, 2, 2) * BOX[-1]
        return np.stack([np.ceil(box[:, 0]), np.floor(box[:, 1])], axis=1).reshape(-1, 4).astype(np.uint8)

    def worth(self, name: str, scores: pa.Table) -> np.ndarray:
        """The longest clip is the best."""
        return pc.divide(scores.column("frames"), scores.column("fps")).to_numpy()

    def hashes(self, name: str) -> np.ndarray:
        return self.read(name).column("hash").to_numpy()

    def groups(self, one_pass: Pass) -> Folder | None:
        """Returns the near duplicates that the rule asks for, as `filters.selection.near_duplicates` does."""
        return near_duplicates(self, one_pass, self.rule.hash_bits)


@dataclass(frozen=True)
class SelectWork:
    """The shard work of `video-select`: writes NAME.parquet with key, first, last, kept and reason of every shot.

    A shot has the key of its clip, and its first and last frame there; the reason is null when it is kept. The counts
    are of clips, one of which is kept when any of its shots is; where clips are split, `shots` counts those of the kept
    clips: found = kept + short; where borders are cropped, `cropped` counts the kept clips that lost some. The shard's
    places in the stage's ledger are `mav.data.loading.places.PART` of each kept shot. groups: what `clips.groups`
    returned.
    """

    clips: Clips
    groups: Folder | None
    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        scores = self.clips.read(name)
        found = reasons_of(self.clips, self.groups, name, scores)
        shots = self.clips.shots(scores)
        clip = shots["clip"]
        columns = {"key": scores.column("key").take(pa.array(clip))}
        columns |= {end: pa.array(shots[end].astype(np.int32)) for end in ("first", "last")}
        reasons = {reason: mask[clip] for reason, mask in found.items()} | {SHORT_SHOT: ~shots["long"]}
        kept = write_choice(self.out, name, pa.table(columns), reasons, ("first", "last"))
        parts = np.zeros(int(kept.sum()), PART)
        for field in ("clip", "first", "last"):
            parts[field] = shots[field][kept]
        parts["box"] = self.clips.boxes(scores)[clip[kept]]
        return ShardOutput(self._counts(found, clip, parts), (f"{name}.parquet",), parts.tobytes())

    def _counts(self, found: Mapping[str, np.ndarray], clip: np.ndarray, parts: np.ndarray) -> dict[str, Any]:
        counts = counts_of(found)
        if self.clips.rule.shot_seconds:
            number = int((~np.logical_or.reduce([*found.values()]))[clip].sum())
            counts["shots"] = {"found": number, "kept": len(parts), "short": number - len(parts)}
        if self.clips.rule.crop_borders:
            counts["cropped"] = len(np.unique(parts["clip"][(parts["box"] != BOX).any(axis=1)]))
        return counts


def _numbers(scores: pa.Table, column: str) -> np.ndarray:
    return np.asarray(scores.column(column).to_numpy())


def _between(changes: Iterable[tuple[int, int]], frames: int) -> Iterator[tuple[int, int]]:
    """Yields the first and the last frame of each shot of a clip whose shots change (before, after) these frames."""
    first = 0
    for before, after in sorted(changes):
        if before >= first:
            yield first, before
        first = max(first, after)
    if first < frames:
        yield first, frames - 1


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
