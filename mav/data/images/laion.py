"""LAION-style tables: recognises what their columns mean and reads them row group by row group from any storage.

These forms are known, and any table that pairs addresses with captions: plain LAION-2B-en (SAMPLE_ID, URL, TEXT,
HEIGHT, WIDTH, LICENSE, NSFW, similarity), whose WIDTH and HEIGHT are swapped and whose NSFW is a tag; joined with
scores (URL, TEXT, WIDTH, HEIGHT, similarity, hash, punsafe, pwatermark), and aesthetic, which adds a column; Re-LAION
(url, caption, width, height, punsafe, pwatermark). A digest of the picture (md5, sha256, sha512 or a textual `hash`) is
kept and checked when the picture is fetched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from mav.data.images.columns import is_textual, numbers, texts
from mav.data.list_files import PACKED_BYTES, matching, refuse_twins
from mav.data.parquet import open_parquet
from mav.errors import UserError
from mav.storage.urls import storage_of

# digest: lower-case hex of the picture's bytes before any change: md5, sha256 or sha512 by its length.
TYPES = {
    "url": "string", "caption": "string", "width": "int32", "height": "int32", "punsafe": "float",
    "pwatermark": "float", "hash": "int64", "digest": "string",
}  # fmt: skip
DIGESTS = ("sha256", "sha512", "md5", "hash")  # columns, in any case, that may hold digests; the first counts
HEX = r"^(?:[0-9a-f]{32}|[0-9a-f]{64}|[0-9a-f]{128})$"
UNSAFE = ("NSFW", "TRUE")  # tags, in capitals
SCORES = ("punsafe", "pwatermark")  # probabilities
BATCH_ROWS = 65_536
LARGE_GROUP = 256 << 20  # bytes; larger row groups are read in pages, smaller ones whole, which is faster
PAGE_BYTES = 4 << 20


@dataclass(frozen=True)
class Schema:
    """A recognised form. columns: our column -> the table's; tag, digest: names of such columns, or empty."""

    name: str
    columns: Mapping[str, str]
    tag: str = ""
    digest: str = ""


def recognise(columns: Sequence[str], path: str) -> Schema:
    """Returns the form of a table. Raises UserError that lists the columns, found and expected, when it has none."""
    plain = {"URL", "TEXT"} <= set(columns)
    # Names count in any case; of two that differ by nothing else, the one as it is published.
    have = {column.lower(): column for column in reversed(columns)}
    have |= {name.lower(): name for name in columns if name == (name.upper() if plain else name.lower())}
    found = {name: have[name] for name in TYPES if name in have}
    scored = set(SCORES) <= set(have)
    if "url" in have and "text" in have and (plain or "caption" not in have):
        found["caption"] = have["text"]
        if {"sample_id", "nsfw"} <= set(have) and "punsafe" not in have:
            turned = {"width": "height", "height": "width"}
            swapped = {ours: have[theirs] for ours, theirs in turned.items() if theirs in have}
            return Schema("plain LAION-2B-en, width and height put right", found | swapped, tag=have["nsfw"])
        aesthetic = any(column.startswith("aesthetic") for column in have)
        return Schema("aesthetic" if scored and aesthetic else "joined" if scored else "URL and TEXT", found)
    if "url" in have and "caption" in have:
        return Schema("Re-LAION" if scored else "url and caption", found)
    raise UserError(
        f"{path} is no LAION-style table: it has the columns {', '.join(columns) or 'none'}, and expected are URL, "
        "TEXT (with WIDTH, HEIGHT, punsafe, pwatermark where known) or url, caption (with width, height, punsafe, "
        "pwatermark)."
    )


def source_parts(sources: Sequence[str], tell: Callable[[str], None] | None = None) -> list[str]:
    """Returns the paths of all source parts in order (`list_files.matching`). Raises UserError when there is none."""
    paths = matching(sources, "image_metadata.sources", tell)
    if not paths:
        raise UserError("`image_metadata.sources` names no table: give it the paths of LAION-style parquet files.")
    return paths


def read_part(path: str, batch_rows: int = BATCH_ROWS, sizes: bool = True) -> tuple[Schema, Iterator[pa.Table]]:
    """Returns the form of a part, and its rows in batches with the columns of `TYPES`, null where there is none or NaN.

    Row groups are read one by one, a few pages at a time. sizes: whether width and height are needed; otherwise they
    are null where their columns cannot be read. Raises UserError for a file that is no such table.
    """
    with _opened(path) as parquet:
        names = parquet.schema_arrow.names
        digest = _digest_column(parquet.schema_arrow)
    schema = recognise(names, path)
    if digest and digest == schema.columns.get("hash"):  # a textual `hash` is no hash of address and caption
        schema = replace(schema, columns={ours: theirs for ours, theirs in schema.columns.items() if ours != "hash"})
    schema = replace(schema, digest=digest)

    wanted = sorted({*schema.columns.values(), schema.tag, schema.digest} - {""})
    refuse_twins(names, wanted, path)
    return schema, (_canonical(table, schema, path, sizes) for table in _tables(path, wanted, batch_rows))


def part_rows(path: str) -> int:
    """Returns the number of rows of a part. Raises UserError like `read_part`."""
    with _opened(path) as parquet:
        return int(parquet.metadata.num_rows)


