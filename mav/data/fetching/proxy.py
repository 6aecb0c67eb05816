"""The forward proxy that a recipe names. Those of the environment are never used."""

import socket
import time
import urllib.parse
from dataclasses import dataclass

from mav.data.fetching.rules import FetchError
from mav.errors import UserError

ANSWER_BYTES = 65_536  # of a proxy's answer to CONNECT
REACH_SECONDS = 5.0


@dataclass(frozen=True)
class Proxy:
    """Where a forward proxy listens, which takes http requests whole and tunnels https."""

    host: str
    port: int

    @classmethod
    def read(cls, address: str) -> "Proxy":
        """Reads `http://HOST:PORT`. Raises ValueError for anything else."""
        parts = urllib.parse.urlsplit(address)
        if parts.scheme != "http" or not parts.hostname or not parts.port or parts.username or parts.path.strip("/"):
            raise ValueError("a proxy is given as http://HOST:PORT")
        return cls(parts.hostname, parts.port)

    def tunnel(self, raw: socket.socket, host: str, port: int, end: float) -> None:
        """Asks for a tunnel to the host. Raises FetchError("proxy") when it is refused. end: as in `resolve`."""
        name = f"[{host}]" if ":" in host else host
        raw.sendall(f"CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer:  # byte by byte, since what follows is the host's
            if time.monotonic() >= end:
                raise TimeoutError
            byte = raw.recv(1)
            if not byte or len(answer) > ANSWER_BYTES:
                raise FetchError("proxy", "it answered with no status")
            answer += byte
        status = answer.split(b"\r\n", 1)[0].split(b" ")
        if len(status) < 2 or status[1] != b"200":
            raise FetchError("proxy", b" ".join(status[1:]).decode("latin-1")[:100])


def require_proxy(key: str, address: str) -> None:
    """Raises UserError when the proxy at this key of the recipe takes no connection. Does nothing without one."""
    if not address:
        return
    proxy = Proxy.read(address)
    try:
        socket.create_connection((proxy.host, proxy.port), timeout=REACH_SECONDS).close()
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise UserError(f"`{key}`: {address} takes no connection ({why}): start it, or name another.") from None
