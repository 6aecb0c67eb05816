"""Which addresses may be contacted, and what hosts resolve to: answers are cached for all openers of the process."""

import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence

from mav.data.fetching.rules import FetchError

DNS_SECONDS = 600.0  # that an answer is kept; a failure is kept for a tenth of it
DNS_ENTRIES = 50_000

# Every block of IANA's two registries of special-purpose addresses, multicast, and a block that was given up. Those
# that are reachable are refused too, since nobody serves pictures from them. Of IPv6 only `UNICAST` is allowed, so
# that blocks outside of it need no entry.
SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24"),
            *("192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
            *("224.0.0.0/4", "240.0.0.0/4"),
            "168.63.129.16/32",  # Azure's servers for its own machines
            *("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3ffe::/16", "3fff::/20"),
        ),
    )
)
UNICAST = ipaddress.ip_network("2000::/3")
ISATAP = 0x5EFE  # stands before the IPv4 address that such an IPv6 address holds

Resolver = Callable[[str, int], Sequence[str]]

# The answer for each host and the time at which it expires. Whether an address is public is checked again at every use.
_CACHE: dict[tuple[Resolver, str, int], tuple[float, list[str] | FetchError]] = {}


def system_resolver(host: str, port: int) -> list[str]:
    """Returns the addresses of a host according to the machine's resolver."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Says whether an address is one of the public internet.

    Refused are the special blocks of IANA's registries, every IPv6 form that holds an IPv4 address in a known place
    (mapped, translated, compatible, NAT64, 6to4, Teredo, ISATAP), and an address with a zone.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        isatap = int(ip) >> 32 & 0xFDFFFFFF == ISATAP  # its bit that says "unique" may be set
        if ip.scope_id or ip not in UNICAST or isatap:
            return False
    return not any(ip in block for block in SPECIAL)


def resolve(resolver: Resolver, host: str, port: int, end: float) -> list[str]:
    """Returns the addresses of a host, from the cache where possible. Raises FetchError("dns"), also at the time `end`.

    end: a time of `time.monotonic`. The system's resolver knows no deadline, so it runs in a thread.
    """
    expires, known = _CACHE.get((resolver, host, port), (0.0, None))
    if known is None or time.monotonic() >= expires:
        answers: queue.SimpleQueue[list[str] | FetchError] = queue.SimpleQueue()
        threading.Thread(target=_look_up, args=(resolver, host, port, answers), daemon=True).start()
        try:
            known = answers.get(timeout=max(end - time.monotonic(), 0.001))
        except queue.Empty:
            raise FetchError("dns", "no answer in time") from None
        if len(_CACHE) >= DNS_ENTRIES:
            _CACHE.clear()
        seconds = DNS_SECONDS / 10 if isinstance(known, FetchError) else DNS_SECONDS
        _CACHE[resolver, host, port] = time.monotonic() + seconds, known
    if isinstance(known, FetchError):
        raise FetchError(known.reason)
    return known


def _look_up(resolver: Resolver, host: str, port: int, answers: queue.SimpleQueue[list[str] | FetchError]) -> None:
    try:
        answers.put(list(resolver(host, port)) or FetchError("dns"))
    except (OSError, ValueError):  # a name may hold what no resolver takes
        answers.put(FetchError("dns"))
