"""Which pictures the networks may learn from: of near duplicates, one. `image-embed` is left as it is, so that another
threshold embeds nothing again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from filters.clips import measured
from mav.data.shards import ShardOutput, read_array, read_table, write_table
from mav.storage import Folder

REASON = "near_duplicate"


@dataclass(frozen=True)
class SelectWork:
    """The shard work of `image-select`: writes NAME.parquet with key, kept and reason (null when kept) of every row.

    groups: what `filters.groups.GroupWork` made; None keeps all rows.
    """

    embeds: Folder
    groups: Folder | None
    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        table = read_table(self.embeds, f"{name}.parquet", ["key", "native"])
        kept = np.ones(len(table), bool)
        if self.groups is not None:
            kept[read_array(self.groups, f"{name}.npy")] = False
        reasons = pa.array([None if keeps else REASON for keeps in kept], pa.string())
        columns = {"key": table.column("key"), "kept": pa.array(kept), "reason": reasons}
        write_table(self.out, f"{name}.parquet", pa.table(columns))
        rows_out, dropped = int(kept.sum()), int((~kept).sum())
        counts = {"rows_in": len(kept), "rows_out": rows_out, "dropped": {REASON: dropped} if dropped else {}}
        native = table.column("native").to_numpy(zero_copy_only=False).astype(bool)
        return ShardOutput(counts | {"failed": {}, "native": int((native & kept).sum())}, (f"{name}.parquet",))


def agreement(kept: Mapping[str, bool], family: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Returns how the choice agrees with the truth, as `filters.clips.agreement` does for clips.

    kept: each row that came in, by its path. family: the path of the picture that it was made from, or its own. Of a
    family, all rows but one are near duplicates.
    """
    rows: dict[str, list[bool]] = {}
    for path, is_kept in kept.items():
        rows.setdefault(family.get(path, path), []).append(is_kept)
    planted = sum(len(each) - 1 for each in rows.values())
    found = sum(min(each.count(False), len(each) - 1) for each in rows.values())
    dropped = sum(each.count(False) for each in rows.values())
    return {REASON: measured(planted, dropped, found)}
