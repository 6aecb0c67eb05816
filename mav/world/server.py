"""The demo world's web server: on loopback only, and as faulty as the real web where `faults.json` says so."""

from __future__ import annotations

import errno
import json
import mimetypes
import socket
import threading
import time
import urllib.request
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mav.errors import UserError
from mav.storage import Folder

HOST = "127.0.0.1"
SLOW_SECONDS = 120.0  # for which a slow answer sends single bytes before it stops
OVERSIZED = 4 << 30  # bytes that an oversized answer claims to have
PAGE = b"<!DOCTYPE html>\n<html><title>Not here</title><body>This picture has moved.</body></html>\n"


class WorldServer:
    """Serves a world's `site` folder while the context is open.

    When another process serves the same world at the port, that server is used and nothing is started; any other use of
    the port is a UserError. Port 0 takes a free one; `port` and `url` then name it.
    """

    def __init__(self, site: Folder | str, port: int) -> None:
        self.site = site if isinstance(site, Folder) else Folder(site)
        self.port = port
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/"

    def __enter__(self) -> WorldServer:
        self._server = self._start()
        if self._server is not None:
            self.port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._server is not None:
            self._server.closing.set()
            self._server.shutdown()
            self._server.server_close()

    def _start(self) -> _Server | None:
        try:
            identity: dict[str, Any] = self.site.read_json("identity.json")
        except FileNotFoundError:
            raise UserError(f"There is no demo world at {self.site.url}: run the stage `demo-world` first.") from None
        try:
            return _Server((HOST, self.port), self.site, identity)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(
                    f"The demo world's server cannot listen on {HOST}:{self.port} ({error.strerror}): choose another "
                    "with `--set world.port=...`."
                ) from None
            if _identity_at(self.url) != identity:
                raise UserError(
                    f"Port {self.port} is in use by another program: choose a free one with `--set world.port=...`."
                ) from None
            return None


def _identity_at(url: str) -> Any:
    """Returns the identity of the world served there; None when the answer is not a world's."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}.world", timeout=2) as answer:
            return json.loads(answer.read(1 << 16))
    except (OSError, ValueError):
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], site: Folder, identity: Mapping[str, Any]) -> None:
        super().__init__(address, _Handler)
        self.site, self.identity = site, identity
        self.names = set(site.names()) - {"faults.json", "identity.json"}
        self.faults: dict[str, dict[str, Any]] = site.read_json("faults.json") if site.exists("faults.json") else {}
        self.requested: set[str] = set()
        self.closing = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Does nothing: clients are expected to hang up on a slow or endless answer."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "demo-world"
    sys_version = ""
    timeout = 60

    def log_message(self, format: str, *args: Any) -> None:
        """Does nothing: a run makes thousands of requests."""

    def do_GET(self) -> None:
        name, _, query = self.path.lstrip("/").partition("?")
        faults = self.server.faults
        if name == ".world":
            self._send(200, json.dumps(self.server.identity).encode(), "application/json")
        elif not name:
            kinds = {name: faults.get(name, {}).get("kind", "") for name in sorted(self.server.names)}
            rows = "".join(f"<li><a href='{name}'>{name}</a> {kind}" for name, kind in kinds.items())
            page = f"<!doctype html><title>The demo world</title><ul>{rows}</ul>"
            self._send(200, page.encode(), "text/html")
        elif name not in self.server.names:
            self._send(404, PAGE)
        else:
            body = self.server.site.read_bytes(name)
            content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
            if name in faults and query != "direct":
                self._misbehave(name, faults[name], body, content_type)
            else:
                self._send(200, body, content_type)

    def _send(
        self, status: int, body: bytes, content_type: str = "text/html", length: int | None = None, **headers: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in headers.items():
            if value:
                self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _misbehave(self, name: str, fault: Mapping[str, Any], body: bytes, content_type: str) -> None:
        kind = fault["kind"]
        if kind == "status":
            self._send(fault["status"], PAGE, Retry_After=str(fault.get("retry_after", "")))
        elif kind == "flaky" and name not in self.server.requested:  # only its first request fails
            self.server.requested.add(name)
            self._send(fault["status"], PAGE, Retry_After="0")
        elif kind == "flaky":
            self._send(200, body, content_type)
        elif kind == "slow":
            self._drip(body, content_type)
        elif kind == "truncated":
            self._send(200, body[: len(body) // 2], content_type, length=len(body))
            self.connection.shutdown(socket.SHUT_WR)
        elif kind == "oversized":
            self._send(200, body, content_type, length=OVERSIZED)
            self._flood()
        elif kind == "html":
            self._send(200, PAGE, content_type)
        elif kind == "opt_out":
            self._send(200, body, content_type, X_Robots_Tag=fault["header"])
        elif kind in ("redirect", "redirect_loop", "redirect_ok"):
            targets = {"redirect_loop": f"/{name}?again", "redirect_ok": f"/{name}?direct"}
            self._send(302, b"", Location=targets.get(kind) or fault["to"])
        else:
            raise ValueError(f"unknown fault {kind!r} of {name}")

    def _drip(self, body: bytes, content_type: str) -> None:
        """Sends single bytes with pauses: no single read takes long, but the whole does."""
        self._send(200, b"", content_type, length=len(body))
        end = time.monotonic() + SLOW_SECONDS
        for at in range(len(body)):
            if time.monotonic() > end or self.server.closing.wait(0.25):
                return
            self.wfile.write(body[at : at + 1])

    def _flood(self) -> None:
        block = bytes(1 << 16)
        for _ in range(OVERSIZED // len(block)):
            if self.server.closing.is_set():
                return
            self.wfile.write(block)
