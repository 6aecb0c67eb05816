"""Fetching from the open web without harm: to us, to the hosts, and to those who opted out.

`GuardedOpener` stands where `urllib.request` looks for an opener, so that img2dataset's own downloader runs behind it:

- only http and https; every hop's host is resolved here, private, loopback, link-local and reserved addresses are refused before
  any connection, and the connection goes to the address that was checked (a name that changes its mind cannot lead it home);
- a deadline for the whole of a URL, redirects and retries included, that no trickle of bytes outlives; a cap on bytes, as sent and
  as unpacked;
- a body shorter than announced is an error, not a picture;
- X-Robots-Tag and TDM-Reservation are honoured; few connections a host; Retry-After holds for all of its host's URLs, which wait as
  far as their deadline allows and are not asked for where it does not; the user agent says who asks.
"""

from __future__ import annotations

import contextlib
import email.message
import email.utils
import http.client
import io
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mav.data.wire import BLOCK, Connection
from mav.recipe import ImageDownload, VideoShards

AGENT = "make-a-video-system"
MAX_REDIRECTS = 5
RETRIES = 2
RETRIED = frozenset({429, 500, 502, 503, 504})
VALUED = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)  # directives of X-Robots-Tag that hold a colon
TDM_RESERVATION = "tdm-reservation"  # stands in `refuse` beside the directives, and is a header of its own (W3C's TDM protocol)
DNS_SECONDS = 600.0  # an answer is remembered so long in this process, for all openers; a failure for a tenth of it
DNS_ENTRIES = 50_000
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolver = Callable[[str, int], Sequence[str]]


TRANSIENT = frozenset({"dns", "timeout", "reset", "connection", "http_429"})  # and every http_5xx


def is_transient(reason: str) -> bool:
    """Whether what failed for this reason may come through another day."""
    return reason in TRANSIENT or reason.startswith("http_5")


class FetchError(Exception):
    """A URL that could not be had. `reason` is one of a closed set of classes, safe to count by."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


# What hosts resolved to, and until when that is believed; addresses are judged anew at every use.
_DNS: dict[tuple[Resolver, str, int], tuple[float, list[str] | FetchError]] = {}


@dataclass(frozen=True)
class Fetched:
    """A body and where it came from."""

    body: bytes
    headers: email.message.Message
    final_url: str

    @property
    def content_type(self) -> str:
        return self.headers.get_content_type() if "Content-Type" in self.headers else ""


def system_resolver(host: str, port: int) -> list[str]:
    """Addresses of a host, as the machine's resolver gives them."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def opener_settings(rule: ImageDownload | VideoShards, resolver: Resolver) -> dict[str, Any]:
    """A section's rules as a GuardedOpener takes them."""
    return {
        "timeout": rule.timeout_seconds,
        "deadline": rule.deadline_seconds,
        "max_bytes": rule.max_bytes,
        "contact": rule.contact,
        "allow_addresses": rule.allow_addresses,
        "resolver": resolver,
    }


