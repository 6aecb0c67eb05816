"""How a stage's artifact is built exactly once: lease, heartbeat, body, manifest."""

import datetime
import importlib.metadata
import platform
import time
from typing import Any

from flows.engine.lease import LEASE, exclusive
from flows.engine.run import Job, Run, heartbeat
from flows.engine.stage import Node, Outcome, require_files
from flows.engine.store import FAILURE
from mav.errors import DivergedError, UserError, full_disk_told, storage_may_fail
from mav.recipes import digest
from mav.recipes.identity import how
from mav.storage import MANIFEST, Artifact

SOFTWARE = ("make-a-video-system", "torch", "ray", "prefect", "img2dataset", "open_clip_torch", "pyarrow", "numpy")


def build(node: Node, run: Run, fresh: bool = False) -> Artifact:
    """Makes the artifact of a stage, or finds it; `fresh` removes it first. Its inputs must be done.

    Raises UserError when an input or an outside file is missing, when another process is building the same artifact,
    or when the stage is a training that diverged and would be tried again as it was.
    """
    store = run.store
    out, work = store.artifact(node), store.work(node)
    if not fresh and (found := store.find(node)):  # a fresh build takes the place of a damaged one, too
        return found
    require_files([node])
    require_inputs(node, run)

    def say(sentence: str) -> None:
        run.terminal.say(f"  {sentence}")

    with full_disk_told(node.name, out.url), exclusive(work, node.name, run.recipe.name, say) as lease:
        # Another run may have finished it while we waited for the lease.
        if not fresh and (found := store.find(node)):
            lease.clear()
            return found
        out, work = lease.fenced(out), lease.fenced(work)
        if not fresh:
            _require_a_change(node, run, work.read_json_or_none(FAILURE))
        work.remove(FAILURE)

        job, began = Job(node, run, out, work, lease), time.monotonic()
        run.terminal.start(node.name)
        try:
            require_whole_inputs(job)
            if fresh:
                _remove(job)
            with heartbeat(job):
                outcome = node.stage.body(job)
                lease.beat()
                artifact = _publish(job, outcome, time.monotonic() - began)
        except BaseException as error:
            stopping = run.stopping.is_set()
            if stopping or lease.lost():  # the stage itself did not fail
                run.terminal.end(node.name, "stopped")
                if not stopping:
                    lease.fence.check()  # says more than what the stage met
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            run.terminal.end(node.name, f"failed: {reason}")
            failure = {"reason": reason, "kind": type(error).__name__, "time": time.time(), "way": _way(node, run)}
            with storage_may_fail():  # a full disk, for example, cannot record it
                work.write_json(FAILURE, failure)
            raise
        run.terminal.end(node.name, summary(artifact))
        lease.clear()
    return artifact


def _remove(job: Job) -> None:
    """Removes what a stage had made, and its unfinished work except the lease."""
    job.out.remove(MANIFEST)  # comes first: from here on there is no artifact
    job.out.remove()
    for name in job.work.names():
        if not name.startswith(f"{LEASE}/"):
            job.work.remove(name)


def _publish(job: Job, outcome: Outcome, seconds: float) -> Artifact:
    node = job.node
    return Artifact.publish(
        job.out,
        stage=node.name,
        version=node.stage.version,
        fingerprint=node.fingerprint,
        recipe=job.recipe.name,
        config=node.config,
        how=how(job.recipe, node.stage.reads_of(job.recipe)),
        outside=node.outside,
        inputs={needed.name: needed.fingerprint for needed in node.inputs},
        counts=outcome.counts,
        metrics=outcome.metrics,
        seconds=round(seconds, 3),
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        software=software(),
    )


def _way(node: Node, run: Run) -> str:
    """Returns a digest of how a stage is made here: all that may change what comes of it without changing the recipe's
    share in its fingerprint.
    """
    recipe = run.recipe
    return digest([how(recipe, node.stage.reads_of(recipe)), how(recipe, ["cluster"]), software()])


def _require_a_change(node: Node, run: Run, failure: Any) -> None:
    """Raises DivergedError when the last try diverged and the next would be no other: it would end in the same way,
    after the same hours.
    """
    if not isinstance(failure, dict) or failure.get("kind") != DivergedError.__name__:
        return
    if failure.get("way") == _way(node, run):
        reason = str(failure.get("reason", "")).rstrip(".")
        raise DivergedError(f"{reason}; it ended so before, and `mav rerun` of {node.name} begins it anew as it is.")


def require_inputs(node: Node, run: Run) -> None:
    """Raises UserError when an input of the stage is not there as the recipe wants it."""
    for needed in node.inputs:
        if run.store.find(needed) is None:
            raise UserError(
                f"{node.name} needs {needed.name}, which is {run.store.state(needed, run.recipe.name)}: "
                f"run the graph with `--until {needed.name}` first."
            )


def require_whole_inputs(job: Job) -> None:
    """Raises UserError when a file that the stage reads was lost or changed since it was made.

    Of the files of shards only the sizes are compared: `mav verify` reads all their bytes.
    """
    for needed in job.node.inputs:
        problem = next(Artifact.open(job.run.store.artifact(needed)).damage("own"), "")
        if problem:
            remedy = f"`mav rerun` of {needed.name} builds it anew"
            raise UserError(f"{job.name} needs {needed.name}, which is damaged: {problem}: {remedy}.")


def summary(artifact: Artifact) -> str:
    """Returns one line about a finished artifact: its seconds, its rows, why rows are missing, its first metrics."""
    counts, metrics = artifact.manifest.counts, artifact.manifest.metrics
    parts = []
    if "rows_in" in counts:
        lost = sorted({**counts.get("dropped", {}), **counts.get("failed", {})}.items(), key=lambda item: -item[1])
        reasons = ", ".join(f"{reason} {n}" for reason, n in lost[:4])
        rows = f"{counts['rows_out']:,} of {counts['rows_in']:,} rows"
        parts.append(f"{rows} (without: {reasons})" if reasons else rows)
    numbers = [(key, value) for key, value in metrics.items() if isinstance(value, (int, float))][:3]
    parts += [f"{key} {value:,}" if isinstance(value, int) else f"{key} {value:.4g}" for key, value in numbers]
    return f"done in {artifact.manifest.seconds:.1f} s" + (f": {'; '.join(parts)}" if parts else "")


def software() -> dict[str, str]:
    """Returns the versions of the software that makes an artifact."""
    versions = {"python": platform.python_version()}
    for name in SOFTWARE:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions
