"""`mav rerun RECIPE STAGE --failed`, for the stages that fetch: only what failed for a transient reason, again, beside what is there.

A retry pass fetches into supplementary shards (`PPPPP-KKKKK-retryP`) in the stage's work folder and resumes there when it is stopped. When
it is through, the shards and their ledger join the artifact, whose manifest is written anew. A pass that brings nothing changes nothing.
"""

import dataclasses
import datetime
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flows import images, videos
from flows.engine.lease import exclusive
from flows.engine.run import Job, Run
from flows.engine.shard_map import shard_map
from flows.engine.stage import Node
from mav.data.fetching.failed_rows import RetryWork
from mav.data.fetching.rules import is_transient
from mav.data.images.download import DownloadWork
from mav.data.videos.video_shards import VideoWork
from mav.errors import UserError
from mav.storage import Artifact, Folder
from mav.storage.ledger import LEDGER, base_shard, ledgers, read_ledger, retry_ledger, retry_number, retry_shard

FETCHING: dict[str, Callable[[Job], DownloadWork | VideoWork]] = {
    "image-download": images.download_work,
    "video-shards": videos.video_work,
}


@dataclass(frozen=True)
class Retried:
    """What a retry pass did: rows it tried, rows that came through, and why the others did not."""

    rows: int
    recovered: int
    left: dict[str, int]


def retry_failed(node: Node, run: Run) -> Retried:
    """One retry pass over a finished stage that fetches. Raises UserError for another stage, or when it is not finished."""
    if node.name not in FETCHING:
        raise UserError(
            f"--failed tries rows of {' or '.join(FETCHING)} again, {node.name} has none to try: leave --failed out."
        )
    artifact = run.store.find(node)
    if artifact is None:
        raise UserError(
            f"{node.name} is not done: run the graph with `--until {node.name}` first; then --failed can go over it."
        )
    for name in set(artifact.folder.names()).difference(artifact.files()):
        if retry_number(name.partition(".")[0]):
            artifact.folder.remove(name)  # of a pass that was stopped before it was told
    left: dict[str, int] = {}  # rows that the last pass over a shard could not have
    for shard in artifact.shards():
        left[base_shard(shard["shard"])] = sum(
            n for reason, n in shard["counts"]["failed"].items() if is_transient(reason)
        )
    names = sorted(name for name, rows in left.items() if rows)
    if not names:
        return Retried(0, 0, {})
    number = 1 + max(retry_number(name.partition(".")[0]) for name in ledgers(artifact.manifest.files))
    work = run.store.work(node)
    with exclusive(work, node.name, run.recipe.name) as lease:
        place = work.child(f"retry{number}")
        job = Job(node, run, place.child("out"), place, lease)
        walk = RetryWork(FETCHING[node.name](job), artifact.folder, number)
        run.screen.start(node.name)
        outcome = shard_map(job, walk, [retry_shard(name, number) for name in names])
        counts = outcome.counts
        if counts["rows_out"]:
            _join(artifact, job.out, number, counts)
        run.screen.end(node.name, f"{counts['rows_out']:,} of {counts['rows_in']:,} rows that had failed came through")
        lease.clear()
    return Retried(counts["rows_in"], counts["rows_out"], counts["failed"])


def _join(artifact: Artifact, shards: Folder, number: int, counts: dict[str, Any]) -> None:
    """The supplementary shards into the artifact: first the files, then their ledger, then the manifest that names it."""
    out, manifest, added = artifact.folder, artifact.manifest, 0

    def copy(name: str, to: str) -> None:
        with shards.open(name) as source, out.create(to) as target:
            shutil.copyfileobj(source, target, 1 << 22)

    for shard in read_ledger(shards, counts=False):
        added += 1
        for name in shard["files"]:
            copy(name, name)
    copy(LEDGER, retry_ledger(number))
    facts = {
        field.name: getattr(manifest, field.name) for field in dataclasses.fields(manifest) if field.name != "files"
    }
    facts["counts"] = joined_counts(manifest.counts, counts)
    facts["metrics"] = manifest.metrics | {"shards": manifest.metrics["shards"] + added}
    facts["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    Artifact.publish(out, **facts)


def joined_counts(before: dict[str, Any], retry: dict[str, Any]) -> dict[str, Any]:
    """Counts of an artifact after a pass: its rows stay as many, those tried again are counted by what became of them last."""
    failed = Counter(before["failed"])
    failed.subtract(retry["retried"])
    failed.update(retry["failed"])
    dropped = Counter(before["dropped"])
    dropped.update(retry["dropped"])
    sums = {
        key: before.get(key, 0) + n for key, n in retry.items() if isinstance(n, int) and key != "rows_in"
    }  # bytes, frames
    return before | {
        **sums,
        "failed": {reason: n for reason, n in sorted(failed.items()) if n},
        "dropped": {reason: n for reason, n in sorted(dropped.items()) if n},
        "recovered": before.get("recovered", 0) + retry["rows_out"],
    }
