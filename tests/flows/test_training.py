"""A training of several workers that is stopped."""

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows.engine.run import Job
from flows.training import STOP, _fit
from mav.errors import UserError
from mav.storage import Folder


def test_a_training_whose_run_is_stopped_saves_before_the_run_ends(tmp_path):
    work, saved = Folder(str(tmp_path)), []

    def require_running() -> None:
        raise UserError("The run is being stopped")

    def fit() -> None:
        """As the workers do: train until they are told to end, then save."""
        while not work.exists(STOP):
            time.sleep(0.05)
        time.sleep(0.2)
        saved.append(True)

    job: Any = SimpleNamespace(work=work)
    with pytest.raises(UserError, match="being stopped"):
        _fit(cast(Job, job), SimpleNamespace(fit=fit), require_running)
    assert saved


def test_what_a_training_fails_of_is_raised(tmp_path):
    def fit() -> None:
        raise RuntimeError("the workers are gone")

    job: Any = SimpleNamespace(work=Folder(str(tmp_path)))
    with pytest.raises(RuntimeError, match="are gone"):
        _fit(cast(Job, job), SimpleNamespace(fit=fit), lambda: None)
