"""Watermarks: rows whose probability of a watermark reaches the threshold are dropped, the boundary row included."""

import pyarrow as pa
import pyarrow.compute as pc


def is_watermarked(pwatermark: pa.ChunkedArray, threshold: float) -> pa.ChunkedArray:
    """True at or above the threshold; an unknown score is not watermarked here: what becomes of it is screen's policy."""
    return pc.fill_null(pc.greater_equal(pwatermark, threshold), False)
