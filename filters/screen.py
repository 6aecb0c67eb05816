"""Screening: which rows of a table may enter the image-text set, and why the others may not.

The checks run in a fixed order, the cheap ones first, and a dropped row carries the reason of the first one it fails.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filters.duplicates import NO_HASHES, Repeats, SeenRows, WrongHashError, pair_hashes, repeats_of
from filters.toxicity import toxic_words
from mav.data.images.laion import BATCH_ROWS, SCORES, Schema, hash_column, read_part
from mav.data.shards import ShardOutput
from mav.recipes import Screening
from mav.storage import Folder

REASONS = (
    "no_url", "no_caption", "nsfw", "watermark", "unknown_score", "too_small", "aspect", "caption_length",
    "toxic", "duplicate",
)  # fmt: skip
BINS = 20  # of a score's histogram
PAGE_BYTES = 256 << 10  # of a shard: a page stays in the processor's cache


def reaches(score: pa.ChunkedArray, threshold: float) -> pa.ChunkedArray:
    """Returns True where a score is at or above its threshold, the boundary included, and False where it is unknown."""
    return pc.fill_null(pc.greater_equal(score, threshold), False)


class Screen:
    """Applies a recipe's screening to one source part, batch by batch. It remembers the part's rows to find duplicates.

    seen: hashes (`filters.duplicates`) of rows in earlier parts. repeats: says which rows of the part can be
    duplicates; None: all can.
    """

    def __init__(self, screening: Screening, seen: np.ndarray = NO_HASHES, repeats: Repeats | None = None) -> None:
        self.screening = screening
        self.toxic = toxic_words(screening.word_lists, screening.word_exceptions, screening.obfuscations)
        self.rows_in = self.rows_out = 0
        self.words: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.unknown = 0  # rows kept although a score is unknown: `image-screen` estimates it
        self.histograms = {score: np.zeros(BINS + 1, np.int64) for score in SCORES}  # the last bin: unknown
        self._seen = SeenRows(seen)
        self._repeats = repeats

    def __call__(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Returns the rows kept, with all columns, and the rows dropped, as url, caption, reason, word."""
        code = np.zeros(len(table), np.int8)  # 0: kept; otherwise the index of the reason in REASONS, plus one
        for reason, failed in self._column_checks(table):
            code[failed & (code == 0)] = REASONS.index(reason) + 1
        positions, found = self.toxic.find(table.column("caption"))
        left = code[positions] == 0
        toxic, found = positions[left], [word for word, first in zip(found, left, strict=True) if first]
        code[toxic] = REASONS.index("toxic") + 1
        pairs = np.flatnonzero(code == 0 if self._repeats is None else self._repeats(table) & (code == 0))
        repeated = self._seen.repeated(pair_hashes(table.select(["url", "caption"]).take(pa.array(pairs))))
        code[pairs[repeated]] = REASONS.index("duplicate") + 1

        kept, refused = table.filter(pa.array(code == 0)), np.flatnonzero(code)
        self._count(table, kept, code, found)
        words = np.full(len(table), None, dtype=object)
        words[toxic] = found
        dropped = table.select(["url", "caption"]).take(pa.array(refused))
        reasons = pa.DictionaryArray.from_arrays(pa.array(code[refused] - 1), pa.array(REASONS)).dictionary_decode()
        dropped = dropped.append_column("reason", reasons)
        return kept, dropped.append_column("word", pa.array(words[refused], pa.string()))

    def counts(self) -> dict[str, Any]:
        """Returns the rows in and out, by reason and by word, and histograms of the scores by the bins' lower edges."""
        edges = [f"{edge / BINS:.2f}" for edge in range(BINS)] + ["unknown"]
        histograms = {f"{score}_histogram": bins.tolist() for score, bins in self.histograms.items()}
        dropped, words = dict(sorted(self.reasons.items())), dict(sorted(self.words.items()))
        counts = {"rows_in": self.rows_in, "rows_out": self.rows_out, "dropped": dropped, "failed": {}}
        counts |= {name: dict(zip(edges, bins, strict=True)) for name, bins in histograms.items()}
        return counts | {"toxic_words": words, "unknown_scores": self.unknown}

    def _count(self, table: pa.Table, kept: pa.Table, code: np.ndarray, words: list[str]) -> None:
        self.rows_in, self.rows_out = self.rows_in + len(table), self.rows_out + len(kept)
        self.words.update(words)
        tally = np.bincount(code, minlength=len(REASONS) + 1).tolist()[1:]
        self.reasons.update({reason: n for reason, n in zip(REASONS, tally, strict=True) if n})
        self.unknown += int(_unscored(kept).sum())
        for score, bins in self.histograms.items():
            values = table.column(score).to_numpy()
            known = values[~np.isnan(values)]
            bins += np.bincount(np.clip(known * BINS, 0, BINS - 1).astype(np.int64), minlength=BINS + 1)
            bins[-1] += len(values) - len(known)

    def _column_checks(self, table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the reason and the mask of the checks that look at one row's columns, in their order."""
        rule = self.screening
        width, height = table.column("width"), table.column("height")

        def mask(condition: Any) -> np.ndarray:
            return np.asarray(pc.fill_null(condition, False).to_numpy(), dtype=bool)

        length = _lengths(table.column("caption"), rule.min_caption, rule.max_caption)
        yield "no_url", mask(pc.equal(pc.fill_null(pc.binary_length(table.column("url")), 0), 0))
        yield "no_caption", length == 0
        yield "nsfw", mask(reaches(table.column("punsafe"), rule.punsafe_threshold))
        yield "watermark", mask(reaches(table.column("pwatermark"), rule.pwatermark_threshold))
        if rule.unknown_scores == "drop":
            yield "unknown_score", _unscored(table)
        if rule.min_side:
            yield "too_small", mask(pc.less(pc.min_element_wise(width, height), rule.min_side))
        if rule.max_aspect:
            longer = pc.cast(pc.max_element_wise(width, height), "double")
            shorter = pc.max_element_wise(pc.min_element_wise(width, height), 1)
            yield "aspect", mask(pc.greater(pc.divide(longer, shorter), rule.max_aspect))
        yield "caption_length", (length < rule.min_caption) | (length > rule.max_caption)


def _lengths(captions: pa.ChunkedArray, least: int, most: int) -> np.ndarray:
    """Returns the characters of each caption without blanks at its ends, or its bytes if those keep both limits.

    A character is one to four bytes, and few captions begin or end with a byte that may be a blank, so few are counted.
    """
    texts = pc.fill_null(captions.combine_chunks(), "")
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    signs = np.frombuffer(data or b"", np.int8)
    lengths = np.diff(bounds)
    unclear = (lengths < 4 * least) | (lengths > most)
    full = np.flatnonzero(lengths)
    # As signed bytes, blanks are at most 32 in ASCII and negative beyond it.
    unclear[full] |= np.minimum(signs[bounds[full]], signs[bounds[full + 1] - 1]) <= 32
    lengths[unclear] = pc.utf8_length(pc.utf8_trim_whitespace(texts.filter(pa.array(unclear))))
    return lengths


def _unscored(table: pa.Table) -> np.ndarray:
    """Returns True for the rows of which at least one score is unknown."""
    return np.asarray(pc.or_(*(pc.is_null(table.column(score)) for score in SCORES)).to_numpy())


def write_plain(table: pa.Table, file: IO[bytes]) -> None:
    """Writes parquet the way that is fastest to write and to read: without compression and without dictionaries.

    Texts hardly repeat, and the tables are a thousandth of the size of the pictures they lead to.
    """
    buffer = pa.BufferOutputStream()  # pages go to the file at once, not each through Python
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False, "data_page_size": PAGE_BYTES}
    pq.write_table(table, buffer, **options)
    file.write(buffer.getvalue())


