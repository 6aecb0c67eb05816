"""A stage as a job of a running Ray cluster: it outlives the flow that asked for it, and the next flow finds it again.

With `RAY_ADDRESS=http://head:8265` the flow is not part of the cluster. Each stage becomes a Ray job named after the
stage, its fingerprint and its number, so two requests for the same artifact give one job: a flow that was killed leaves
its jobs running, and a later flow follows them to their end. A flow that is cancelled stops them. The job is `python -m
flows.engine.jobs` on the cluster, which builds the stage as a laptop does; the two share only the storage.
"""

import importlib
import json
import os
import shlex
import signal
import sys
import time
from contextlib import ExitStack, suppress
from typing import Any

from flows.engine.build import build, require_inputs
from flows.engine.run import Run
from flows.engine.stage import Node
from flows.engine.store import Store
from flows.services.environment import configure_environment
from flows.services.heartbeat import read_heartbeat
from flows.services.ray_cluster import job_server
from flows.services.terminal import PROGRESS, Terminal
from mav.errors import UserError
from mav.recipes import digest, to_plain
from mav.storage import Artifact

ORDER = "MAV_JOB"  # the job's environment variable that says what to build, as JSON
USER_ERROR = 2  # exit code of a job whose last line is a sentence for the user
POLL_SECONDS = 1.0
STOP_SECONDS = 30  # from a job's SIGTERM to its SIGKILL, so that a training can save
PATIENCE_SECONDS = 120.0  # without an answer for this long, the cluster counts as gone


def build_on_cluster(node: Node, run: Run, fresh: bool = False) -> Artifact:
    """Builds as `flows.engine.build.build` does, in a job of the cluster at `RAY_ADDRESS`; follows a job that exists.

    Raises UserError for what a user can correct, RuntimeError when the job died or the cluster is gone. An exception
    that ends this call ends the job too; a killed process does not.
    """
    if not fresh and (found := run.store.find(node)):
        return found
    require_inputs(node, run)
    client = _client()
    job = _living_job(client, node, run) or _submit(client, node, run, fresh)
    run.terminal.start(node.name)
    try:
        details = _follow(client, job, node, run)
    except BaseException:
        with suppress(ConnectionError, RuntimeError):  # what ended the wait says more than a cluster that is away
            client.stop_job(job)
        run.terminal.end(node.name, "stopped")
        raise
    if str(details.status.value) == "SUCCEEDED" and (artifact := run.store.find(node)):
        run.terminal.end(node.name, f"done by job {job}")
        return artifact
    last = next((line for line in reversed(client.get_job_logs(job).splitlines()) if line.startswith("mav: ")), "")
    run.terminal.end(node.name, f"failed in job {job}")
    if details.driver_exit_code == USER_ERROR and last:
        raise UserError(last.removeprefix("mav: "))
    end = f"{details.status.value.lower()} ({details.message})"
    raise RuntimeError(f"{node.name}: job {job} ended {end}: see its log in the Ray dashboard")


def _client() -> Any:
    from ray.dashboard.modules.job.sdk import JobSubmissionClient

    try:
        return JobSubmissionClient(job_server())
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"No Ray cluster answers at RAY_ADDRESS={job_server()} ({reason}): start it, or unset RAY_ADDRESS."
        ) from None


def _prefix(node: Node, run: Run) -> str:
    return f"{node.name}-{digest([node.fingerprint, run.store.root.url])[:12]}-"


def _jobs(client: Any, node: Node, run: Run) -> list[Any]:
    """Returns all jobs that were started for this artifact, the latest last."""
    prefix = _prefix(node, run)
    own = [job for job in client.list_jobs() if (job.submission_id or "").startswith(prefix)]
    return sorted(own, key=lambda job: int(job.submission_id.removeprefix(prefix)))


def _living_job(client: Any, node: Node, run: Run) -> str:
    """Returns the job that builds this artifact now, or ''."""
    living = [job.submission_id for job in _jobs(client, node, run) if not job.status.is_terminal()]
    return str(living[-1]) if living else ""


def _submit(client: Any, node: Node, run: Run, fresh: bool) -> str:
    assert run.builder is not None
    order = {
        "builder": f"{run.builder.__module__}:{run.builder.__qualname__}",
        "recipe": to_plain(run.recipe),
        "stage": node.name,
        "fingerprint": node.fingerprint,
        "runs": run.store.root.url,
        "fresh": fresh,
        "folder": os.getcwd(),
    }
    python = shlex.quote(sys.executable)
    prefix, before = _prefix(node, run), [job.submission_id for job in _jobs(client, node, run)]
    job = f"{prefix}{1 + int(before[-1].removeprefix(prefix)) if before else 1}"  # earlier ones may have been deleted
    environment = {ORDER: json.dumps(order), "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    try:
        client.submit_job(
            entrypoint=f"exec $(test -x {python} && echo {python} || echo python) -m flows.engine.jobs",
            submission_id=job,
            runtime_env={"env_vars": environment},
            metadata={"job_name": f"{node.name} of {run.recipe.name}", "fingerprint": node.fingerprint},
        )
    except RuntimeError:
        if living := _living_job(client, node, run):  # another flow was first
            return living
        raise
    return job


def _follow(client: Any, job: str, node: Node, run: Run) -> Any:
    """Waits for the job's end, shows its progress, and returns its details."""
    work, answered = run.store.work(node), time.monotonic()
    while True:
        run.require_running()
        try:
            details = client.get_job_info(job)
            answered = time.monotonic()
            if details.status.is_terminal():
                return details
        except (ConnectionError, RuntimeError) as error:  # the head may be busy, or restarting
            if time.monotonic() - answered > PATIENCE_SECONDS:
                reason = str(error).splitlines()[0]
                raise RuntimeError(f"{node.name}: the Ray cluster at {job_server()} is gone ({reason})") from None
        beat = read_heartbeat(work)
        if "done" in beat and not run.stopping.is_set():
            run.terminal.progress(node.name, beat["done"], beat["total"], **{key: beat.get(key) for key in PROGRESS})
        time.sleep(POLL_SECONDS)


def main() -> None:
    """Runs in the job, on the cluster: builds the stage that `MAV_JOB` names."""
    from mav.recipes.reader import recipe_from_dict

    configure_environment()
    order = json.loads(os.environ[ORDER])
    if os.path.isdir(order["folder"]):
        os.chdir(order["folder"])  # relative paths of a recipe mean the flow's folder
    module, _, name = order["builder"].partition(":")
    builder = getattr(importlib.import_module(module), name)
    try:
        recipe = recipe_from_dict(order["recipe"], order["recipe"]["name"])
        node = builder(recipe).node(order["stage"])
        if node.fingerprint != order["fingerprint"]:
            raise UserError(
                f"The cluster would build another {node.name} than the flow asks for: give both the same version of "
                "the code and see that the recipe's files lie on storage that both reach."
            )
        with ExitStack() as services, Terminal() as terminal:
            run = Run(recipe, Store(order["runs"]), terminal, services, builder, alone=False)

            def stop(number: int, frame: object) -> None:
                run.stopping.set()
                raise KeyboardInterrupt

            run.ray()
            signal.signal(signal.SIGTERM, stop)  # after Ray has set its own handler
            build(node, run, fresh=order["fresh"])
    except UserError as error:
        print(f"mav: {' '.join(str(error).split())}", flush=True)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
