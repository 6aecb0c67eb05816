"""LAION-style tables: which columns mean what, read row group by row group from any storage.

Four published forms are known, and any table that at least pairs addresses with captions:

- plain LAION-2B-en (SAMPLE_ID, URL, TEXT, HEIGHT, WIDTH, LICENSE, NSFW, similarity): its WIDTH and HEIGHT are swapped, and put right here;
  NSFW is a tag (UNLIKELY, UNSURE, NSFW) of which only NSFW says something certain;
- joined with scores (URL, TEXT, WIDTH, HEIGHT, similarity, hash, punsafe, pwatermark), and aesthetic, which adds a column;
- Re-LAION (url, caption, width, height, punsafe, pwatermark).

A digest of the picture itself, where a table has one (columns md5, sha256 or sha512, or a textual `hash`), travels along and is
checked when the picture is fetched. LAION's numeric `hash` is of address and caption and says nothing of the picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mav.data.list_files import matching
from mav.errors import UserError

TYPES = {
    "url": "string",
    "caption": "string",
    "width": "int32",
    "height": "int32",
    "punsafe": "float",
    "pwatermark": "float",
    "hash": "int64",
    "digest": "string",  # lower-case hex of the picture's bytes, as they come: md5, sha256 or sha512 by its length
}
DIGESTS = ("sha256", "sha512", "md5", "hash")  # columns, in any case, that may hold one; the first there is counts
HEX = r"^(?:[0-9a-f]{32}|[0-9a-f]{64}|[0-9a-f]{128})$"
BATCH_ROWS = 65_536
LARGE_GROUP = 256 << 20  # bytes of a row group, from which on its columns are read
PAGE_BYTES = 4 << 20  # so much at a time, whatever its size; smaller ones are read whole, which is faster


@dataclass(frozen=True)
class Schema:
    """A recognised form: our column -> the table's."""

    name: str
    columns: Mapping[str, str]
    tag: str = ""  # column of NSFW tags, where there are tags and no probabilities
    digest: str = ""  # column of the pictures' digests


def recognise(columns: Sequence[str], path: str) -> Schema:
    """Which form a table has. Raises UserError that lists the columns found and expected when it is none of them."""
    have = set(columns)
    if {"URL", "TEXT"} <= have:
        named = {"url": "URL", "caption": "TEXT", "width": "WIDTH", "height": "HEIGHT"}
        named |= {name: name for name in ("punsafe", "pwatermark", "hash")}
        found = {ours: theirs for ours, theirs in named.items() if theirs in have}
        if {"SAMPLE_ID", "NSFW"} <= have and "punsafe" not in have:
            swapped = {ours: theirs for ours, theirs in (("width", "HEIGHT"), ("height", "WIDTH")) if theirs in have}
            return Schema("plain LAION-2B-en, width and height put right", found | swapped, tag="NSFW")
        scored = {"punsafe", "pwatermark"} <= have
        aesthetic = any(column.lower().startswith("aesthetic") for column in have)
        return Schema("aesthetic" if scored and aesthetic else "joined" if scored else "URL and TEXT", found)
    if {"url", "caption"} <= have:
        return Schema(
            "Re-LAION" if {"punsafe", "pwatermark"} <= have else "url and caption",
            {name: name for name in TYPES if name in have},
        )
    raise UserError(
        f"{path} is no LAION-style table: it has the columns {', '.join(columns) or 'none'}, and expected are URL, TEXT (with WIDTH, "
        "HEIGHT, punsafe, pwatermark where known) or url, caption (with width, height, punsafe, pwatermark)."
    )


def source_parts(sources: Sequence[str]) -> list[str]:
    """Paths of all source parts in order (`list_files.matching`). No part at all is a UserError."""
    paths = matching(sources, "image_metadata.sources")
    if not paths:
        raise UserError("`image_metadata.sources` names no table: give it the paths of LAION-style parquet files.")
    return paths


def read_part(path: str, batch_rows: int = BATCH_ROWS) -> tuple[Schema, Iterator[pa.Table]]:
    """The form of a part, and its rows in batches with the columns of `TYPES`, null where the table has none or holds NaN.

    Row group by row group, of which a few pages are in memory at a time. Raises UserError when the file is absent, is not parquet, or
    has other columns.
    """

    def batches() -> Iterator[pa.Table]:
        wanted = sorted(
            {
                *schema.columns.values(),
                *([schema.tag] if schema.tag else []),
                *([schema.digest] if schema.digest else []),
            }
        )
        with _opened(path) as parquet:
            for batch in parquet.iter_batches(batch_size=batch_rows, columns=wanted, use_threads=False):
                yield _canonical(pa.Table.from_batches([batch]), schema)

    with _opened(path) as parquet:
        schema = recognise(parquet.schema_arrow.names, path)
        column = _digest_column(parquet.schema_arrow)
    if column == schema.columns.get("hash"):
        schema = replace(
            schema, columns={ours: theirs for ours, theirs in schema.columns.items() if ours != "hash" or not column}
        )
    schema = replace(schema, digest=column)
    return schema, batches()


def hash_column(path: str) -> np.ndarray | None:
    """int64 (rows,): the `hash` of a whole part, or None when it has no such column of integers or one with gaps. Raises as `read_part`."""
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
    """The `pyarrow.parquet.ParquetFile` at a path. Whatever is wrong with it is a UserError, also when it shows while rows are read."""
    try:
        # A local file by its path, which parquet reads best; any other through its storage.
        with open(path, "rb") if "://" not in path else fsspec.open(path, "rb") as file:
            facts = pq.read_metadata(file)
            largest = max((facts.row_group(i).total_byte_size for i in range(facts.num_row_groups)), default=0)
            with pq.ParquetFile(
                file, metadata=facts, buffer_size=PAGE_BYTES if largest > LARGE_GROUP else 0, pre_buffer=False
            ) as parquet:
                yield parquet
    except FileNotFoundError:
        raise UserError(f"There is no file {path}: correct `image_metadata.sources`.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} cannot be read as parquet ({str(error).splitlines()[0]}): bring the file again."
        ) from None
    except ImportError as error:
        raise UserError(f"{path} needs a storage package that is not installed ({error}).") from None


def _digest_column(schema: pa.Schema) -> str:
    """The column that holds a digest of the picture as text, or an empty string."""
    textual = {
        name.lower(): name
        for name, kind in zip(schema.names, schema.types, strict=True)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind)
    }
    return next((textual[name] for name in DIGESTS if name in textual), "")


def _canonical(table: pa.Table, schema: Schema) -> pa.Table:
    columns: dict[str, Any] = {}
    for name, kind in TYPES.items():
        if name == "digest" and schema.digest:
            text = pc.ascii_lower(pc.utf8_trim_whitespace(pc.cast(table.column(schema.digest), pa.string())))
            columns[name] = pc.if_else(pc.match_substring_regex(text, HEX), text, pa.scalar(None, pa.string()))
            continue
        target = pa.type_for_alias(kind)
        if name not in schema.columns:
            columns[name] = pa.nulls(len(table), target)
            continue
        column = table.column(schema.columns[name])
        if pa.types.is_floating(column.type):  # NaN is another way to write unknown, and must not pass for a low score
            column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
        columns[name] = column if column.type == target else pc.cast(column, target, safe=pa.types.is_string(target))
    if schema.tag:
        tagged = pc.equal(pc.utf8_upper(pc.cast(table.column(schema.tag), pa.string())), "NSFW")
        columns["punsafe"] = pc.if_else(
            pc.fill_null(tagged, False), pa.scalar(1.0, pa.float32()), pa.scalar(None, pa.float32())
        )
    return pa.table(columns)