@dataclass(frozen=True)
class MetadataWork:
    """The shard work of `image-metadata`: screens one source part into shards of at most `rows_per_shard` rows.

    It writes `shards/PPPPP-KKKKK.parquet` and `dropped/PPPPP.parquet`; PPPPP is the part's number in `parts` and the
    shard's name. repeats: the result of `filters.duplicates.RepeatWork` across parts, when the recipe asks for that.
    """

    parts: tuple[str, ...]
    screening: Screening
    rows_per_shard: int
    out: Folder
    repeats: Folder | None = None

    def names(self) -> list[str]:
        """Returns one name for each source part."""
        return [f"{number:05d}" for number in range(len(self.parts))]

    def __call__(self, name: str) -> ShardOutput:
        if self.repeats is not None:
            return self._screened(name, Screen(self.screening, repeats_of(self.repeats, name)))
        hashes = hash_column(self.parts[int(name)])
        if hashes is not None:
            with suppress(WrongHashError):
                return self._screened(name, Screen(self.screening, repeats=Repeats(hashes)))
        return self._screened(name, Screen(self.screening))

    def _screened(self, name: str, screen: Screen) -> ShardOutput:
        schema, batches = self._read(name)
        shards = _Shards(self.out, name, self.rows_per_shard)
        try:
            with _dropped_rows(self.out, f"dropped/{name}.parquet") as drop:
                for kept, refused in map(screen, batches):
                    shards.add(kept)
                    drop(refused)
        except WrongHashError:
            for file in shards.files:
                self.out.remove(file)
            raise
        shards.close()
        counts = screen.counts() | {"forms": {schema.name: screen.rows_in}}
        return ShardOutput(counts, (*shards.files, f"dropped/{name}.parquet"))

    def kept_rows(self, name: str) -> Iterator[pa.Table]:
        """Yields the rows that the screening keeps of a part, batch by batch, and writes nothing."""
        return (kept for kept, _ in map(Screen(self.screening), self._read(name)[1]))

    def _read(self, name: str) -> tuple[Schema, Iterator[pa.Table]]:
        sizes = bool(self.screening.min_side or self.screening.max_aspect)
        return read_part(self.parts[int(name)], sizes=sizes)


