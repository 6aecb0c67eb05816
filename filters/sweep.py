"""What other thresholds of a selection would keep and drop, from what is stored: `mav sweep`."""

import dataclasses
import itertools
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from filters.clips import Clips
from filters.groups import SHARD_BITS
from filters.pictures import Pictures
from filters.selection import NEAR_DUPLICATE, in_threads, reasons_of
from mav.data.shards import read_array
from mav.storage import Folder

READING = 16  # tables at a time: on an object store this is waiting, not work
THREADS = min(os.cpu_count() or 1, 8)  # for near duplicates, each of which may take a hundred megabytes


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The rows of all shards, and which of them have each reason under each rule.

    rows: the shard and the key of each. reasons: bool (rows,) by value and reason. instead: by value, the number of the
    row that is kept instead of a near duplicate.
    """

    rows: list[tuple[str, str]]
    reasons: dict[str, dict[str, np.ndarray]]
    instead: dict[str, dict[int, int]]

    def counts(self, value: str) -> dict[str, Any]:
        """Returns the rows kept, those that each filter drops, whichever comes first, those that several drop, and
        those that two filters drop, by the names of both.
        """
        found = self.reasons[value]
        number = np.sum(list(found.values()), axis=0)
        pairs = {f"{a}+{b}": int((found[a] & found[b]).sum()) for a, b in itertools.combinations(found, 2)}
        return {
            "kept": int((number == 0).sum()),
            "dropped": {reason: int(mask.sum()) for reason, mask in found.items()},
            "by_several": int((number > 1).sum()),
            "overlaps": {pair: rows for pair, rows in pairs.items() if rows},
        }

    def examples(self, value: str, most: int) -> dict[str, list[tuple[tuple[str, str], ...]]]:
        """Returns at most so many rows of each reason, and kept ones as reason "kept".

        Those come first whose fate depends on the value. With a near duplicate comes the row that is kept instead.
        """
        lost = {each: np.any(list(found.values()), axis=0) for each, found in self.reasons.items()}
        depends = np.any([mask != lost[value] for mask in lost.values()], axis=0)
        examples = {}
        for reason, mask in {"kept": ~lost[value], **self.reasons[value]}.items():
            rows = np.flatnonzero(mask)
            rows = rows[np.argsort(~depends[rows], kind="stable")][:most]
            instead = self.instead[value] if reason == NEAR_DUPLICATE else {}
            shown = [[row, instead[row]] if row in instead else [row] for row in rows.tolist()]
            examples[reason] = [tuple(self.rows[row] for row in each) for each in shown]
        return examples


def sweep(rows: Clips | Pictures, rules: Mapping[str, Any]) -> Sweep:
    """Returns what rules, by what they are called, would keep and drop: the same as the stage with each of them.

    Scores are read once. Near duplicates are looked for again for each rule, in this process and a temporary folder.
    """
    names = rows.names()
    with ThreadPoolExecutor(READING) as pool:
        scores: list[pa.Table] = list(pool.map(rows.read, names))
    firsts = np.cumsum([0, *map(len, scores)])
    reasons: dict[str, dict[str, np.ndarray]] = {}
    instead: dict[str, dict[int, int]] = {value: {} for value in rules}
    for value, rule in rules.items():
        ruled = dataclasses.replace(rows, rule=rule)
        with tempfile.TemporaryDirectory() as place:
            groups = ruled.groups(in_threads(Folder(place), THREADS))
            found = [reasons_of(ruled, groups, name, table) for name, table in zip(names, scores, strict=True)]
            if groups is not None:
                instead[value] = _instead(groups, names, firsts)
        reasons[value] = {reason: np.concatenate([each[reason] for each in found]) for reason in found[0]}
    keys = ((name, table.column("key").to_pylist()) for name, table in zip(names, scores, strict=True))
    return Sweep([(name, key) for name, listed in keys for key in listed], reasons, instead)


def _instead(groups: Folder, names: Sequence[str], firsts: np.ndarray) -> dict[int, int]:
    """Returns the row that is kept for each row that `filters.groups.GroupWork` drops; firsts: each shard's first."""
    rows: dict[int, int] = {}
    for first, name in zip(firsts, names, strict=False):
        dropped = read_array(groups, f"{name}.npy")
        shard, place = np.divmod(dropped["kept"].astype(np.int64), 1 << int(SHARD_BITS))
        rows |= zip((first + dropped["place"]).tolist(), (firsts[shard] + place).tolist(), strict=True)
    return rows
