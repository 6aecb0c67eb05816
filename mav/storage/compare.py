"""What is different between two artifacts: values, rows with their reasons, bytes, metrics with their intervals."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mav.storage.artifact import Artifact
from mav.storage.folder import Folder
from mav.storage.ledger import ledgers

EXAMPLES = 3  # keys that are named of rows with the same change


@dataclass(frozen=True)
class Difference:
    """How artifact B is different from A. Pairs are (A's, B's); None where one has none."""

    values: dict[str, tuple[Any, Any]]  # of the recipe, by key
    inputs: dict[str, tuple[Any, Any]]
    counts: dict[str, tuple[Any, Any]]
    metrics: dict[str, tuple[Any, Any]]  # numbers, or (value, low, high) where there is an interval
    files: list[str]  # that have other bytes, or that one of them lacks
    bytes: tuple[int, int]
    rows: dict[tuple[str, str], int] = field(default_factory=dict)  # (before, after) -> rows; absent, kept or a reason
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # keys of some of them


def compare(a: Artifact, b: Artifact) -> Difference:
    """Compares two artifacts of one stage. Only files whose bytes are different are read."""
    one, two = a.manifest, b.manifest
    ours, theirs = dict(a.entries()), dict(b.entries())
    names = sorted(name for name in {*ours, *theirs} if _sha256(ours, name) != _sha256(theirs, name))
    known = {*ledgers(ours), *ledgers(theirs)}
    rows: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if name.endswith(".parquet") and name not in known:
            before = _rows(a.folder, name) if name in ours else {}
            after = _rows(b.folder, name) if name in theirs else {}
            for key in sorted({*before, *after}):
                change = (before.get(key, "absent"), after.get(key, "absent"))
                if change[0] != change[1]:
                    rows[change] += 1
                    examples.setdefault(change, [])
                    examples[change] += [key] if len(examples[change]) < EXAMPLES else []
    sizes = [sum(int(entry["bytes"]) for entry in entries.values()) for entries in (ours, theirs)]
    return Difference(
        pairs(one.config, two.config), pairs(one.inputs, two.inputs), pairs(one.counts, two.counts),
        pairs(_with_intervals(one.metrics), _with_intervals(two.metrics)), names, (sizes[0], sizes[1]),
        dict(rows.most_common()), examples,
    )  # fmt: skip


def pairs(one: dict[str, Any], two: dict[str, Any], above: str = "") -> dict[str, tuple[Any, Any]]:
    """Returns the values that are different, by dotted key, as (one's, two's)."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*one, *two}):
        key, left, right = f"{above}.{name}" if above else name, one.get(name), two.get(name)
        if isinstance(left, dict) or isinstance(right, dict):
            parts = [part if isinstance(part, dict) else {} for part in (left, right)]
            found |= pairs(parts[0], parts[1], key)
        elif left != right:
            found[key] = (left, right)
    return found


def _sha256(entries: dict[str, dict[str, Any]], name: str) -> str | None:
    return entries[name]["sha256"] if name in entries else None


def _with_intervals(metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns metrics in which `fvd`, `fvd_low` and `fvd_high` are one."""
    ends = {f"{name}_{end}" for name in metrics for end in ("low", "high") if f"{name}_{end}" in metrics}
    whole = {name: value for name, value in metrics.items() if name not in ends}
    for name in whole:
        if {f"{name}_low", f"{name}_high"} <= ends:
            whole[name] = (metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"])
    return whole


def _rows(folder: Folder, name: str) -> dict[str, str]:
    """Returns what became of each row of a table: `kept`, or the reason it was dropped or failed for."""
    import pyarrow.parquet as pq

    with folder.open(name) as file:
        table = pq.ParquetFile(file)
        columns = set(table.schema_arrow.names)
        key = "key" if "key" in columns else "url"
        if key not in columns:
            return {}
        read = table.read([key, *({"reason"} & columns)]).to_pydict()
    reasons = read.get("reason", [None] * len(read[key]))
    return {str(row): str(reason or "kept") for row, reason in zip(read[key], reasons, strict=True)}
