"""What a run stands on: a Prefect server, a Ray cluster, and the settings of both.

With `PREFECT_API_URL` set (or in the active Prefect profile) that server is used, otherwise one is started on loopback for as long
as the run lasts. With `RAY_ADDRESS=host:6379` that cluster is joined, with `RAY_ADDRESS=http://host:8265` each stage is a job of it
(`flows.engine.jobs`), otherwise Ray starts on this machine. Nothing is opened to other machines and neither sends telemetry.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mav.errors import UserError
from mav.recipes import Cluster


def job_server() -> str:
    """`RAY_ADDRESS` when it is a cluster's job server (http://head:8265); '' when it is a cluster to join, or none."""
    address = os.environ.get("RAY_ADDRESS", "")
    return address.rstrip("/") if address.startswith(("http://", "https://")) else ""


@contextmanager
def ray_cluster(cluster: Cluster) -> Iterator[str]:
    """Yields the address of the Ray dashboard ('' without one); joins `RAY_ADDRESS` or starts Ray on this machine.

    A job server is not joined: its address is the dashboard's.

    Raises UserError when the address does not answer.
    """
    import ray

    address = os.environ.get("RAY_ADDRESS", "")
    if job_server():
        yield address
        return
    if address:
        _check_ray_address(address)
    if ray.is_initialized():
        yield _dashboard()
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address:
        options |= {"address": address}
    else:
        options |= {
            "address": "local",  # one of its own, even where somebody else's runs on this machine
            "num_cpus": cluster.cpus or os.cpu_count(),
            "include_dashboard": cluster.dashboard,
            "dashboard_host": "127.0.0.1",
            "object_store_memory": cluster.object_store_mb * 2**20,
        }
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"RAY_ADDRESS={address} cannot be joined" if address else "Ray did not start on this machine"
        raise UserError(f"{where} ({str(error).splitlines()[0]}): check the cluster, or unset RAY_ADDRESS.") from None
    try:
        yield _dashboard()
    finally:
        ray.shutdown()


def _dashboard() -> str:
    import ray

    url = ray._private.worker.get_dashboard_url()
    return f"http://{url}" if url else ""


def _check_ray_address(address: str) -> None:
    """Ray itself would try for a minute; a refused connection is told at once."""
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
