"""The demo world's web server: loopback only, and as ill-behaved as the real web where `faults.json` says so."""

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
from types import TracebackType
from typing import Any

from mav.errors import UserError
from mav.storage import Folder

HOST = "127.0.0.1"
SLOW_SECONDS = 120.0  # how long a slow answer drips before it gives up
OVERSIZED = 4 << 30  # bytes an oversized answer claims to have
PAGE = b"<!DOCTYPE html>\n<html><title>Not here</title><body>This picture has moved.</body></html>\n"


class WorldServer:
    """Serves a world's `site` folder while the context is open.

    When the port already answers as the same world (another process serves it), that server is used and nothing is started; any other
    occupant is a UserError. Port 0 takes a free one; `port` and `url` say which.
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.closing.set()
            self._server.shutdown()
            self._server.server_close()

    def _start(self) -> _Server | None:
        identity = _identity(self.site)
        try:
            return _Server((HOST, self.port), self.site, identity)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"The demo world's server cannot listen on {HOST}:{self.port} ({error.strerror}): choose another with "
                                "`--set world.port=...`.") from None  # fmt: skip
            if _ask(self.url) != identity:
                raise UserError(
                    f"Port {self.port} is in use by another program: choose a free one with `--set world.port=...`."
                ) from None
            return None


def _identity(site: Folder) -> dict[str, Any]:
    try:
        identity: dict[str, Any] = site.read_json("identity.json")
    except FileNotFoundError:
        raise UserError(f"There is no demo world at {site.url}: run the stage `demo-world` first.") from None
    return identity


def _ask(url: str) -> Any:
    """What the occupant of the port says it is; None when it does not answer as a world does."""
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
        self.asked: set[str] = set()
        self.closing = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up on a slow or endless answer is the point of it, not news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "demo-world"
    sys_version = ""
    timeout = 60

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: thousands of requests a run."""

    def do_GET(self) -> None:
        name, _, query = self.path.lstrip("/").partition("?")
        if name == ".world":
            self._send(200, json.dumps(self.server.identity).encode(), "application/json")
        elif not name:
            kinds = {name: self.server.faults.get(name, {}).get("kind", "") for name in sorted(self.server.names)}
            rows = (f"<li><a href='{name}'>{name}</a> {kind}" for name, kind in kinds.items())
            self._send(
                200, f"<!doctype html><title>The demo world</title><ul>{''.join(rows)}</ul>".encode(), "text/html"
            )
        elif name not in self.server.names:
            self._send(404, PAGE, "text/html")
        elif (fault := self.server.faults.get(name)) and query != "direct":
            self._misbehave(name, fault)
        else:
            self._send(200, self.server.site.read_bytes(name), _content_type(name))

    def _send(
        self,
        status: int,
        body: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def _misbehave(self, name: str, fault: Mapping[str, Any]) -> None:
        kind, body, content_type = fault["kind"], self.server.site.read_bytes(name), _content_type(name)
        if kind == "status":
            retry = {"Retry-After": str(fault["retry_after"])} if "retry_after" in fault else None
            self._send(fault["status"], PAGE, "text/html", retry)
        elif kind == "flaky":  # fails once, then answers as it should
            first = name not in self.server.asked
            self.server.asked.add(name)
            if first:
                self._send(fault["status"], PAGE, "text/html", {"Retry-After": "0"})
            else:
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
            self._send(200, body, content_type, {"X-Robots-Tag": fault["header"]})
        elif kind in ("redirect", "redirect_loop", "redirect_ok"):
            target = {"redirect": fault.get("to"), "redirect_loop": f"/{name}?again", "redirect_ok": f"/{name}?direct"}[
                kind
            ]
            self._send(302, b"", "text/html", {"Location": str(target)})
        else:
            raise ValueError(f"unknown fault {kind!r} of {name}")

    def _drip(self, body: bytes, content_type: str) -> None:
        """A byte now and then: no single read takes long, the whole does."""
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


def _content_type(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"
