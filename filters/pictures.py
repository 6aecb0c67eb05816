"""Which pictures the networks may learn from: those of a high aesthetic score, and of near duplicates, one.
`image-embed` is left as it is, so that another threshold embeds nothing again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.groups import unit_rows
from filters.selection import NEAR_DUPLICATE, Pass, counts_of, measured, near_duplicates, reasons_of, write_choice
from mav.data.shards import ShardOutput, read_array, read_table, shard_names
from mav.errors import UserError
from mav.recipes import ImageSelect
from mav.storage import Folder

NATIVE = np.float32(4)  # outweighs any caption
AESTHETIC = "aesthetic"
DIGITS = 4  # of a score, so that it is the same whichever way its sum was taken


@dataclass(frozen=True)
class Pictures:
    """The `filters.groups.Rows` of `image-select`: what `image-embed` and `image-download` know of each picture.

    head: weight and bias of the rule's `aesthetic_head`; None: there are no scores.
    """

    images: Folder
    embeds: Folder
    rule: ImageSelect
    head: tuple[np.ndarray, float] | None = None

    @classmethod
    def open(cls, images: Folder, embeds: Folder, rule: ImageSelect) -> Self:
        """Reads the rule's head. Raises UserError when the file is none."""
        if not rule.aesthetic_head:
            return cls(images, embeds, rule)
        from mav.models.heads import read_linear_head

        return cls(images, embeds, rule, read_linear_head(rule.aesthetic_head))

    @property
    def scores(self) -> tuple[str, ...]:
        """The columns of `read` that are kept beside the choice."""
        return () if self.head is None else (AESTHETIC,)

    @property
    def tars(self) -> Folder:
        return self.images

    def names(self) -> list[str]:
        return shard_names(self.images)

    def read(self, name: str) -> pa.Table:
        """Returns key, native and, with a head, the aesthetic score. Raises UserError for the head of another CLIP."""
        table = read_table(self.embeds, f"{name}.parquet", ["key", "native"])
        if self.head is None:
            return table
        image, (weight, bias) = unit_rows(read_array(self.embeds, f"{name}.image.npy")), self.head
        if image.shape[1] != len(weight):
            raise UserError(
                f"`image_select.aesthetic_head` ({self.rule.aesthetic_head}) is for embeddings of length "
                f"{len(weight)}, but this CLIP's have {image.shape[1]}: give the matching head."
            )
        return table.append_column(AESTHETIC, pa.array((image.astype(np.float64) @ weight + bias).round(DIGITS)))

    def failures(self, scores: pa.Table) -> dict[str, np.ndarray]:
        """Returns which pictures have a low score. A score at the threshold is kept."""
        least = self.rule.aesthetic or -np.inf
        return {} if self.head is None else {AESTHETIC: scores.column(AESTHETIC).to_numpy() < least}

    def worth(self, name: str, scores: pa.Table) -> np.ndarray:
        """A picture that was not enlarged is before one that was; then the one is, whose caption fits better by CLIP's
        cosine.
        """
        image, text = (unit_rows(read_array(self.embeds, f"{name}.{kind}.npy")) for kind in ("image", "text"))
        return (image * text).sum(axis=1) + NATIVE * _native(scores).astype(np.float32)

    def hashes(self, name: str) -> np.ndarray:
        """Those in the rows of `image-download`. Raises UserError where they have none."""
        keys = read_table(self.embeds, f"{name}.parquet", ["key"]).column("key")
        try:
            rows = read_table(self.images, f"{name}.parquet", ["key", "hash"])
        except pa.ArrowInvalid:
            raise UserError(
                f"{self.images.path(name)}.parquet has no hashes: rerun image-download, or set "
                "`image_select.hash_bits` to 0."
            ) from None
        found = rows.column("hash").take(pc.index_in(keys, rows.column("key")))
        return pc.fill_null(found, 0).to_numpy().astype(np.uint64)  # exact only without nulls

    def groups(self, one_pass: Pass) -> Folder | None:
        """Returns the near duplicates that the rule asks for, as `filters.selection.near_duplicates` does."""
        return near_duplicates(self, one_pass, self.rule.hash_bits, self.embeds, self.rule.near_duplicate)


def _native(scores: pa.Table) -> np.ndarray:
    return scores.column("native").to_numpy(zero_copy_only=False).astype(bool)


@dataclass(frozen=True)
class SelectWork:
    """The shard work of `image-select`: writes NAME.parquet with key, kept and reason (null when kept) of every row.

    With a head, its aesthetic score stands beside them. groups: what `pictures.groups` returned.
    """

    pictures: Pictures
    groups: Folder | None
    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        scores = self.pictures.read(name)
        found = reasons_of(self.pictures, self.groups, name, scores)
        kept = write_choice(self.out, name, scores, found, self.pictures.scores)
        return ShardOutput(counts_of(found) | {"native": int((_native(scores) & kept).sum())}, (f"{name}.parquet",))


def agreement(kept: Mapping[str, bool], family: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Returns how the choice agrees with the truth, as `filters.clips.agreement` does for clips.

    kept: each row that came in, by its path. family: the path of the picture that it was made from, or its own. Of a
    family, all rows but one are near duplicates.
    """
    rows: dict[str, list[bool]] = {}
    for path, is_kept in kept.items():
        rows.setdefault(family.get(path, path), []).append(is_kept)
    planted = sum(len(each) - 1 for each in rows.values())
    found = sum(min(each.count(False), len(each) - 1) for each in rows.values())
    dropped = sum(each.count(False) for each in rows.values())
    return {NEAR_DUPLICATE: measured(planted, dropped, found)}
