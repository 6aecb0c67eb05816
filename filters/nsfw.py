"""NSFW: rows whose probability of being unsafe reaches the threshold are dropped."""

import pyarrow as pa
import pyarrow.compute as pc


def is_unsafe(punsafe: pa.ChunkedArray, threshold: float) -> pa.ChunkedArray:
    """True at or above the threshold; an unknown score is not unsafe here: what becomes of it is screen's policy."""
    return pc.fill_null(pc.greater_equal(punsafe, threshold), False)
