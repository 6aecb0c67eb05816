"""Ports on this machine: whether one is free, and reserving one for a server that starts later."""

import socket
from contextlib import suppress

_reserved: list[socket.socket] = []  # open for as long as this process lives


def reserve_port() -> int:
    """Returns a loopback port that the kernel gives to nobody who asks for any free port, as Ray often does.

    A bound socket that never listens holds it. A server can bind it all the same, since both set SO_REUSEADDR.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _reserved.append(held)
    return int(held.getsockname()[1])


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Says whether a server could listen on this port now."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with suppress(OSError), socket.socket(kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return True
    return False
