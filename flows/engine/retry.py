"""`mav rerun RECIPE STAGE --failed`: tries the rows that failed for a passing reason again, in supplementary shards.

A retry pass writes shards `PPPPP-KKKKK-retryP` in the stage's work folder and resumes there when it was stopped. When
it is complete, its shards and their ledger join the artifact, whose manifest is written again. A pass that recovers no
row changes nothing.
"""

import dataclasses
import datetime
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import Any

from flows.engine.lease import exclusive
from flows.engine.run import Job, Run
from flows.engine.shard_map import shard_map
from flows.engine.stage import STAGES, Node
from mav.errors import UserError
from mav.storage import Artifact, Folder
from mav.storage.ledger import LEDGER, base_shard, ledgers, read_ledger, retry_ledger, retry_number, retry_shard


@dataclass(frozen=True)
class Retried:
    """The result of a retry pass: the rows it tried, the rows that came through, and why the others did not."""

    rows: int
    recovered: int
    failed: dict[str, int]


def retry_failed(node: Node, run: Run) -> Retried:
    """Makes one retry pass over a finished stage that fetches.

    Raises UserError for any other stage, and while another process builds the stage or makes a pass over it.
    """
    rule = node.stage.retry
    if rule is None:
        fetching = " or ".join(stage.name for stage in STAGES.values() if stage.retry)
        raise UserError(f"--failed tries rows of {fetching} again, {node.name} has none to try: leave --failed out.")
    _finished(node, run)  # before anything is written
    with exclusive(run.store.work(node), node.name, run.recipe.name) as lease:
        finished = _finished(node, run)  # as the last pass left it: from here on no other one changes it
        artifact = Artifact(lease.fenced(finished.folder), finished.manifest)

        # Remove the files of a pass that was stopped while it joined the artifact.
        for name in set(artifact.folder.names()).difference(artifact.files()):
            if retry_number(name.partition(".")[0]):
                artifact.folder.remove(name)

        # Choose the shards with rows that may come through; the latest pass over a shard is the one that counts.
        left: dict[str, int] = {}
        for shard in artifact.shards():
            failed = shard["counts"]["failed"]
            left[base_shard(shard["shard"])] = sum(n for reason, n in failed.items() if rule.may_pass(reason))
        names = sorted(name for name, rows in left.items() if rows)
        if not names:
            lease.clear()
            return Retried(0, 0, {})

        # Make their supplementary shards, which join the artifact if they hold a row.
        number = 1 + max(retry_number(name.partition(".")[0]) for name in ledgers(artifact.manifest.files))
        place = lease.fenced(run.store.work(node)).child(f"retry{number}")
        job = Job(node, run, place.child("out"), place, lease, artifact.manifest.how)
        run.terminal.start(node.name)
        retried = rule.again(rule.work(job), artifact.folder, number)
        counts = shard_map(job, retried, [retry_shard(name, number) for name in names]).counts
        if counts["rows_out"]:
            _join(artifact, job.out, number, counts)
        rows = f"{counts['rows_out']:,} of {counts['rows_in']:,} rows"
        run.terminal.end(node.name, f"{rows} that had failed came through")
        lease.clear()
    return Retried(counts["rows_in"], counts["rows_out"], counts["failed"])


def _finished(node: Node, run: Run) -> Artifact:
    """Returns the artifact of a stage. Raises UserError when it is not done."""
    artifact = run.store.find(node)
    if artifact is None:
        raise UserError(
            f"{node.name} is not done: run the graph with `--until {node.name}` first; then --failed can go over it."
        )
    return artifact


def _join(artifact: Artifact, shards: Folder, number: int, counts: dict[str, Any]) -> None:
    """Adds the supplementary shards to the artifact: the files, then their ledger, then a manifest that names it."""
    out, manifest, added = artifact.folder, artifact.manifest, 0

    def copy(name: str, to: str) -> None:
        with shards.open(name) as source, out.create(to) as target:
            shutil.copyfileobj(source, target, 1 << 22)

    for shard in read_ledger(shards, counts=False):
        added += 1
        for name in shard["files"]:
            copy(name, name)
    copy(LEDGER, retry_ledger(number))
    fields = {field.name: getattr(manifest, field.name) for field in dataclasses.fields(manifest)}
    del fields["files"], fields["format"]
    fields["counts"] = joined_counts(manifest.counts, counts)
    fields["metrics"] = manifest.metrics | {"shards": manifest.metrics["shards"] + added}
    fields["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    Artifact.publish(out, **fields)


def joined_counts(before: dict[str, Any], retry: dict[str, Any]) -> dict[str, Any]:
    """Returns an artifact's counts after a pass. Its rows stay as many; retried ones count by their last result."""
    failed = Counter(before["failed"])
    failed.subtract(retry["retried"])
    failed.update(retry["failed"])
    dropped = Counter(before["dropped"])
    dropped.update(retry["dropped"])
    sums = {key: before.get(key, 0) + n for key, n in retry.items() if isinstance(n, int) and key != "rows_in"}
    return before | {
        **sums,  # bytes, frames
        "failed": {reason: n for reason, n in sorted(failed.items()) if n},
        "dropped": {reason: n for reason, n in sorted(dropped.items()) if n},
        "recovered": before.get("recovered", 0) + retry["rows_out"],
    }
