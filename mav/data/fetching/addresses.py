"""TODO-DOC mav/data/fetching/addresses.py"""

from __future__ import annotations

import ipaddress
import queue
import socket
from collections.abc import Callable, Sequence

from mav.data.fetching.rules import FetchError

DNS_SECONDS = 600.0  # an answer is remembered so long in this process, for all openers; a failure for a tenth of it
DNS_ENTRIES = 50_000
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolver = Callable[[str, int], Sequence[str]]


# What hosts resolved to, and until when that is believed; addresses are judged anew at every use.
_DNS: dict[tuple[Resolver, str, int], tuple[float, list[str] | FetchError]] = {}


def system_resolver(host: str, port: int) -> list[str]:
    """Addresses of a host, as the machine's resolver gives them."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """True for an address of the public internet, looking through IPv6 forms that carry an IPv4 address."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    return ip.is_global and not ip.is_multicast


def _look_up(resolver: Resolver, host: str, port: int, answers: queue.SimpleQueue[list[str] | FetchError]) -> None:
    try:
        found = list(resolver(host, port))
        answers.put(found or FetchError("dns"))
    except (OSError, UnicodeError):
        answers.put(FetchError("dns"))
