"""A whole function on Ray: what happens to it when its run is stopped or taken over, and to what watches it."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from flows.engine.capacity import Capacity
from flows.engine.function import MESSAGES, PROGRESS, ProgressFile, following, keep_kernels, run_on_ray, save_seconds
from flows.engine.lease import Lease
from flows.engine.run import Job, Run, heartbeat
from flows.engine.stage import Graph, Outcome, Stage
from flows.engine.store import Store
from flows.services.terminal import Terminal
from mav.errors import UserError
from mav.recipes import Recipe
from mav.storage import Folder


def _train(saved: str, report: Callable[[dict[str, Any]], None]) -> None:
    """Ends as a training does: after the step it is in, having saved."""
    from mav.training.process.preemption import TerminationRequest, catch_termination_signals

    with catch_termination_signals():
        requested, samples = TerminationRequest(1), 0
        while not requested():
            samples += 1
            report({"samples": samples, "total": 1000})
            time.sleep(0.1)
        Path(saved).write_text(str(samples))


class Screen(Terminal):
    """Calls `begun` as soon as there is progress, and keeps what is said."""

    def __init__(self, begun: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.begun, self.said = begun, list[str]()

    def progress(self, stage: str, done: float, total: float, **facts: Any) -> None:
        if done:
            self.begun()

    def say(self, text: str, stage: str = "") -> None:
        self.said.append(text)


def _job(recipe: Recipe, runs: Path, screen: Terminal) -> Job:
    run = Run(recipe, Store(str(runs)), screen, ExitStack())
    node = Stage("train", 1, (), lambda job: Outcome(), "train")(Graph(recipe))
    return Job(node, run, run.store.artifact(node), run.store.work(node))


@pytest.mark.parametrize("end", ["being stopped", "took train over"])
def test_a_training_saves_and_ends_when_its_run_is_stopped_or_taken_over(
    small_recipe: Recipe, tmp_path: Path, ray_session: None, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.engine.lease.BEAT_SECONDS", 0.2)
    screen, saved = Screen(), tmp_path / "saved"
    job = _job(small_recipe, tmp_path, screen)
    job.lease = Lease(job.work, "train")
    assert job.lease.acquire()
    last = job.lease.folder

    def taken_over() -> None:
        last.write_bytes("000002.json", last.read_bytes("000001.json"))

    screen.begun = job.run.stopping.set if end == "being stopped" else taken_over
    with pytest.raises(UserError, match=end):
        run_on_ray(job, _train, str(saved))
    assert int(saved.read_text()) > 0
    job.lease.release()


class Silent(Capacity):
    """Nobody waits for processors."""

    def __init__(self) -> None: ...
    def report_waiting(self) -> None: ...


def test_what_the_watching_thread_meets_reaches_the_stage_and_failing_storage_is_told(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.engine.function.LOOK_SECONDS", 0.02)
    looks, mistakes = iter([OSError("away"), OSError("away"), EndpointConnectionError(endpoint_url="s3"), None]), []

    def begun() -> None:
        if error := next(looks, None):
            raise error
        raise mistakes[0]

    screen = Screen(begun)
    job = _job(small_recipe, tmp_path, screen)

    def stage() -> None:
        with following(job, Silent()) as require_running:
            job.work.write_json(PROGRESS, {"samples": 1, "total": 2})
            until = time.monotonic() + 20
            while time.monotonic() < until:
                require_running()
                time.sleep(0.01)

    for mistake in (UserError("Another run took it over."), KeyError("done")):
        mistakes[:] = [mistake]
        with pytest.raises(type(mistake)):
            stage()
    assert len(screen.said) == 1, "once an outage"
    assert "storage fails (OSError: away); trying again" in screen.said[0]


def test_storage_that_fails_stops_no_work_for_its_progress_or_heartbeat(
    small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _job(small_recipe, tmp_path, Screen())

    def away(folder: Folder, name: str, value: Any) -> None:
        raise EndpointConnectionError(endpoint_url="s3")  # which is no OSError

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write_json", away)
        progress = ProgressFile(job.work)
        with heartbeat(job):
            progress.begin()
            progress({"samples": 1, "total": 2})
            progress({"message": "the checkpoint is damaged"})
    progress({"samples": 2, "total": 2})
    assert job.work.read_json(MESSAGES) == ["the checkpoint is damaged"], "it is told when storage is back"
    monkeypatch.setattr(Folder, "write_json", lambda folder, name, value: {}["no"])
    with pytest.raises(KeyError):  # a mistake is no failing storage
        ProgressFile(job.work).begin()


def test_a_training_has_the_time_that_its_checkpoint_takes(tmp_path: Path) -> None:
    assert save_seconds(Folder(str(tmp_path))) == 20
    for samples, size in (("000000000004-aa", 10**9), ("000000000008-aa", 3 * 10**9)):
        for name in ("__0_0.distcp", ".metadata"):
            file = tmp_path / "checkpoints" / samples / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as sparse:
                sparse.truncate(size)
    assert save_seconds(Folder(str(tmp_path))) == 20 + 60


def _kernels(report: Callable[[dict[str, Any]], None]) -> str:
    return os.environ.get("TRITON_CACHE_DIR", "")


def test_workers_share_the_kernels_they_compile_where_the_runs_are_in_a_folder(
    small_recipe: Recipe, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_on_ray(_job(small_recipe, tmp_path, Screen()), _kernels).endswith("/kernels")
    monkeypatch.setenv("TRITON_CACHE_DIR", "a user's")
    keep_kernels(Store(str(tmp_path)).kernels())
    assert os.environ["TRITON_CACHE_DIR"] == "a user's"
    monkeypatch.delenv("TRITON_CACHE_DIR")
    keep_kernels(Store("memory://runs").kernels())
    assert "TRITON_CACHE_DIR" not in os.environ
    keep_kernels(Store(str(tmp_path)).kernels())
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "kernels")
    from triton import knobs

    assert knobs.cache.dir == str(tmp_path / "kernels"), "Triton has the variable under another name"
