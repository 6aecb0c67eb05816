"""TODO-DOC mav/storage/counts.py"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def unbalanced(counts: Mapping[str, Any]) -> Iterator[str]:
    """Checks rows_in = rows_out + sum(dropped) + sum(failed), of an artifact or of one of its shards."""
    if "rows_in" in counts:
        accounted = (
            counts.get("rows_out", 0) + sum(counts.get("dropped", {}).values()) + sum(counts.get("failed", {}).values())
        )
        if counts["rows_in"] != accounted:
            yield f"{counts['rows_in']} rows came in but {accounted} are accounted for"


def add_counts(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums counts of shards, key by key; nested mappings are summed alike."""
    total: dict[str, Any] = {"rows_in": 0, "rows_out": 0, "dropped": {}, "failed": {}}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, Mapping):
                bucket = total.setdefault(key, {})
                for reason, number in value.items():
                    bucket[reason] = bucket.get(reason, 0) + number
            else:
                total[key] = total.get(key, 0) + value
    for key in ("dropped", "failed"):
        total[key] = dict(sorted(total[key].items()))
    return total
