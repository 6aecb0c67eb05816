"""Ends a training that hangs (storage that never answers, a deadlock, a lost peer) and would keep its machines busy."""

import faulthandler
import time
from collections.abc import Iterator
from contextlib import contextmanager

_seconds = 0.0
_armed = 0.0


@contextmanager
def ended_when_stalled(seconds: float) -> Iterator[None]:
    """Kills the process, with its stacks on stderr, when the block makes no step for `seconds`; 0 = never."""
    global _seconds, _armed
    _seconds, _armed = seconds, -seconds
    step_made()
    try:
        yield
    finally:
        _seconds = 0.0
        faulthandler.cancel_dump_traceback_later()


def step_made() -> None:
    """Records a step. The timer is a thread in C that needs no lock of Python's; it is reset now and then."""
    global _armed
    now = time.monotonic()
    if _seconds and now - _armed >= _seconds / 100:
        _armed = now
        faulthandler.dump_traceback_later(_seconds, exit=True, file=2)
