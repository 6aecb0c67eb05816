"""Retry passes: rows of finished shards that failed for a reason that passes (dns, timeout, 429, 5xx, reset), fetched once more."""

from collections import Counter
from dataclasses import dataclass, replace

from mav.data.fetching.rules import is_transient
from mav.data.images.download import DownloadWork
from mav.data.shards import ShardOutput, read_table
from mav.data.videos.video_shards import VideoWork
from mav.storage import Folder


@dataclass(frozen=True)
class RetryWork:
    """Shard work of a retry pass: what failed for a transient reason in `NAME`, again, into the supplementary shard `NAME-retryP`.

    work: the stage's own work, whose `out` is where the supplementary shards go. shards: the finished artifact. number: P, from 1.
    Its counts have in `retried` the reasons for which its rows had failed before.
    """

    work: DownloadWork | VideoWork
    shards: Folder
    number: int

    def __call__(self, name: str) -> ShardOutput:
        base = base_shard(name)
        last = max(
            (n for n in range(1, self.number) if self.shards.exists(retry_shard(base, n) + ".parquet")), default=0
        )
        before = read_table(
            self.shards, f"{retry_shard(base, last) if last else base}.parquet", ["key", "reason"]
        ).to_pylist()
        retried = {row["key"]: row["reason"] for row in before if is_transient(row["reason"])}
        output = self.work.fetch(name, base, retried.keys())
        return replace(output, counts=output.counts | {"retried": dict(sorted(Counter(retried.values()).items()))})


def retry_shard(base: str, number: int) -> str:
    """The supplementary shard of retry pass `number` (from 1)."""
    return f"{base}-retry{number}"


def base_shard(name: str) -> str:
    return name.partition("-retry")[0]


def retry_number(name: str) -> int:
    """The retry pass a shard comes from; 0: the first one."""
    return int(name.partition("-retry")[2] or 0)
