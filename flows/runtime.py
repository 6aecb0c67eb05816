"""What a run stands on: a Prefect server, a Ray cluster, and the settings of both.

With `PREFECT_API_URL` set (or in the active Prefect profile) that server is used, otherwise one is started on loopback for as long
as the run lasts. With `RAY_ADDRESS=host:6379` that cluster is joined, with `RAY_ADDRESS=http://host:8265` each stage is a job of it
(`flows.jobs`), otherwise Ray starts on this machine. Nothing is opened to other machines and neither sends telemetry.
"""

import ctypes
import http.client
import importlib.metadata
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mav.errors import UserError
from mav.recipe import Cluster

SERVER_PATIENCE_SECONDS = 120  # a first start migrates its database: 30 s on a slow laptop
DRAIN_SECONDS = 10
PR_SET_PDEATHSIG = 1  # Linux: the child is told when its parent dies, even by kill -9


def configure_environment() -> None:
    """Sets what Prefect and Ray read when they are imported. Called first thing; a user's own settings win."""
    for name, value in {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_FLUSH_DRIVER_LOGS": "1",  # Ray's lines and ours in the order they happened, in a file too
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "RAY_TRAIN_V2_ENABLED": "1",
        # On loopback, for one user, a token guards nothing; a cluster's own RAY_AUTH_MODE stays as its operator set it.
        "RAY_AUTH_MODE": "disabled",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    _refuse_dataclasses_backport()


def _refuse_dataclasses_backport() -> None:
    with suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("dataclasses")
        raise UserError(
            "The Python 3.6 backport `dataclasses` is installed and breaks Prefect's server: "
            "install from requirements.lock, or `pip uninstall dataclasses`."
        )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


_reserved: list[socket.socket] = []  # open as long as this process lives


def reserve_port() -> int:
    """A loopback port for a server that starts later; the kernel gives it to nobody who asks for just any port, as Ray often does.

    It is held by a socket that is bound and never listens. A server binds it all the same, as both set SO_REUSEADDR, which every
    server does that can be started again at once.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _reserved.append(held)
    return int(held.getsockname()[1])


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return True
    return False


def job_server() -> str:
    """`RAY_ADDRESS` when it is a cluster's job server (http://head:8265); '' when it is a cluster to join, or none."""
    address = os.environ.get("RAY_ADDRESS", "")
    return address.rstrip("/") if address.startswith(("http://", "https://")) else ""


@contextmanager
def prefect_server(meanwhile: Callable[[], object] = lambda: None) -> Iterator[str]:
    """Yields the address of the UI of the server in use, started here when none is configured; `meanwhile` is called while it starts.

    Raises UserError when a configured server does not answer or ours does not come up.
    """
    from prefect.settings import PREFECT_API_URL

    configured = PREFECT_API_URL.value()
    if configured:
        try:
            urllib.request.urlopen(f"{configured.rstrip('/')}/health", timeout=10).close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = "not by HTTP" if isinstance(error, http.client.HTTPException) else error
            raise UserError(
                f"The Prefect server at PREFECT_API_URL={configured} does not answer ({reason}): start it, or unset PREFECT_API_URL."
            ) from None
        meanwhile()
        yield configured.removesuffix("/api")
        return
    port = reserve_port()
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {"PREFECT_API_URL": f"{address}/api", "PREFECT_UI_API_URL": f"{address}/api"}
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--log-level", "ERROR"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=_die_with_parent,
        start_new_session=True,  # Ctrl-C is the run's to hear: its server must still take what it has to say
    )
    try:
        meanwhile()
        _wait_until_healthy(process, f"{address}/api/health")
        from prefect.settings import temporary_settings

        with temporary_settings({PREFECT_API_URL: f"{address}/api"}):
            os.environ["PREFECT_API_URL"] = f"{address}/api"
            try:
                yield address
            finally:
                os.environ.pop("PREFECT_API_URL", None)
                _drain_prefect()
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _drain_prefect() -> None:
    """Sends what Prefect still holds back while the server is there; at exit it would wait for one that is gone."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=DRAIN_SECONDS)


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + SERVER_PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.stderr is not None
            reason = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise UserError(
                f"Prefect's server did not start ({reason[-1] if reason else f'exit {process.returncode}'}): see `prefect server start`."
            )
        with suppress(OSError, http.client.HTTPException):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.2)
    raise UserError(
        f"Prefect's server was not ready after {SERVER_PATIENCE_SECONDS} s: start one with `prefect server start` and set PREFECT_API_URL."
    )


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
