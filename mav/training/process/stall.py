"""A training that hangs (storage that never answers, a deadlock, a peer that is gone) holds its machines and says nothing. Here it says
where it stands and ends, and its stage goes on from the last checkpoint."""

import faulthandler
import time
from collections.abc import Iterator
from contextlib import contextmanager

_seconds = 0.0
_armed = 0.0


@contextmanager
def ended_when_stalled(seconds: float) -> Iterator[None]:
    """While the block runs, the process writes its threads' stacks to stderr and dies once no step was made for `seconds`; 0 = never."""
    global _seconds, _armed
    _seconds, _armed = seconds, -seconds
    step_made()
    try:
        yield
    finally:
        _seconds = 0.0
        faulthandler.cancel_dump_traceback_later()


def step_made() -> None:
    """Called after every step; the timer, which is a thread in C and needs no lock of Python's, is wound up anew now and then."""
    global _armed
    now = time.monotonic()
    if _seconds and now - _armed >= _seconds / 100:
        _armed = now
        faulthandler.dump_traceback_later(_seconds, exit=True, file=2)
