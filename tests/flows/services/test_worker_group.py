"""Workers of a training that Ray Train ends."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from flows.services.worker_group import torch_config
from mav.training.process import preemption


@pytest.mark.parametrize(("errors", "finished", "saves"), [({}, False, True), ({1: OSError("lost")}, False, False)])
def test_workers_save_before_they_are_begun_again_as_more_unless_one_is_lost(monkeypatch, errors, finished, saves):
    monkeypatch.setattr(preemption, "_requested", threading.Event())
    monkeypatch.setattr("ray.get", lambda references, timeout: references)
    status, over = SimpleNamespace(errors=errors, finished=finished), threading.Event()
    saved, called = list[bool](), list[str]()

    def work() -> None:
        """Ends as a training does: after the step it is in, having saved."""
        with preemption.told_when_ended():
            requested = preemption.TerminationRequest(1)
            while not requested():
                if over.wait(0.05):
                    return
            time.sleep(0.2)
            saved.append(True)

    class Group(list[int]):
        """Two workers, whose calls are made here."""

        def get_latest_poll_status(self) -> Any:
            return status

        def execute(self, function: Any, *arguments: Any, **options: Any) -> list[Any]:
            called.append(function.__name__)
            if function is preemption.end_training:
                function(*arguments)
            return []

        execute_async = execute

    training = threading.Thread(target=work)
    training.start()
    config = torch_config("gloo", 60.0, lambda: 20.0)
    config.backend_cls().on_shutdown(Group([0, 1]), config)
    over.set()
    training.join()
    assert saved == [True] * saves
    assert called[-1] == "_shutdown_torch", "Ray Train's own part is done after it"