@dataclass
class GuardedOpener:
    """Fetches URLs under the guards; one for each shard. Threads may share it.

    timeout: seconds for connecting and each read; deadline: seconds for the whole URL. allow_addresses: `host:port` pairs that may
    be private. refuse: X-Robots-Tag directives that mean no, and `tdm-reservation`. Raises FetchError and nothing else.
    """

    timeout: float = 10.0
    deadline: float = 30.0
    max_bytes: int = 50_000_000
    per_host: int = 8
    contact: str = ""
    allow_addresses: Sequence[str] = ()
    refuse: Sequence[str] = ()
    resolver: Resolver = system_resolver
    _slots: dict[str, threading.BoundedSemaphore] = field(default_factory=dict)
    _paused: dict[str, tuple[float, str]] = field(default_factory=dict)  # host -> until when it wants no request, and what it answered
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, fullurl: urllib.request.Request | str, data: object = None, timeout: object = None) -> Answer:
        """What urllib.request.urlopen calls."""
        return Answer(self.fetch(fullurl if isinstance(fullurl, str) else fullurl.full_url))

    def fetch(self, url: str) -> Fetched:
        """The body of a URL after redirects and, for answers that ask for patience, retries."""
        host = _split(url).hostname or ""
        with self._lock:
            slot = self._slots.setdefault(host, threading.BoundedSemaphore(self.per_host))
        with slot:  # waiting for one's turn is not the URL's fault: the deadline starts after it
            end = time.monotonic() + self.deadline
            for attempt in range(RETRIES + 1):
                try:
                    return self._follow(url, end)
                except _AskAgainError as error:
                    wait = 0.0 if error.said_when else 0.25 * 2**attempt
                    if attempt == RETRIES or time.monotonic() + wait >= end:
                        raise FetchError(error.reason) from None
                    time.sleep(wait)
        raise AssertionError("unreachable")

    def _follow(self, url: str, end: float) -> Fetched:
        seen: set[str] = set()
        while True:
            if url in seen:
                raise FetchError("redirect_loop")
            if len(seen) > MAX_REDIRECTS:
                raise FetchError("too_many_redirects")
            seen.add(url)
            answer = self._ask(url, end)
            if isinstance(answer, Fetched):
                return answer
            try:
                url = urllib.parse.urljoin(url, answer)
            except ValueError:
                raise FetchError("bad_url") from None

    def _ask(self, url: str, end: float) -> Fetched | str:
        """One request: the answer, or where it redirects to."""
        parts = _split(url)
        host = parts.hostname or ""
        self._await(host, end)
        connection = self._connect(parts, end)
        try:
            connection.request("GET", _target(parts), headers=self._headers(parts))
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308) and (location := response.getheader("Location")):
                return location
            if response.status in RETRIED:
                raise self._told_to_wait(host, f"http_{response.status}", _seconds(response.getheader("Retry-After")))
            if response.status != 200:
                raise FetchError(f"http_{response.status}")
            if opted_out(response.headers.get_all("X-Robots-Tag", []), self.refuse) or self._reserved(response.headers):
                raise FetchError("opted_out")
            return Fetched(self._body(response), response.headers, url)
        except FetchError:
            raise
        except TimeoutError:
            raise FetchError("timeout") from None
        except ssl.SSLError as error:
            raise FetchError("tls", str(error.reason)) from None
        except (ConnectionError, http.client.RemoteDisconnected):
            raise _AskAgainError("reset") from None
        except http.client.IncompleteRead:
            raise FetchError("truncated") from None
        except (http.client.HTTPException, zlib.error, ValueError) as error:
            raise FetchError("bad_response", type(error).__name__) from None
        except OSError as error:
            raise FetchError("connection", str(error.errno)) from None
        finally:
            connection.hang_up()

    def _told_to_wait(self, host: str, reason: str, seconds: float | None) -> _AskAgainError:
        """Notes for all URLs of a host when it wants to be asked again, if it said so."""
        if seconds is not None:
            with self._lock:
                self._paused[host] = max(self._paused.get(host, (0.0, "")), (time.monotonic() + seconds, reason))
        return _AskAgainError(reason, said_when=seconds is not None)

    def _await(self, host: str, end: float) -> None:
        """Leaves a host alone for as long as it asked to be; what cannot wait so long fails for the reason the host gave."""
        while (pause := self._paused.get(host, (0.0, "")))[0] > time.monotonic():
            until, reason = pause
            if until >= end:
                raise FetchError(reason, "its host asks for patience")
            time.sleep(max(until - time.monotonic(), 0.0))

    def _reserved(self, headers: email.message.Message) -> bool:
        return TDM_RESERVATION in self.refuse and any(value.strip() == "1" for value in headers.get_all(TDM_RESERVATION, []))

    def _headers(self, parts: urllib.parse.SplitResult) -> dict[str, str]:
        agent = f"{AGENT}/0.1 (+{self.contact})" if self.contact else f"{AGENT}/0.1"
        return {"User-Agent": agent, "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        announced = response.length
        if announced is not None and announced > self.max_bytes:
            raise FetchError("too_large")
        body = bytearray()
        while block := response.read(BLOCK):
            body += block
            if len(body) > self.max_bytes:
                raise FetchError("too_large")
        if announced is not None and len(body) < announced:
            raise FetchError("truncated")
        if (response.getheader("Content-Encoding") or "").lower() in ("gzip", "x-gzip"):  # sent although we asked for none
            unpacker = zlib.decompressobj(wbits=31)
            unpacked = unpacker.decompress(bytes(body), self.max_bytes + 1)
            if len(unpacked) > self.max_bytes:
                raise FetchError("too_large")
            if not unpacker.eof:
                raise FetchError("truncated")
            return unpacked
        return bytes(body)

    def _connect(self, parts: urllib.parse.SplitResult, end: float) -> Connection:
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        known = self._resolve(host, port, end)
        allowed = [a for a in known if f"{host}:{port}" in self.allow_addresses or f"{a}:{port}" in self.allow_addresses or is_public(a)]
        if not allowed:
            raise FetchError("private_address")
        error: FetchError = FetchError("connection")
        for address in allowed:
            left = min(self.timeout, end - time.monotonic())
            if left <= 0:
                raise FetchError("timeout")
            try:
                return Connection(host, port, address, parts.scheme == "https", left, self.timeout, end)
            except TimeoutError:
                error = FetchError("timeout")
            except ConnectionRefusedError:
                error = FetchError("refused")
            except ssl.SSLError as problem:
                error = FetchError("tls", str(problem.reason))
            except OSError as problem:
                error = FetchError("connection", str(problem.errno))
        raise error

    def _resolve(self, host: str, port: int, end: float) -> list[str]:
        """Addresses of a host, remembered for a while. The system's resolver knows no deadline, so it waits in a thread."""
        until, known = _DNS.get((self.resolver, host, port), (0.0, None))
        if known is None or time.monotonic() >= until:
            answers: queue.SimpleQueue[list[str] | FetchError] = queue.SimpleQueue()
            threading.Thread(target=_look_up, args=(self.resolver, host, port, answers), daemon=True).start()
            try:
                known = answers.get(timeout=max(end - time.monotonic(), 0.001))
            except queue.Empty:
                raise FetchError("dns", "no answer in time") from None
            if len(_DNS) >= DNS_ENTRIES:
                _DNS.clear()
            seconds = DNS_SECONDS / 10 if isinstance(known, FetchError) else DNS_SECONDS
            _DNS[self.resolver, host, port] = time.monotonic() + seconds, known
        if isinstance(known, FetchError):
            raise FetchError(known.reason)
        return known


@contextlib.contextmanager
def installed(opener: GuardedOpener) -> Iterator[None]:
    """All of this process's urllib requests go through `opener` until the context closes; one at a time."""
    with _INSTALLING:
        before = getattr(urllib.request, "_opener", None)
        urllib.request.install_opener(opener)  # type: ignore[arg-type]  # urlopen asks of an opener only that it has `open`
        try:
            yield
        finally:
            urllib.request.install_opener(before)  # None restores the default


_INSTALLING = threading.Lock()


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


def opted_out(values: Sequence[str], refuse: Sequence[str]) -> bool:
    """Whether X-Robots-Tag headers forbid use: directives for everyone, or for `AGENT`, that are in `refuse`.

    An agent's name before a colon holds for the directives after it up to the next name; some directives hold a colon of their own.
    """
    refused = {directive.lower() for directive in refuse}
    if "noindex" in refused:
        refused.add("none")
    for value in values:
        scope = "*"
        for item in value.lower().split(","):
            directive = item.strip()
            while match := re.match(r"([a-z*][\w.*/-]*)\s*:\s*(.*)", directive):
                if match[1] in VALUED:
                    directive = match[1]
                else:
                    scope, directive = match[1], match[2]
            if scope in ("*", AGENT) and directive.strip() in refused:
                return True
    return False


class _AskAgainError(FetchError):
    def __init__(self, reason: str, said_when: bool = False) -> None:
        super().__init__(reason)
        self.said_when = said_when  # the host told when it wants to be asked again


class Answer(io.BytesIO):
    """As much of a urllib response as its users touch."""

    def __init__(self, answer: Fetched) -> None:
        super().__init__(answer.body)
        self.headers, self.url, self.status = answer.headers, answer.final_url, 200


def _look_up(resolver: Resolver, host: str, port: int, answers: queue.SimpleQueue[list[str] | FetchError]) -> None:
    try:
        found = list(resolver(host, port))
        answers.put(found or FetchError("dns"))
    except (OSError, UnicodeError):
        answers.put(FetchError("dns"))


def _split(url: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url.strip())
        _ = parts.port  # raises when it is no number
    except ValueError:
        raise FetchError("bad_url") from None
    if parts.scheme not in ("http", "https"):
        raise FetchError("bad_scheme", parts.scheme)
    if not parts.hostname:
        raise FetchError("bad_url")
    try:
        host = parts.hostname if ":" in parts.hostname else parts.hostname.encode("idna").decode()
    except UnicodeError:
        raise FetchError("bad_url") from None
    bracketed = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=bracketed + (f":{parts.port}" if parts.port else ""))


def _target(parts: urllib.parse.SplitResult) -> str:
    """Path and query with what may not stand in a request line percent-encoded."""
    safe = "%/:=&?~+!$,;'@()*[]"
    path = urllib.parse.quote(parts.path or "/", safe=safe)
    return f"{path}?{urllib.parse.quote(parts.query, safe=safe)}" if parts.query else path


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds: a number or a date; None when it says nothing usable."""
    if not retry_after:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    date = email.utils.parsedate_tz(retry_after)
    return max(email.utils.mktime_tz(date) - time.time(), 0.0) if date else None
