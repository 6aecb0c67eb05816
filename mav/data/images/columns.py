"""Columns of a user's tables as the types that the stages work with, whatever type they were written as.

A cell that cannot be read becomes null or is repaired, so that no row takes others with it. A type that cannot be read
at all, for example a list, is for the caller to name.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mav.data.fetching.rules import percent_encoded

NUMBER = r"^[+-]?(?:[0-9]+[.]?[0-9]*|[.][0-9]+)(?:[eE][+-]?[0-9]+)?$"

DECIMAL_COMMA = r"^([+-]?[0-9]*),([0-9]+)$"


def is_textual(kind: pa.DataType) -> bool:
    """Says whether a column of this type holds text, as categories included."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def texts(column: pa.ChunkedArray, addresses: bool = False) -> pa.ChunkedArray | None:
    """Returns a column as valid UTF-8, null where it has none; None when its type cannot be read as text.

    What is not UTF-8 is percent-encoded in addresses, as browsers send it, and replaced by U+FFFD elsewhere.
    """
    column = _plain(column)
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_duration(kind):
        return None
    if pa.types.is_floating(kind):
        column = _known(column)
    if not (is_textual(kind) or pa.types.is_binary(kind) or _is_other_binary(kind)):
        return column.cast(pa.string())
    chunks = [_valid(chunk, addresses) for chunk in column.chunks]
    return pa.chunked_array(chunks, pa.string())


def numbers(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray | None:
    """Returns a column as numbers of a type, null where a cell is no number that the type holds.

    Returns None when the column's type holds no numbers.
    """
    column = _plain(column)
    if is_textual(column.type):
        text = pc.utf8_trim_whitespace(texts(column))
        if pa.types.is_floating(target):  # of whole numbers a comma sets thousands apart
            text = pc.replace_substring_regex(text, DECIMAL_COMMA, r"\1.\2")
        text = pc.if_else(pc.match_substring_regex(text, NUMBER), text, pa.scalar(None, pa.string()))
        column = text.cast(pa.float64())
    elif pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    kind = column.type
    if column.type == target and not pa.types.is_floating(kind):
        return column
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        return None
    if kind in (pa.uint64(), pa.float16()):  # Arrow compares these with no signed whole number
        column, kind = column.cast(pa.float64(), safe=False), pa.float64()
    if pa.types.is_floating(kind):
        column = _known(column)
    if pa.types.is_integer(target) and not pa.types.is_null(kind):
        most = 2 ** (target.bit_width - 1) - 1
        fits = pc.and_(pc.greater_equal(column, -most), pc.less_equal(column, most))
        column = pc.if_else(fits, column, pa.scalar(None, kind))
    return column.cast(target, safe=False)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns a column without categories and without names of types that others defined."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        column = column.cast(kind.storage_type)
    if pa.types.is_dictionary(column.type):
        chunks = [chunk.dictionary_decode() for chunk in column.chunks]
        column = pa.chunked_array(chunks, column.type.value_type)
    return column


def _known(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Makes NaN and infinity null: they mean unknown too, and must not pass for a low score."""
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))


def _is_other_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind))


def _valid(chunk: pa.Array, addresses: bool) -> pa.Array:
    """Returns strings of valid UTF-8. Parquet calls bytes text without looking at them."""
    text = chunk if pa.types.is_string(chunk.type) else None
    try:
        if text is None:
            text = chunk.cast(pa.string())
        text.validate(full=True)
        return text
    except pa.ArrowInvalid:
        return pa.array([_repaired(value, addresses) for value in chunk.cast(pa.binary()).to_pylist()], pa.string())


def _repaired(value: bytes | None, address: bool) -> Any:
    if value is None:
        return None
    return percent_encoded(value) if address else value.decode("utf-8", "replace")
