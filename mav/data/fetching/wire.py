"""HTTP over a connection whose every step is bounded: it goes to one checked address, under one deadline."""

import functools
import http.client
import io
import socket
import ssl
import time
from typing import Any

from mav.data.fetching.proxy import Proxy
from mav.data.fetching.rules import FetchError

BLOCK = 1 << 16


class _DeadlineSocket(io.RawIOBase):
    """The part of a socket that http.client uses; every single read is bounded by the time left until the deadline.

    Raises FetchError("too_large") after `most` bytes: http.client itself reads what a chunk of a negative size, or
    headers that never end, have to say.
    """

    def __init__(self, sock: socket.socket, timeout: float, end: float, most: int) -> None:
        self._sock, self._timeout, self._end, self._left = sock, timeout, end, most
        self.sendall = sock.sendall

    def makefile(self, mode: str) -> io.BufferedIOBase:
        return io.BufferedReader(self, BLOCK)

    def close(self) -> None:
        """Does nothing, since http.client closes the socket before the response is read; `hang_up` closes it."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(min(self._timeout, left))
        number = self._sock.recv_into(buffer)
        self._left -= number
        if self._left < 0:
            raise FetchError("too_large")
        return number


class Connection(http.client.HTTPConnection):
    """Connects to the given address, or a proxy's, and resolves no name; TLS still checks the host's name.

    connecting, timeout: seconds for connecting and for each read; end: the deadline, a time of `time.monotonic`; most:
    bytes of an answer, headers and chunks included. Raises OSError, and FetchError: "proxy" when the proxy does not
    lead on, "too_large".
    """

    def __init__(
        self, host: str, port: int, address: str, tls: bool, connecting: float, timeout: float, end: float,
        most: int, proxy: Proxy | None = None,
    ) -> None:  # fmt: skip
        super().__init__(host, port, timeout=connecting)
        self.default_port = 443 if tls else 80  # decides whether the Host header names the port
        self.proxied = proxy is not None and not tls  # the proxy reads the request, and needs the host in it
        raw = socket.create_connection((address, proxy.port if proxy else port), timeout=connecting)
        try:
            if proxy and tls:
                proxy.tunnel(raw, host, port, end)
            self._raw = _tls().wrap_socket(raw, server_hostname=host) if tls else raw
        except BaseException:
            raw.close()
            raise
        self.sock = _DeadlineSocket(self._raw, timeout, end, most)

    def hang_up(self) -> None:
        self._raw.close()


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
