"""A stage as a Ray job: asked for twice it is one job, its sentence comes back, whoever is stopped stops it."""

import dataclasses
import json
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from ray.job_submission import JobStatus

from flows.engine import jobs
from flows.engine.run import Run
from flows.engine.stage import Node
from flows.engine.store import Store
from flows.make_a_video import make_a_video
from flows.services.heartbeat import HEARTBEAT
from flows.services.terminal import Terminal
from mav.errors import UserError
from mav.recipes import Recipe, World
from mav.storage import Artifact, Folder


@dataclasses.dataclass
class Details:
    """As Ray tells of a job."""

    submission_id: str
    status: JobStatus = JobStatus.RUNNING
    driver_exit_code: int | None = None
    message: str = ""
    log: str = ""


class FakeCluster:
    """Ray's job client, as far as it is used. `ending` is called when a job is looked at."""

    def __init__(self) -> None:
        self.jobs: dict[str, Details] = {}
        self.orders: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.ending: Any = lambda job: None

    def list_jobs(self) -> list[Details]:
        return list(self.jobs.values())

    def submit_job(self, submission_id: str, runtime_env: dict[str, Any], **rest: Any) -> str:
        if submission_id in self.jobs:
            raise RuntimeError("a job of this id exists")
        self.jobs[submission_id] = Details(submission_id)
        self.orders.append(json.loads(runtime_env["env_vars"][jobs.ORDER]))
        return submission_id

    def get_job_info(self, job: str) -> Details:
        self.ending(self.jobs[job])
        return self.jobs[job]

    def get_job_logs(self, job: str) -> str:
        return self.jobs[job].log

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    monkeypatch.setattr(jobs, "_client", lambda: fake)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    return fake


@pytest.fixture
def asked(small_recipe: Recipe, tmp_path: Path) -> tuple[Node, Run]:
    recipe = dataclasses.replace(small_recipe, world=World())
    node = make_a_video(recipe).node("demo-world")
    return node, Run(recipe, Store(str(tmp_path)), Terminal(), ExitStack(), make_a_video)


def finish(node: Node, run: Run) -> Any:
    def ending(job: Details) -> None:
        facts = {
            "stage": node.name,
            "version": 1,
            "fingerprint": node.fingerprint,
            "recipe": "small",
            "config": {},
            "inputs": {},
        }
        told = {"counts": {}, "metrics": {}, "seconds": 1.0, "finished": "", "software": {}}
        Artifact.publish(run.store.artifact(node), **facts, **told)
        job.status, job.driver_exit_code = JobStatus.SUCCEEDED, 0

    return ending


def test_storage_that_fails_for_a_moment_stops_no_job(
    cluster: FakeCluster, asked: tuple[Node, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, run = asked
    looks = iter([lambda job: None] * 3 + [finish(node, run)])
    cluster.ending = lambda job: next(looks)(job)
    read = Folder.read_json_or_none

    def away(folder: Folder, name: str) -> Any:
        if name == HEARTBEAT:
            raise EndpointConnectionError(endpoint_url="s3")
        return read(folder, name)

    monkeypatch.setattr(Folder, "read_json_or_none", away)
    assert jobs.build_on_cluster(node, run).manifest.fingerprint == node.fingerprint
    assert not cluster.stopped


def test_a_stage_is_one_job_and_its_artifact_is_found(cluster: FakeCluster, asked: tuple[Node, Run]) -> None:
    node, run = asked
    cluster.ending = finish(node, run)
    assert jobs.build_on_cluster(node, run).manifest.fingerprint == node.fingerprint
    assert jobs.build_on_cluster(node, run).manifest.fingerprint == node.fingerprint
    assert len(cluster.jobs) == 1, "what is there is not built again"
    jobs.build_on_cluster(node, run, fresh=True)
    assert [order["fresh"] for order in cluster.orders] == [False, True]
    assert [name.rpartition("-")[2] for name in cluster.jobs] == ["1", "2"]
    del cluster.jobs[min(cluster.jobs)]  # as `ray job delete` does
    jobs.build_on_cluster(node, run, fresh=True)
    assert [name.rpartition("-")[2] for name in cluster.jobs] == ["2", "3"]
    assert not cluster.stopped


def test_a_job_that_is_at_work_is_watched_not_doubled(cluster: FakeCluster, asked: tuple[Node, Run]) -> None:
    node, run = asked
    left = jobs._submit(cluster, node, run, fresh=False)  # by a flow that was killed
    cluster.ending = finish(node, run)
    jobs.build_on_cluster(node, run, fresh=True)
    assert list(cluster.jobs) == [left]


def test_of_two_flows_at_once_one_submits(
    cluster: FakeCluster, asked: tuple[Node, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, run = asked
    first = jobs._submit(cluster, node, run, fresh=False)
    monkeypatch.setattr(jobs, "_jobs", lambda *_: [])  # the other flow looked a moment before
    seen = iter(["", first])
    monkeypatch.setattr(jobs, "_living_job", lambda *_: next(seen))
    cluster.ending = finish(node, run)
    jobs.build_on_cluster(node, run)
    assert list(cluster.jobs) == [first]


def test_what_the_user_can_mend_comes_back_as_a_sentence(cluster: FakeCluster, asked: tuple[Node, Run]) -> None:
    def refuse(job: Details) -> None:
        job.status, job.driver_exit_code, job.log = (
            JobStatus.FAILED,
            2,
            "noise\nmav: The disk is full: free some.\nJob failed\n",
        )

    cluster.ending = refuse
    with pytest.raises(UserError, match=r"^The disk is full: free some\.$"):
        jobs.build_on_cluster(*asked)


def test_a_job_that_died_may_be_tried_again(cluster: FakeCluster, asked: tuple[Node, Run]) -> None:
    def die(job: Details) -> None:
        job.status, job.message = JobStatus.FAILED, "the node went away"

    cluster.ending = die
    with pytest.raises(RuntimeError, match="the node went away"):
        jobs.build_on_cluster(*asked)


def test_who_is_stopped_stops_the_job(cluster: FakeCluster, asked: tuple[Node, Run]) -> None:
    node, run = asked
    threading.Timer(0.2, run.stopping.set).start()
    with pytest.raises(UserError, match="being stopped"):
        jobs.build_on_cluster(node, run)
    assert cluster.stopped == list(cluster.jobs)


def test_a_cluster_that_is_gone_is_named_though_its_job_cannot_be_stopped(
    cluster: FakeCluster, asked: tuple[Node, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: object) -> None:
        raise ConnectionError("refused")

    cluster.ending = away
    monkeypatch.setattr(cluster, "stop_job", away)
    monkeypatch.setattr(jobs, "PATIENCE_SECONDS", 0.05)
    with pytest.raises(RuntimeError, match=r"demo-world: the Ray cluster at .* is gone \(refused\)"):
        jobs.build_on_cluster(*asked)


def test_the_job_refuses_to_build_what_was_not_asked_for(asked: tuple[Node, Run]) -> None:
    node, run = asked
    order = {
        "builder": "flows.make_a_video:make_a_video",
        "recipe": jobs.to_plain(run.recipe),
        "stage": node.name,
        "fingerprint": "other",
        "runs": "runs",
        "fresh": False,
        "folder": "/",
    }
    environment = {"PATH": "/usr/bin:/bin", jobs.ORDER: json.dumps(order)}
    done = subprocess.run(
        [sys.executable, "-m", "flows.engine.jobs"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == jobs.USER_ERROR, done.stderr
    assert done.stdout.startswith("mav: The cluster would build another demo-world than the flow asks for")