class _Shards:
    """Collects rows and writes them with their keys into files of `size` rows."""

    def __init__(self, out: Folder, part: str, size: int) -> None:
        self.files: list[str] = []
        self._out, self._part, self._size = out, part, size
        self._waiting: list[pa.Table] = []
        self._count = 0
        keys = np.array([f"{part}{0:05d}{row:05d}".encode() for row in range(size)])
        self._keys = keys.view(np.uint8).reshape(size, -1)

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._count += len(table)
        if self._count >= self._size:
            whole, at = pa.concat_tables(self._waiting), 0
            for at in range(0, self._count - self._size + 1, self._size):
                self._write(whole.slice(at, self._size))
            self._waiting = [whole.slice(at + self._size)]
            self._count = len(self._waiting[0])

    def close(self) -> None:
        if self._count:
            self._write(pa.concat_tables(self._waiting))

    def _write(self, table: pa.Table) -> None:
        number, rows = f"{len(self.files):05d}", len(table)
        self._keys[:, -10:-5] = np.frombuffer(number.encode(), np.uint8)
        offsets = np.arange(rows + 1, dtype=np.int32) * self._keys.shape[1]
        keys = pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(self._keys[:rows].tobytes()))
        self.files.append(f"shards/{self._part}-{number}.parquet")
        with self._out.create(self.files[-1]) as file:
            write_plain(table.add_column(0, "key", keys), file)


@contextmanager
def _dropped_rows(out: Folder, name: str) -> Iterator[Callable[[pa.Table], None]]:
    """Gives a function that writes tables of dropped rows into one file, in groups of about a batch."""
    schema = pa.schema([(column, pa.string()) for column in ("url", "caption", "reason", "word")])
    options = {"compression": "none", "use_dictionary": ["reason", "word"]}
    waiting: list[pa.Table] = []
    with out.create(name) as file, pq.ParquetWriter(file, schema, **options) as writer:

        def drop(table: pa.Table) -> None:
            waiting.append(table)
            if sum(map(len, waiting)) >= BATCH_ROWS:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()

        yield drop
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
