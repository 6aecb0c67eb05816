"""An S3 server on loopback that fails: with errors, too late, after the call was done, by listings of before, or in the
parts of large files."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import fsspec

HANG_SECONDS = 20  # longer than a client waits for an answer
STALE_SECONDS = 10.0  # of a listing at most


class FaultyS3:
    """moto's server behind a door that sometimes stays shut. The faults are shares of the calls, by kind.

    error: the call is not done. late: it is done after the client has given up. lost: it is done, and the answer is an
    error. stale: a listing of before. part: as late, for parts of large files alone.
    """

    def __init__(self, seed: int, **faults: float) -> None:
        self.faults: dict[str, float] = {}
        self._wanted = faults
        self.calls = self.failed = 0
        self._rng, self._lock = random.Random(seed), threading.Lock()
        self._listings: dict[str, tuple[Any, ...]] = {}

    def __enter__(self) -> FaultyS3:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log(self, *_: Any) -> None:
                """Thousands of calls are not told one by one."""

        self._app: Any = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._call, threaded=True, request_handler=Silent)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        fsspec.filesystem("s3", endpoint_url=endpoint, key="test", secret="test", skip_instance_cache=True).makedirs(
            "mav", exist_ok=True
        )
        self.faults = self._wanted
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # they remember this address

    def _call(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        fault = self._fault(environ)
        if fault == "error":
            if "chunked" in environ.get("HTTP_TRANSFER_ENCODING", ""):
                environ["wsgi.input_terminated"] = True
                environ["wsgi.input"].read()
            else:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return self._refused(environ, start_response)
        if fault in ("late", "part"):
            time.sleep(HANG_SECONDS)
        began: list[Any] = []
        body = b"".join(self._app(environ, lambda *given: began.extend(given)))
        if fault == "lost":
            return self._refused(environ, start_response)
        if "list-type=" in environ.get("QUERY_STRING", ""):
            place, now = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}", time.monotonic()
            seen, *before = self._listings.get(place, (0.0,))
            self._listings[place] = now, began, body
            if fault == "stale" and before and now - seen < STALE_SECONDS:
                began, body = before
        start_response(*began)
        return [body]

    def _fault(self, environ: dict[str, Any]) -> str:
        """Draws what becomes of a call. The demo's web lies there too, but is no storage."""
        query = environ.get("QUERY_STRING", "")
        with self._lock:
            self.calls += 1
            drawn = self._rng.random()
            for kind, share in self.faults.items() if "/site/" not in environ["PATH_INFO"] else ():
                possible = {"stale": "list-type=" in query, "part": "partNumber=" in query}.get(kind, True)
                drawn -= share
                if possible and drawn < 0:
                    self.failed += 1
                    return kind
        return ""

    def _refused(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = b'<?xml version="1.0"?><Error><Code>ServiceUnavailable</Code><Message>come back later</Message></Error>'
        start_response(
            "503 Service Unavailable", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
