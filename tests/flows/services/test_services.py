"""Ports and servers that a run stands on."""

import asyncio
import datetime
import http.server
import importlib
import os
import re
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.services.ports import reserve_port
from flows.services.prefect_server import prefect_server
from flows.services.ray_cluster import ray_cluster
from mav.errors import UserError
from mav.recipes import Cluster


def test_a_reserved_port_is_for_a_server_and_for_nobody_else() -> None:
    ports = [reserve_port() for _ in range(20)]
    assert len(set(ports)) == 20
    with socket.socket() as passer_by, pytest.raises(OSError, match="in use"):
        passer_by.bind(("127.0.0.1", ports[0]))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]))
    for _ in range(2):  # and again at once, as after a crash
        with http.server.HTTPServer(("127.0.0.1", ports[0]), http.server.BaseHTTPRequestHandler):
            socket.create_connection(("127.0.0.1", ports[0])).close()


@pytest.fixture
def something_else() -> Iterator[str]:
    """An address where a server of another protocol greets whoever comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            while True:
                try:
                    caller, _ = server.accept()
                except OSError:
                    return
                with caller:
                    caller.recv(1000)
                    caller.sendall(b"\x00\x00\x18\x04\x00\x00\x00\x00\x00\n")

        threading.Thread(target=greet, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_an_address_of_another_protocol_is_a_sentence(something_else: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (
        temporary_settings({PREFECT_API_URL: f"http://{something_else}/api"}),
        pytest.raises(UserError, match=r"does not answer \(not by HTTP\): start it, or unset PREFECT_API_URL"),
        prefect_server(),
    ):
        pass


TALKATIVE = """
import http.server, sys
sys.stderr.write("database is locked\\n" * 100_000)
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""


def test_a_prefect_server_may_log_as_many_errors_as_it_likes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{TALKATIVE}")
    script.chmod(0o700)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr("flows.services.prefect_server.START_SECONDS", 20)
    monkeypatch.setattr("flows.services.prefect_server.sys", SimpleNamespace(executable=str(script)))
    with prefect_server() as address:
        assert address.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("address", ["", "127.0.0.1:6379"])
def test_no_dependency_is_left_to_ask_other_machines(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    from flows.services.environment import configure_environment

    importlib.import_module("mav.data.images.resize")
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"
    silent = {"RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1"}
    for name in (*silent, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    configure_environment()
    assert {name: os.environ.get(name) for name in silent} == silent
    assert os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == (None if address else "0"), "a cluster has addresses"


def test_ray_finds_its_own_address_without_a_socket_to_another() -> None:
    code = """
import socket
from flows.services.environment import configure_environment
configure_environment()
import ray._private.services as services
services.node_ip_address_from_perspective = lambda *_: exit("asked")
print(services.get_node_ip_address())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() in ("127.0.0.1", "::1"), done.stderr


@pytest.mark.parametrize("error", [None, UserError("The run is being stopped")])
def test_a_server_that_goes_away_while_a_gpu_slot_is_held_hides_nothing(
    monkeypatch: pytest.MonkeyPatch, error: UserError | None
) -> None:
    import httpx

    from flows.services import gpu_slots

    @contextmanager
    def slot(*_: object, raise_on_lease_renewal_failure: bool, **__: object) -> Iterator[None]:
        assert not raise_on_lease_renewal_failure, "a renewal that fails must not end the stage"
        try:
            yield
        finally:
            raise httpx.ConnectError("the server is away")

    monkeypatch.setattr(gpu_slots, "concurrency", slot)
    monkeypatch.setattr(gpu_slots, "get_client", lambda **_: nullcontext(MagicMock()))
    told = pytest.raises(UserError, match="being stopped") if error else nullcontext()
    with told, gpu_slots.gpu_slot(1, lambda: None, lambda: pytest.fail("it answered")):
        if error:
            raise error


def test_a_prefect_server_that_is_started_anew_still_knows_who_holds_a_gpu_slot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from flows.services.environment import configure_environment

    name = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
    monkeypatch.delenv(name, raising=False)
    configure_environment()
    leases = importlib.import_module(os.environ[name]).ConcurrencyLeaseStorage
    lease = asyncio.run(leases(tmp_path).create_lease([uuid.uuid4()], datetime.timedelta(minutes=1)))
    assert asyncio.run(leases(tmp_path).read_lease(lease.id)) is not None


@pytest.mark.parametrize(("failures", "starts"), [(0, 1), (1, 2), (2, 2)])
def test_ray_gets_a_second_try_on_a_busy_machine(failures: int, starts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    tries = []

    def start(**options: object) -> SimpleNamespace:
        tries.append(options["address"])
        if len(tries) <= failures:
            raise Exception("The current node timed out during startup. This could happen because ...")
        return SimpleNamespace(dashboard_url="")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    told = (
        pytest.raises(UserError, match=r"Ray did not start.*processors and memory") if failures > 1 else nullcontext()
    )
    with told, ray_cluster(Cluster()):
        pass
    assert tries == ["local"] * starts


@pytest.mark.parametrize("error", ["ObjectNotFound", "ConnectError"])
def test_a_prefect_server_that_lost_the_run_is_a_sentence(
    error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its database was emptied or replaced, or it went away for good."""
    import httpx
    from prefect.exceptions import ObjectNotFound

    import flows.deploy

    def lost(**_: object) -> None:
        raise ObjectNotFound(Exception("404")) if error == "ObjectNotFound" else httpx.ConnectError("refused")

    monkeypatch.setattr(flows.deploy, "make_a_video_flow", lost)
    monkeypatch.setattr(
        "flows.services.prefect_server.prefect_server", lambda meanwhile: meanwhile() or nullcontext("there")
    )
    monkeypatch.setattr("flows.services.ray_cluster.ray_cluster", lambda cluster: nullcontext(""))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    result = CliRunner().invoke(app, ["run", "tiny", "--runs", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert re.search("lost the run .*what is finished is kept", str(result.exception))
