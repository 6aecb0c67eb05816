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
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolver = Callable[[str, int], Sequence[str]]

# The answer for each host and the time at which it expires. Whether an address is public is checked again at every use.
_CACHE: dict[tuple[Resolver, str, int], tuple[float, list[str] | FetchError]] = {}


def system_resolver(host: str, port: int) -> list[str]:
    """Returns the addresses of a host according to the machine's resolver."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Says whether an address is public. An IPv6 address that contains an IPv4 address is judged by the latter."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = inner or ip
    return ip.is_global and not ip.is_multicast


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
