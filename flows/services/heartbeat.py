"""The heartbeat of a stage: a file in its work folder, by which others see that it is being built, and how far it is.

Nothing of an artifact depends on it, so storage that fails for a moment stops neither who writes it nor who reads it.
"""

import os
import platform
import time
from typing import Any

from mav.errors import storage_may_fail
from mav.storage import Folder

HEARTBEAT = "heartbeat.json"


def write_heartbeat(work: Folder, progress: dict[str, Any], ended: bool = False) -> None:
    """Writes the time, this process and the stage's latest progress."""
    record = {"time": time.time(), "pid": os.getpid(), "host": platform.node(), "ended": ended, **progress}
    work.write_json(HEARTBEAT, record)


def read_heartbeat(work: Folder) -> dict[str, Any]:
    """Returns what was written last; {} where nothing was, and where storage does not answer now."""
    with storage_may_fail():
        if isinstance(record := work.read_json_or_none(HEARTBEAT), dict):
            return record
    return {}
