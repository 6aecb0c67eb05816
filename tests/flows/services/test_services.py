"""Ports and servers that a run stands on."""

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from flows.services.ports import reserve_port
from flows.services.prefect_server import prefect_server
from mav.errors import UserError


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
