"""An S3 server on loopback that fails: a share of its calls is answered with an error, another not in time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import fsspec

HANG_SECONDS = 20  # longer than a client waits for an answer


class FaultyS3:
    """moto's server behind a door that sometimes stays shut; `errors` and `hangs` are shares of the calls."""

    def __init__(self, seed: int, errors: float = 0.0, hangs: float = 0.0) -> None:
        self.errors, self.hangs = 0.0, 0.0
        self._wanted = (errors, hangs)
        self.calls = self.failed = 0
        self._rng, self._lock = random.Random(seed), threading.Lock()

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
        self.errors, self.hangs = self._wanted
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # they remember this address

    def _call(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.calls += 1
            # The demo's web lies there too, but is no storage: a picture that does not come is a failed row, and
            # counted.
            drawn = self._rng.random() if "/site/" not in environ["PATH_INFO"] else 1.0
            self.failed += drawn < self.errors + self.hangs
        if drawn < self.errors:
            if drawn < self.errors / 2:  # it was done, and the answer was lost on its way
                list(self._app(environ, lambda *_: lambda data: None))
            else:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return self._answer(environ, start_response)
        if drawn < self.errors + self.hangs:
            time.sleep(HANG_SECONDS)
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = b'<?xml version="1.0"?><Error><Code>ServiceUnavailable</Code><Message>come back later</Message></Error>'
        start_response(
            "503 Service Unavailable", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
