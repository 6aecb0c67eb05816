"""The Prefect server of a run: the configured one, or one on loopback for as long as the run lasts."""

import ctypes
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from flows.services.ports import reserve_port
from mav.errors import UserError

START_SECONDS = 120  # a first start migrates its database: 30 s on a slow laptop
DRAIN_SECONDS = 10
PR_SET_PDEATHSIG = 1  # Linux: the child gets a signal when its parent dies, even by kill -9


@contextmanager
def prefect_server(meanwhile: Callable[[], object] = lambda: None) -> Iterator[str]:
    """Yields the address of the UI of the server in use; starts a server when none is configured.

    `PREFECT_API_URL` or the active Prefect profile configures one. `meanwhile` is called while ours starts. Raises
    UserError when a configured server does not answer, or when ours does not start.
    """
    from prefect.settings import PREFECT_API_URL

    configured = PREFECT_API_URL.value()
    if configured:
        _require_answer(configured)
        meanwhile()
        yield configured.removesuffix("/api")
        return
    port = reserve_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    errors = tempfile.TemporaryFile()  # noqa: SIM115 (a pipe that nobody reads would stop the server when it is full)
    process = subprocess.Popen(
        [*command, "--log-level", "ERROR"],
        env=os.environ | {"PREFECT_API_URL": f"{address}/api", "PREFECT_UI_API_URL": f"{address}/api"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        preexec_fn=_die_with_parent,
        start_new_session=True,  # Ctrl-C goes to the run alone: its server must still take the run's last records
    )
    try:
        meanwhile()
        _wait_until_healthy(process, errors, f"{address}/api/health")
        from prefect.settings import temporary_settings

        with temporary_settings({PREFECT_API_URL: f"{address}/api"}):
            os.environ["PREFECT_API_URL"] = f"{address}/api"
            try:
                yield address
            finally:
                os.environ.pop("PREFECT_API_URL", None)
                _drain()
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        errors.close()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _require_answer(configured: str) -> None:
    """Raises UserError when the configured server does not answer."""
    try:
        urllib.request.urlopen(f"{configured.rstrip('/')}/health", timeout=10).close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = "not by HTTP" if isinstance(error, http.client.HTTPException) else error
        raise UserError(
            f"The Prefect server at PREFECT_API_URL={configured} does not answer ({reason}): "
            "start it, or unset PREFECT_API_URL."
        ) from None


def _wait_until_healthy(process: subprocess.Popen[bytes], errors: IO[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"exit {process.returncode}"
            raise UserError(f"Prefect's server did not start ({reason}): see `prefect server start`.")
        with suppress(OSError, http.client.HTTPException):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.2)
    raise UserError(
        f"Prefect's server was not ready after {START_SECONDS} s: "
        "start one with `prefect server start` and set PREFECT_API_URL."
    )


def _drain() -> None:
    """Sends the events and logs that Prefect still buffers, while the server can take them."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=DRAIN_SECONDS)
