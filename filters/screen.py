"""Screening: which rows of a table may enter the image-text set, and why the others may not.

Checks run in one fixed order, from cheap to dear, and a dropped row carries the reason of the first it fails:
no_url, no_caption, nsfw, watermark, unknown_score, too_small, aspect, caption_length, toxic, duplicate.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from filters.nsfw import is_unsafe
from filters.toxicity import toxic_words
from filters.watermark import is_watermarked
from mav.artifact import Folder
from mav.data.laion import read_part
from mav.data.shards import ShardOutput, write_table
from mav.errors import UserError
from mav.recipe import Screening

if TYPE_CHECKING:
    import pyarrow as pa

LARGEST_SHARD = 100_000  # five digits of the key count the rows of a shard


class Screen:
    """Applies a recipe's screening to one source part, batch by batch; it remembers the part's rows to find duplicates."""

    def __init__(self, screening: Screening) -> None:
        self.screening = screening
        self.toxic = toxic_words(screening.word_lists, screening.word_exceptions, screening.obfuscations)
        self.words: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.unknown = 0  # rows kept although a score is unknown: `image-screen` looks at them
        self._seen: set[bytes] = set()

    def __call__(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """(rows kept, with all columns; rows dropped, as url, caption, reason, word)."""
        import pyarrow as pa

        reasons = np.full(len(table), "", dtype=object)
        words = np.full(len(table), None, dtype=object)
        for reason, failed in self._column_checks(table):
            reasons[np.asarray(failed) & (reasons == "")] = reason
        left = np.flatnonzero(reasons == "")
        positions, found = self.toxic.find(table.column("caption").take(pa.array(left)))
        reasons[left[positions]] = "toxic"
        words[left[positions]] = found
        left = np.flatnonzero(reasons == "")
        reasons[left[self._repeated(table.take(pa.array(left)))]] = "duplicate"

        keep = reasons == ""
        self.words.update(found)
        self.reasons.update(reasons[~keep].tolist())
        kept = table.filter(pa.array(keep))
        self.unknown += int(_either_null(kept).sum())
        dropped = table.select(["url", "caption"]).filter(pa.array(~keep))
        dropped = dropped.append_column("reason", pa.array(reasons[~keep], pa.string()))
        return kept, dropped.append_column("word", pa.array(words[~keep], pa.string()))

    def _column_checks(self, table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
        """Reason and mask of the checks that look at one row's columns, in their order."""
        import pyarrow.compute as pc

        rule = self.screening
        width, height = table.column("width"), table.column("height")

        def mask(condition: Any) -> np.ndarray:
            return np.asarray(pc.fill_null(condition, False).to_numpy())

        length = pc.utf8_length(pc.utf8_trim_whitespace(table.column("caption")))
        yield "no_url", mask(pc.equal(pc.fill_null(pc.binary_length(table.column("url")), 0), 0))
        yield "no_caption", mask(pc.equal(pc.fill_null(length, 0), 0))
        yield "nsfw", mask(is_unsafe(table.column("punsafe"), rule.punsafe_threshold))
        yield "watermark", mask(is_watermarked(table.column("pwatermark"), rule.pwatermark_threshold))
        if rule.unknown_scores == "drop":
            yield "unknown_score", _either_null(table)
        if rule.min_side:
            yield "too_small", mask(pc.less(pc.min_element_wise(width, height), rule.min_side))
        if rule.max_aspect:
            longer, shorter = pc.max_element_wise(width, height), pc.max_element_wise(pc.min_element_wise(width, height), 1)
            yield "aspect", mask(pc.greater(pc.divide(pc.cast(longer, "double"), shorter), rule.max_aspect))
        yield "caption_length", mask(pc.or_(pc.less(length, rule.min_caption), pc.greater(length, rule.max_caption)))

    def _repeated(self, table: pa.Table) -> list[int]:
        """Positions of rows whose address and caption both came before in this part."""
        repeated = []
        for position, (url, caption) in enumerate(zip(table.column("url").to_pylist(), table.column("caption").to_pylist(), strict=True)):
            pair = hashlib.blake2b(f"{url}\0{caption}".encode(errors="surrogatepass"), digest_size=8).digest()
            if pair in self._seen:
                repeated.append(position)
            self._seen.add(pair)
        return repeated


def _either_null(table: pa.Table) -> np.ndarray:
    import pyarrow.compute as pc

    return np.asarray(pc.or_(pc.is_null(table.column("punsafe")), pc.is_null(table.column("pwatermark"))).to_numpy())


@dataclass(frozen=True)
class MetadataWork:
    """The shard work of `image-metadata`: one source part in, screened shards of at most `rows_per_shard` rows out.

    Writes `shards/PPPPP-KKKKK.parquet` and `dropped/PPPPP.parquet`, PPPPP being the part's number in `parts` and the shard's name.
    """

    parts: tuple[str, ...]
    screening: Screening
    rows_per_shard: int
    out: Folder

    def names(self) -> list[str]:
        """One name for each source part."""
        return [f"{number:05d}" for number in range(len(self.parts))]

    def __call__(self, name: str) -> ShardOutput:
        import pyarrow as pa

        if not 1 <= self.rows_per_shard <= LARGEST_SHARD:
            raise UserError(f"`image_metadata.rows_per_shard` is {self.rows_per_shard}: it must be 1 to {LARGEST_SHARD}.")
        screen = Screen(self.screening)
        dropped: list[pa.Table] = []
        waiting: list[pa.Table] = []
        files: list[str] = []
        rows_in = rows_out = 0
        for batch in read_part(self.parts[int(name)]):
            kept, refused = screen(batch)
            rows_in, rows_out = rows_in + len(batch), rows_out + len(kept)
            dropped.append(refused)
            waiting.append(kept)
            while sum(map(len, waiting)) >= self.rows_per_shard:
                table = pa.concat_tables(waiting)
                self._write(name, files, table.slice(0, self.rows_per_shard))
                waiting = [table.slice(self.rows_per_shard)]
        if sum(map(len, waiting)):
            self._write(name, files, pa.concat_tables(waiting))
        if dropped:
            write_table(self.out, f"dropped/{name}.parquet", pa.concat_tables(dropped))
            files.append(f"dropped/{name}.parquet")
        counts = {
            "rows_in": rows_in,
            "rows_out": rows_out,
            "dropped": dict(sorted(screen.reasons.items())),
            "failed": {},
            "toxic_words": dict(sorted(screen.words.items())),
            "unknown_scores": screen.unknown,
        }
        return ShardOutput(counts, tuple(files))

    def _write(self, part: str, files: list[str], table: pa.Table) -> None:
        import pyarrow as pa

        number = len(files)
        keys = pa.array([f"{part}{number:05d}{row:05d}" for row in range(len(table))])
        files.append(f"shards/{part}-{number:05d}.parquet")
        write_table(self.out, files[-1], table.add_column(0, "key", keys))
