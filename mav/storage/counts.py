"""Row counts of artifacts and of their shards: how they are added up, and how they are checked."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def unbalanced(counts: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence when `rows_in` is not `rows_out` plus all dropped and failed rows."""
    if "rows_in" in counts:
        lost = sum(sum(counts.get(kind, {}).values()) for kind in ("dropped", "failed"))
        accounted = counts.get("rows_out", 0) + lost
        if counts["rows_in"] != accounted:
            yield f"{counts['rows_in']} rows came in but {accounted} are accounted for"


def add_counts(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums the counts of shards key by key. Nested mappings, such as rows by reason, are summed in the same way."""
    total: dict[str, Any] = {"rows_in": 0, "rows_out": 0, "dropped": {}, "failed": {}}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, Mapping):
                bucket = total.setdefault(key, {})
                for reason, number in value.items():
                    bucket[reason] = bucket.get(reason, 0) + number
            else:
                total[key] = total.get(key, 0) + value
    return total | {kind: dict(sorted(total[kind].items())) for kind in ("dropped", "failed")}
