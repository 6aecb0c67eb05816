"""A whole function on Ray: what happens to it when its run is stopped."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from flows.engine.function import run_on_ray
from flows.engine.run import Job, Run
from flows.engine.stage import Graph, Outcome, Stage
from flows.engine.store import Store
from flows.services.terminal import Terminal
from mav.errors import UserError
from mav.recipes import Recipe


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


class Stopping(Terminal):
    """Stops the run as soon as it has progress."""

    run: Run

    def progress(self, stage: str, done: float, total: float, **facts: Any) -> None:
        if done:
            self.run.stopping.set()


def test_a_run_that_is_stopped_lets_a_training_save(small_recipe: Recipe, tmp_path: Path, ray_session: None) -> None:
    screen = Stopping()
    screen.run = run = Run(small_recipe, Store(str(tmp_path / "runs")), screen, ExitStack())
    node = Stage("train", 1, (), lambda job: Outcome(), "train")(Graph(small_recipe))
    job, saved = Job(node, run, run.store.artifact(node), run.store.work(node)), tmp_path / "saved"
    with pytest.raises(UserError, match="being stopped"):
        run_on_ray(job, _train, str(saved))
    assert int(saved.read_text()) > 0
