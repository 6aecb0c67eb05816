"""TODO-DOC flows/services/ports.py"""

import socket
from contextlib import suppress

_reserved: list[socket.socket] = []  # open as long as this process lives


def reserve_port() -> int:
    """A loopback port for a server that starts later; the kernel gives it to nobody who asks for just any port, as Ray often does.

    It is held by a socket that is bound and never listens. A server binds it all the same, as both set SO_REUSEADDR, which every
    server does that can be started again at once.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _reserved.append(held)
    return int(held.getsockname()[1])


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return True
    return False
