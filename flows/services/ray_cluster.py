"""The Ray cluster of a run: the one at `RAY_ADDRESS`, or one on this machine for as long as the run lasts.

`RAY_ADDRESS=host:6379` names a cluster to join. `RAY_ADDRESS=http://host:8265` names a job server: each stage becomes a
job of its cluster (`flows.engine.jobs`). Nothing that starts here listens to other machines or asks them anything.
"""

import ctypes
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from flows.services.environment import require_places
from mav.errors import UserError
from mav.recipes import Cluster

ARENA_MAX = -8  # of mallopt(3)
SLOW = "timed out during startup"  # in Ray's words
DASHBOARD = Path(__file__).with_name("ray_dashboard.py")


def job_server() -> str:
    """Returns `RAY_ADDRESS` when it is a cluster's job server, and '' when it is a cluster to join or unset."""
    address = os.environ.get("RAY_ADDRESS", "")
    return address.rstrip("/") if address.startswith(("http://", "https://")) else ""


@contextmanager
def ray_cluster(cluster: Cluster) -> Iterator[str]:
    """Joins or starts Ray, unless this process has, and yields the address of its dashboard, '' without one.

    A job server is not joined: its address is the dashboard's.

    Raises UserError when the address does not answer, or when Ray does not start.
    """
    import ray

    address = os.environ.get("RAY_ADDRESS", "")
    if job_server():
        yield address
        return
    if address:
        _require_answer(address)
    if ray.is_initialized():
        yield ""
        return
    options: dict[str, Any] = {"address": address} if address else {
        "address": "local",  # a cluster of its own, even where another runs on this machine
        "num_cpus": cluster.cpus or os.cpu_count(),
        "include_dashboard": cluster.dashboard,
        "dashboard_host": "127.0.0.1",
        "object_store_memory": cluster.object_store_mb * 2**20,
    }  # fmt: skip
    if not address:
        require_places()
    context = _init(options, address)
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else ""
    finally:
        ray.shutdown()


def _init(options: dict[str, Any], address: str) -> Any:
    """Joins or starts Ray. A busy machine gets a second try, since Ray waits 30 s for its own processes and no more."""
    import ray

    _share_arena()
    for last in (bool(address), True):
        try:
            with _quiet_dashboard():
                return ray.init(**options, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
        except Exception as error:  # Ray raises bare exceptions too
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            if not last and SLOW in reason:
                continue
            if address:
                problem = f"RAY_ADDRESS={address} cannot be joined ({reason}): check the cluster, or unset RAY_ADDRESS."
            else:
                remedy = "see that processors and memory are free, and run it again"
                problem = f"Ray did not start on this machine ({reason}): {remedy}."
            raise UserError(problem) from None


def _share_arena() -> None:
    """Makes all threads of this process allocate in one place.

    glibc gives each of Ray's threads a place of its own, where freed memory stays and no other thread uses it: after
    100,000 tasks that was 20 MB.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(ARENA_MAX, 1)


@contextmanager
def _quiet_dashboard() -> Iterator[None]:
    """Within the block, Ray starts its dashboard through `flows.services.ray_dashboard`."""
    import ray
    from ray._private import services

    start, script = services.start_ray_process, os.path.join(os.path.dirname(ray.__file__), "dashboard", "dashboard.py")

    def start_quietly(command: list[str], *arguments: Any, **options: Any) -> Any:
        own = [str(DASHBOARD) if part == script else part for part in command]
        return start(own, *arguments, **options)

    with mock.patch.object(services, "start_ray_process", start_quietly):
        yield


def _require_answer(address: str) -> None:
    """Raises UserError when nothing listens at the address. Ray itself would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local") or not port.isdigit():
        return
    try:
        socket.create_connection((host or "127.0.0.1", int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"No Ray cluster answers at RAY_ADDRESS={address} ({error.strerror or error}): "
            "start it with `ray start --head`, or unset RAY_ADDRESS."
        ) from None
