"""What other thresholds of a selection would keep and drop, from what is stored: `mav sweep`."""

import dataclasses
import itertools
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from filters.clips import Clips
from filters.pictures import Pictures
from filters.selection import in_threads, reasons_of
from mav.storage import Folder

READING = 16  # ledgers at a time: on an object store this is waiting, not work
THREADS = min(os.cpu_count() or 1, 8)  # for near duplicates, each of which may take a hundred megabytes


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The rows of all shards, and which of them have each reason under each rule.

    shards, keys: the shard and the key of each row. reasons: bool (rows,) by value and reason.
    """

    shards: list[str]
    keys: list[str]
    reasons: dict[str, dict[str, np.ndarray]]

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


def sweep(rows: Clips | Pictures, rules: Mapping[str, Any]) -> Sweep:
    """Returns what rules, by what they are called, would keep and drop: the same as the stage with each of them.

    Scores are read once. Near duplicates are looked for again for each rule, in this process and a temporary folder.
    """
    names = rows.names()
    with ThreadPoolExecutor(READING) as pool:
        scores: list[pa.Table] = list(pool.map(rows.read, names))
    reasons: dict[str, dict[str, np.ndarray]] = {}
    for value, rule in rules.items():
        ruled = dataclasses.replace(rows, rule=rule)
        with tempfile.TemporaryDirectory() as place:
            groups = ruled.groups(in_threads(Folder(place), THREADS))
            found = [reasons_of(ruled, groups, name, table) for name, table in zip(names, scores, strict=True)]
        reasons[value] = {reason: np.concatenate([each[reason] for each in found]) for reason in found[0]}
    shards = [name for name, table in zip(names, scores, strict=True) for _ in range(len(table))]
    return Sweep(shards, [key for table in scores for key in table.column("key").to_pylist()], reasons)
