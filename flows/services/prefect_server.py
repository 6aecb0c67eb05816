"""TODO-DOC flows/services/prefect_server.py"""

import ctypes
import http.client
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from flows.services.ports import reserve_port
from mav.errors import UserError

SERVER_PATIENCE_SECONDS = 120  # a first start migrates its database: 30 s on a slow laptop
DRAIN_SECONDS = 10
PR_SET_PDEATHSIG = 1  # Linux: the child is told when its parent dies, even by kill -9


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


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
        [
            sys.executable,
            "-m",
            "prefect",
            "server",
            "start",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--log-level",
            "ERROR",
        ],
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
