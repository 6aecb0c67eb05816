"""How a stage's artifact is built exactly once: lease, heartbeat, body, manifest."""

import datetime
import errno
import importlib.metadata
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from flows.engine.lease import LEASE, exclusive
from flows.engine.run import Job, Run
from flows.engine.stage import Node
from mav.errors import UserError
from mav.storage import MANIFEST, Artifact, Folder

HEARTBEAT_SECONDS = 5.0


def build(node: Node, run: Run, fresh: bool = False) -> Artifact:
    """Makes the node's artifact, or finds it; `fresh` removes it first. Its inputs must be there.

    Raises UserError when an input is missing or another process builds the same artifact right now.
    """
    store = run.store
    out, work = store.artifact(node), store.work(node)
    found = store.find(node)
    if found and not fresh:
        return found
    require_inputs(node, run)
    with _full_disk_told(node.name, out), exclusive(work, node.name, run.recipe.name) as lease:
        found = store.find(node)
        if found and not fresh:  # another run was a moment earlier
            lease.clear()
            return found
        if fresh:
            out.remove(MANIFEST)  # first: from here on there is no artifact
            out.remove()
            for name in work.names():
                if not name.startswith(f"{LEASE}/"):
                    work.remove(name)
        work.remove("failure.json")
        job = Job(node, run, out, work, lease)
        began = time.monotonic()
        run.screen.start(node.name)
        try:
            with _heartbeat(job):
                outcome = node.stage.body(job)
                lease.beat()
                artifact = Artifact.publish(
                    out,
                    stage=node.name,
                    version=node.stage.version,
                    fingerprint=node.fingerprint,
                    recipe=run.recipe.name,
                    config=run.recipe.part(node.stage.sections),
                    inputs={n.name: n.fingerprint for n in node.inputs},
                    counts=outcome.counts,
                    metrics=outcome.metrics,
                    seconds=round(time.monotonic() - began, 3),
                    finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    software=software(),
                )
        except BaseException as error:
            if run.stopping.is_set() or lease.lost:  # not the stage's failure
                run.screen.end(node.name, "stopped")
                raise
            sentence = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            run.screen.end(node.name, f"[red]failed[/]: {sentence}")
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            work.write_json("failure.json", {"reason": sentence, "kind": type(error).__name__, "time": time.time()})
            raise
        run.screen.end(node.name, summary(artifact))
        lease.clear()
    return artifact


@contextmanager
def _full_disk_told(name: str, out: Folder) -> Iterator[None]:
    """A full disk is the user's to mend, whatever was being written: a shard, a lease, a manifest."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"{name}: no space is left where {out.url} is written: free some, then run again; finished shards are kept."
        ) from error


def require_inputs(node: Node, run: Run) -> None:
    """Raises UserError when an input of the node is not there as the recipe wants it."""
    for needed in node.inputs:
        if run.store.find(needed) is None:
            raise UserError(
                f"{node.name} needs {needed.name}, which is {run.store.state(needed, run.recipe.name)}: "
                f"run the graph with `--until {needed.name}` first."
            )


@contextmanager
def _heartbeat(job: Job) -> Iterator[None]:
    """Keeps `heartbeat.json` young while the body works, with its last progress; `mav status` reads it."""

    def beat(ended: bool = False) -> None:
        facts = {"time": time.time(), "pid": os.getpid(), "host": platform.node(), "ended": ended, **job._progress}
        with suppress(Exception):  # for those who watch; storage that is away for a moment never stops a stage for it
            job.work.write_json("heartbeat.json", facts)

    beat()
    try:
        with every(HEARTBEAT_SECONDS, beat):
            yield
    finally:
        beat(ended=True)


@contextmanager
def every(seconds: float, do: Callable[[], None]) -> Iterator[None]:
    """While the block runs, a thread of its own does this every so many seconds."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(seconds):
            do()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def summary(artifact: Artifact) -> str:
    """One line about a finished artifact."""
    counts, metrics = artifact.manifest.counts, artifact.manifest.metrics
    parts = []
    if "rows_in" in counts:
        lost = {**counts.get("dropped", {}), **counts.get("failed", {})}
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(lost.items(), key=lambda item: -item[1])[:4])
        parts.append(
            f"{counts['rows_out']:,} of {counts['rows_in']:,} rows" + (f" (without: {reasons})" if reasons else "")
        )
    numbers = [(key, value) for key, value in metrics.items() if isinstance(value, (int, float))][:3]
    parts += [f"{key} {value:,}" if isinstance(value, int) else f"{key} {value:.4g}" for key, value in numbers]
    return f"[green]done[/] in {artifact.manifest.seconds:.1f} s" + (f": {'; '.join(parts)}" if parts else "")


def software() -> dict[str, str]:
    """Versions that made an artifact."""
    names = ("make-a-video-system", "torch", "ray", "prefect", "img2dataset", "open_clip_torch", "pyarrow", "numpy")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions
