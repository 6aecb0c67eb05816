"""A stage as a job of a running Ray cluster: it outlives the flow that asked for it, and the next flow finds it again.

With `RAY_ADDRESS=http://head:8265` the flow is no part of the cluster. Each stage becomes a Ray job named after the stage, its
fingerprint and its try, so that asking twice for the same artifact gives one job: a flow that was killed leaves its jobs at work, and a
later one watches them to their end. A flow that is cancelled stops them. The job is `python -m flows.engine.jobs` on the cluster, which builds
the stage exactly as a laptop does; storage is all that the two have in common.
"""

import json
import os
import shlex
import signal
import sys
import time
from contextlib import ExitStack
from typing import Any

from flows.engine.build import build, require_inputs
from flows.engine.run import Run
from flows.engine.stage import Node
from flows.engine.store import Store, read_json_or_none
from flows.services.environment import configure_environment
from flows.services.ray_cluster import job_server
from flows.services.terminal import FACTS, Terminal
from mav.errors import UserError
from mav.recipes import digest, to_plain
from mav.storage import Artifact

ORDER = "MAV_JOB"  # environment variable of the job: what to build, as JSON
USER_ERROR = 2  # exit code of a job whose last line is a sentence for the user
POLL_SECONDS = 1.0
STOP_SECONDS = 30  # from a job's SIGTERM to its SIGKILL: a training saves first
PATIENCE_SECONDS = 120.0  # without an answer for so long, the cluster is taken for gone


def build_on_cluster(node: Node, run: Run, fresh: bool = False) -> Artifact:
    """As `flows.engine.build.build`, by a job of the cluster at `RAY_ADDRESS`; goes on with the job that builds the artifact already.

    Raises UserError for what a user can mend, RuntimeError when the job died or the cluster is gone. Whoever ends this call by an
    exception ends the job; who kills the process does not.
    """
    found = run.store.find(node)
    if found and not fresh:
        return found
    require_inputs(node, run)
    client = _client()
    job = _attach(client, node, run) or _submit(client, node, run, fresh)
    run.screen.start(node.name)
    try:
        details = _watch(client, job, node, run)
    except BaseException:
        client.stop_job(job)
        run.screen.end(node.name, "stopped")
        raise
    if str(details.status.value) == "SUCCEEDED" and (artifact := run.store.find(node)):
        run.screen.end(node.name, f"[green]done[/] by job {job}")
        return artifact
    last = next((line for line in reversed(client.get_job_logs(job).splitlines()) if line.startswith("mav: ")), "")
    run.screen.end(node.name, f"[red]failed[/] in job {job}")
    if details.driver_exit_code == USER_ERROR and last:
        raise UserError(last.removeprefix("mav: "))
    raise RuntimeError(
        f"{node.name}: job {job} ended {details.status.value.lower()} ({details.message}): see its log in the Ray dashboard"
    )


def _client() -> Any:
    from ray.dashboard.modules.job.sdk import JobSubmissionClient

    try:
        return JobSubmissionClient(job_server())
    except (ConnectionError, RuntimeError) as error:
        raise UserError(
            f"No Ray cluster answers at RAY_ADDRESS={job_server()} ({str(error).splitlines()[0]}): start it, or unset RAY_ADDRESS."
        ) from None


def _prefix(node: Node, run: Run) -> str:
    return f"{node.name}-{digest([node.fingerprint, run.store.root.url])[:12]}-"


def _jobs(client: Any, node: Node, run: Run) -> list[Any]:
    """All jobs there were for this artifact, the latest last."""
    prefix = _prefix(node, run)
    mine = [job for job in client.list_jobs() if (job.submission_id or "").startswith(prefix)]
    return sorted(mine, key=lambda job: int(job.submission_id.removeprefix(prefix)))


def _attach(client: Any, node: Node, run: Run) -> str:
    """The job that builds this artifact now, or ''."""
    live = [job.submission_id for job in _jobs(client, node, run) if not job.status.is_terminal()]
    return str(live[-1]) if live else ""


def _submit(client: Any, node: Node, run: Run, fresh: bool) -> str:
    order = {
        "recipe": to_plain(run.recipe),
        "stage": node.name,
        "fingerprint": node.fingerprint,
        "runs": run.store.root.url,
        "fresh": fresh,
        "folder": os.getcwd(),
    }
    python = shlex.quote(sys.executable)
    job = f"{_prefix(node, run)}{len(_jobs(client, node, run)) + 1}"
    try:
        client.submit_job(
            entrypoint=f"exec $(test -x {python} && echo {python} || echo python) -m flows.engine.jobs",
            submission_id=job,
            runtime_env={"env_vars": {ORDER: json.dumps(order), "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}},
            metadata={"job_name": f"{node.name} of {run.recipe.name}", "fingerprint": node.fingerprint},
        )
    except RuntimeError:
        if attached := _attach(client, node, run):  # another flow was a moment earlier
            return attached
        raise
    return job


def _watch(client: Any, job: str, node: Node, run: Run) -> Any:
    """Waits for the job's end, showing its progress; returns its details."""
    work, heard = run.store.work(node), time.monotonic()
    while True:
        run.go_on()
        try:
            details = client.get_job_info(job)
            heard = time.monotonic()
            if details.status.is_terminal():
                return details
        except (ConnectionError, RuntimeError) as error:  # the head may be busy, or away for a moment
            if time.monotonic() - heard > PATIENCE_SECONDS:
                raise RuntimeError(
                    f"{node.name}: the Ray cluster at {job_server()} is gone ({str(error).splitlines()[0]})"
                ) from None
        beat = read_json_or_none(work, "heartbeat.json") or {}
        if "done" in beat and not run.stopping.is_set():
            run.screen.progress(node.name, beat["done"], beat["total"], **{key: beat.get(key) for key in FACTS})
        time.sleep(POLL_SECONDS)


def main() -> None:
    """In the job, on the cluster: builds the stage that `MAV_JOB` names."""
    from flows.make_a_video import make_a_video
    from mav.recipes.reader import recipe_from_dict

    configure_environment()
    order = json.loads(os.environ[ORDER])
    if os.path.isdir(order["folder"]):
        os.chdir(order["folder"])  # relative paths of a recipe mean the flow's folder
    try:
        recipe = recipe_from_dict(order["recipe"], order["recipe"]["name"])
        node = make_a_video(recipe).node(order["stage"])
        if node.fingerprint != order["fingerprint"]:
            raise UserError(
                f"The cluster would build another {node.name} than the flow asks for: give both the same version of the code and see that "
                "the recipe's files lie on storage that both reach."
            )
        with ExitStack() as services, Terminal() as screen:
            run = Run(recipe, Store(order["runs"]), screen, services, alone=False)

            def stop(number: int, frame: object) -> None:
                run.stopping.set()
                raise KeyboardInterrupt

            run.ray()
            signal.signal(signal.SIGTERM, stop)  # after Ray, which sets its own
            build(node, run, fresh=order["fresh"])
    except UserError as error:
        print(f"mav: {' '.join(str(error).split())}", flush=True)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