def _tables(path: str, columns: list[str], batch_rows: int) -> Iterator[pa.Table]:
    """Yields the rows of a part as they are stored."""
    with _opened(path) as parquet:
        for batch in parquet.iter_batches(batch_size=batch_rows, columns=columns, use_threads=False):
            yield pa.Table.from_batches([batch])


def hash_column(path: str) -> np.ndarray | None:
    """Returns the `hash` of a whole part, int64 (rows,), or None without such a column of integers without gaps.

    Raises UserError like `read_part`.
    """
    with _opened(path) as parquet:
        schema = parquet.schema_arrow
        if "hash" not in schema.names or schema.field("hash").type != pa.int64():
            return None
        hashes, at = np.empty(parquet.metadata.num_rows, np.int64), 0
        for batch in parquet.iter_batches(batch_size=1 << 20, columns=["hash"], use_threads=False):
            if batch.column(0).null_count:
                return None
            hashes[at : at + len(batch)] = batch.column(0)
            at += len(batch)
    return hashes


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Opens the `pyarrow.parquet.ParquetFile` at a path. Its errors, also of later reads, become UserErrors."""
    try:
        # A local file is opened by its path, which parquet reads best; any other through its storage.
        fs, name = storage_of(path)
        with open(name, "rb") if isinstance(fs, LocalFileSystem) else fs.open(name, "rb") as file:
            metadata = pq.read_metadata(file)
            groups = (metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
            buffer_size = PAGE_BYTES if max(groups, default=0) > LARGE_GROUP else 0
            with open_parquet(file, metadata=metadata, buffer_size=buffer_size, pre_buffer=False) as parquet:
                yield parquet
    except FileNotFoundError:
        raise UserError(f"There is no file {path}: correct `image_metadata.sources`.") from None
    except (pa.ArrowException, OSError) as error:
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} cannot be read as parquet ({what}): {_remedy(path)}.") from None
    except ImportError as error:
        raise UserError(f"{path} needs a storage package that is not installed ({error}).") from None


def _remedy(path: str) -> str:
    """Returns what to do about a file that is no whole parquet file, by how it begins."""
    fs, name = storage_of(path)
    if fs.isdir(name):
        return f"it is a folder, whose tables are {path.rstrip('/')}/*.parquet"
    with fs.open(name, "rb") as file:
        head = file.read(8)
    if head.startswith(PACKED_BYTES):
        return "unpack it"
    if head[:4] in (b"PAR1", b""):
        return "bring the file again"
    return "write the table as parquet, as pandas does with `read_csv(...).to_parquet(...)`"


def _digest_column(schema: pa.Schema) -> str:
    """Returns the column that holds a digest of the picture as text, or an empty string."""
    textual = {field.name.lower(): field.name for field in schema if is_textual(field.type)}
    return next((textual[name] for name in DIGESTS if name in textual), "")


def _canonical(table: pa.Table, schema: Schema, path: str, sizes: bool) -> pa.Table:
    """Returns a table with the columns and types of `TYPES`. Raises UserError naming a column that cannot be read."""

    def read(column: str, kind: str) -> pa.ChunkedArray:
        target = pa.type_for_alias(kind)
        stored = table.column(column)
        found = texts(stored, column.lower() == "url") if kind == "string" else numbers(stored, target)
        if found is None and not sizes and column in (schema.columns.get("width"), schema.columns.get("height")):
            return pa.nulls(len(table), target)
        if found is None:
            what = "text" if kind == "string" else "numbers"
            raise UserError(f"{path}: the column {column} is of the type {stored.type}: write it as {what}, one a row.")
        return found

    columns: dict[str, Any] = {}
    for name, kind in TYPES.items():
        theirs = schema.digest if name == "digest" else schema.columns.get(name, "")
        # A hash of another type is no hash of address and caption, and nobody needs it.
        if not theirs or (name == "hash" and not pa.types.is_integer(table.column(theirs).type)):
            columns[name] = pa.nulls(len(table), pa.type_for_alias(kind))
        elif name == "hash":
            columns[name] = table.column(theirs).cast(pa.int64(), safe=False)
        else:
            columns[name] = read(theirs, kind)
            if name in SCORES:  # -1 stands for unknown, and must not pass for a low score
                negative = pc.fill_null(pc.less(columns[name], 0), False)
                columns[name] = pc.if_else(negative, pa.scalar(None, pa.float32()), columns[name])
    columns["url"] = pc.utf8_trim_whitespace(columns["url"])  # as browsers do
    if schema.digest:
        text = pc.ascii_lower(pc.utf8_trim_whitespace(columns["digest"]))
        columns["digest"] = pc.if_else(pc.match_substring_regex(text, HEX), text, pa.scalar(None, pa.string()))
    if schema.tag:
        tags = pc.utf8_upper(pc.utf8_trim_whitespace(read(schema.tag, "string")))
        unsafe = pc.fill_null(pc.is_in(tags, pa.array(UNSAFE)), False)
        columns["punsafe"] = pc.if_else(unsafe, pa.scalar(1.0, pa.float32()), pa.scalar(None, pa.float32()))
    return pa.table(columns)
