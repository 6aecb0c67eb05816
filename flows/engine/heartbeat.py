"""Periodic work beside a block of code, and the heartbeat that shows `mav status` that a stage is being built."""

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from flows.engine.run import Job

HEARTBEAT_SECONDS = 5.0


@contextmanager
def every(seconds: float, do: Callable[[], None]) -> Iterator[None]:
    """Calls `do` every so many seconds in a thread of its own while the block runs."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(seconds):
            do()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def heartbeat(job: Job) -> Iterator[None]:
    """Rewrites the stage's `heartbeat.json` while the block runs, with the latest progress in it."""

    def beat(ended: bool = False) -> None:
        record = {"time": time.time(), "pid": os.getpid(), "host": platform.node(), "ended": ended, **job.progress}
        with suppress(Exception):  # only observers read it, so storage that fails for a moment must not stop the stage
            job.work.write_json("heartbeat.json", record)

    beat()
    try:
        with every(HEARTBEAT_SECONDS, beat):
            yield
    finally:
        beat(ended=True)
