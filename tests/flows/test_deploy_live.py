"""On real servers: Prefect's behind a password, a worker, and a Ray cluster that takes jobs; all on loopback, ended by
their ids."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.engine.store import Store
from flows.make_a_video import make_a_video
from flows.services.ports import reserve_port
from mav.recipes.reader import load_recipe

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]
LOGIN = "operator:a-word-for-the-test"
PORT = reserve_port()  # of the demo world
PATIENCE = 240.0  # seconds, on a slow machine


@contextmanager
def process(*command: str, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command of the environment in its own process group, which ends with the block."""
    with open(log, "ab") as output:
        running = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            env=environment,
            stdout=output,
            stderr=output,
            cwd=REPOSITORY,
            start_new_session=True,
        )
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def wait_for(what: Callable[[], Any], seconds: float, name: str) -> Any:
    """The first true thing that `what` gives."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError):
            if found := what():
                return found
        time.sleep(0.2)
    raise AssertionError(f"{name} did not happen in {seconds:.0f} s")


@dataclass
class Site:
    """The servers of this file and where they write."""

    folder: Path
    prefect: str
    ray: str
    environment: dict[str, str]
    server: subprocess.Popen[bytes]

    @property
    def runs(self) -> str:
        return str(self.folder / "runs")

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        line = [str(BIN / words[0]), *words[1:]]
        return subprocess.run(
            line, env=self.environment, capture_output=True, text=True, timeout=180, cwd=REPOSITORY, check=False
        )

    def mav(self, *words: str) -> tuple[str, ...]:
        return ("mav", *words, "--runs", self.runs, "--set", f"world.port={PORT}")

    def jobs(self, stage: str) -> dict[str, str]:
        """Status by id of the stage's Ray jobs."""
        with urllib.request.urlopen(f"{self.ray}/api/jobs/", timeout=10) as answer:
            return {
                job["submission_id"]: job["status"]
                for job in json.load(answer)
                if job["submission_id"].startswith(stage)
            }

    def ask(self, path: str, body: dict[str, Any], login: str = LOGIN) -> Any:
        """Prefect's API."""
        head = {
            "Content-Type": "application/json",
            "Authorization": f"Basic {base64.b64encode(login.encode()).decode()}",
        }
        request = urllib.request.Request(f"{self.prefect}/api{path}", json.dumps(body).encode(), head)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def done(self, stage: str) -> bool:
        return Store(self.runs).find(make_a_video(load_recipe("tiny", [f"world.port={PORT}"])).node(stage)) is not None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    sockets = tempfile.mkdtemp(prefix="ray-")  # short: a socket's path has a limit
    prefect, dashboard, gcs, agent, client = (reserve_port() for _ in range(5))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAY_"))} | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{prefect}/api",
        "PREFECT_API_AUTH_STRING": LOGIN,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with ExitStack() as services:
        services.callback(shutil.rmtree, sockets, ignore_errors=True)
        start = [
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={gcs}",
            f"--dashboard-port={dashboard}",
            "--num-cpus=2",
            "--block",
        ]
        start += [
            f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}",
            f"--temp-dir={sockets}",
        ]
        start += ["--object-store-memory=150000000"]
        services.enter_context(process("ray", "start", *start, environment=environment, log=folder / "ray.log"))
        own = environment | {"PREFECT_SERVER_API_AUTH_STRING": LOGIN}
        line = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect))
        server = services.enter_context(process(*line, environment=own, log=folder / "server.log"))
        environment["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
        made = Site(folder, f"http://127.0.0.1:{prefect}", environment["RAY_ADDRESS"], environment, server)
        wait_for(
            lambda: urllib.request.urlopen(f"{made.prefect}/api/health", timeout=2).close() is None,
            PATIENCE,
            "Prefect's start",
        )
        wait_for(lambda: made.jobs("") == {}, PATIENCE, "Ray's start")
        yield made


def test_a_deployed_stage_runs_on_the_cluster_or_refuses_with_a_sentence(site: Site) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        site.ask("/deployments/filter", {}, login="operator:wrong")
    pool = site.command("prefect", "work-pool", "create", "make-a-video", "--type", "process")
    assert pool.returncode == 0, pool.stderr
    deployed = site.command("prefect", "--no-prompt", "deploy", "--prefect-file", "infra/prefect.yaml", "--all")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    ids = {deployment["name"]: deployment["id"] for deployment in site.ask("/deployments/filter", {})}
    assert set(ids) == {"whole-graph", *make_a_video(load_recipe("demo")).nodes}

    def run(stage: str) -> str:
        parameters = {"recipe": "tiny", "runs": site.runs, "overrides": [f"world.port={PORT}"]}
        return str(site.ask(f"/deployments/{ids[stage]}/create_flow_run", {"parameters": parameters})["id"])

    def end(flow_run: str) -> Any:
        states = site.ask("/flow_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})[0]["state"]
        return states if states["type"] in ("COMPLETED", "FAILED", "CRASHED") else None

    line = ("prefect", "worker", "start", "--pool", "make-a-video")
    with process(*line, environment=site.environment, log=site.folder / "worker.log"):
        runs = [run("demo-world"), run("train-prior")]  # the second has no inputs yet
        made, refused = (wait_for(lambda one=one: end(one), PATIENCE, "a flow run's end") for one in runs)
    assert made["type"] == "COMPLETED", made
    assert site.done("demo-world")
    assert list(site.jobs("demo-world").values()) == ["SUCCEEDED"]
    assert refused["type"] == "FAILED"
    assert (
        "train-prior needs image-embed, which is missing: run the graph with `--until image-embed` first."
        in refused["message"]
    )
    assert site.jobs("train-prior") == {}
    shown = {artifact["key"] for artifact in site.ask("/artifacts/filter", {})}
    assert "demo-world" in shown


def test_a_flow_that_was_killed_finds_its_work_again(site: Site) -> None:
    line = site.mav("run", "tiny", "--until", "image-metadata")
    with process(*line, environment=site.environment, log=site.folder / "killed.log") as flow:
        wait_for(lambda: site.jobs("image-metadata"), PATIENCE, "the job's submission")
        flow.kill()
    again = site.command(*line)
    assert again.returncode == 0, again.stderr
    assert list(site.jobs("image-metadata").values()) == ["SUCCEEDED"], (
        "one job, which the second flow watched to its end"
    )
    assert site.done("image-metadata")


def test_a_cancelled_flow_stops_its_job(site: Site) -> None:
    line = site.mav("rerun", "tiny", "image-metadata")
    before = site.jobs("image-metadata")
    with process(*line, environment=site.environment, log=site.folder / "cancelled.log") as flow:
        (job,) = wait_for(lambda: site.jobs("image-metadata").keys() - before, PATIENCE, "the job's submission")
        flow.terminate()  # as Prefect's worker does
        assert flow.wait(timeout=30) == 130
    wait_for(lambda: site.jobs("image-metadata")[job] in ("STOPPED", "SUCCEEDED"), PATIENCE, "the job's end")
    assert site.jobs("image-metadata")[job] == "STOPPED"


def test_a_server_that_goes_away_costs_no_work(site: Site) -> None:
    before = site.jobs("image-metadata")
    with process(
        *site.mav("rerun", "tiny", "image-metadata"), environment=site.environment, log=site.folder / "alone.log"
    ):
        (job,) = wait_for(lambda: site.jobs("image-metadata").keys() - before, PATIENCE, "the job's submission")
        os.killpg(site.server.pid, signal.SIGKILL)
        wait_for(lambda: site.jobs("image-metadata")[job] == "SUCCEEDED", PATIENCE, "the stage's end")
    assert site.done("image-metadata")
    again = site.command(*site.mav("run", "tiny", "--until", "image-metadata"))
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("Nothing to do")
