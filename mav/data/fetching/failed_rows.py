"""Retry passes fetch again the rows of finished shards that failed for a transient reason (`rules.TRANSIENT`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from mav.data.fetching.rules import is_transient
from mav.storage import Folder
from mav.storage.ledger import base_shard, retry_shard

if TYPE_CHECKING:
    from mav.data.shards import ShardOutput


class FetchWork(Protocol):
    """Shard work that can fetch some rows of a shard."""

    def fetch(self, name: str, base: str, keys: Set[str] | None = None) -> ShardOutput:
        """Fetches the rows of shard `base` with these keys, or all of them, into the shard `name`."""


@dataclass(frozen=True)
class RetryWork:
    """The shard work of a retry pass: fetches the rows of `NAME` that failed for a transient reason into `NAME-retryP`.

    work: the stage's own work, whose `out` receives the supplementary shards. shards: the finished artifact. number: P,
    from 1. The counts hold in `retried` the reasons for which the rows had failed before.
    """

    work: FetchWork
    shards: Folder
    number: int

    def __call__(self, name: str) -> ShardOutput:
        from mav.data.shards import read_table  # here, since every command imports this module and not all need pyarrow

        base = base_shard(name)
        earlier = [retry_shard(base, number) for number in range(1, self.number)]
        last = [base, *(shard for shard in earlier if self.shards.exists(f"{shard}.parquet"))][-1]
        rows = read_table(self.shards, f"{last}.parquet", ["key", "reason"]).to_pylist()
        retried = {row["key"]: row["reason"] for row in rows if is_transient(row["reason"])}
        output = self.work.fetch(name, base, retried.keys())
        return replace(output, counts=output.counts | {"retried": dict(sorted(Counter(retried.values()).items()))})
