"""Opens parquet files of others, whose text need not be UTF-8."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

STORED_TYPES = b"ARROW:schema"  # the key under which pyarrow keeps the types that it wrote


def open_parquet(file: Any, **options: Any) -> pq.ParquetFile:
    """Returns the `pyarrow.parquet.ParquetFile` of an open file.

    Categories are read as the text that they are: as categories, one value that is not UTF-8 would refuse all rows.
    """
    parquet = pq.ParquetFile(file, **options)
    if not any(pa.types.is_dictionary(kind) for kind in parquet.schema_arrow.types):
        return parquet
    file.seek(-8, io.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    file.seek(-8 - length, io.SEEK_END)
    footer = file.read(length).replace(STORED_TYPES, STORED_TYPES.lower())
    file.seek(0)
    untyped = pq.read_metadata(io.BytesIO(b"PAR1" + footer + length.to_bytes(4, "little") + b"PAR1"))
    return pq.ParquetFile(file, **options | {"metadata": untyped})
