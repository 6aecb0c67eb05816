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
import queue
import ssl
import threading
import time
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mav.data.fetching.addresses import _DNS, DNS_ENTRIES, DNS_SECONDS, Resolver, _look_up, is_public, system_resolver
from mav.data.fetching.rules import (
    AGENT,
    TDM_RESERVATION,
    FetchError,
    _AskAgainError,
    _seconds,
    _split,
    _target,
    opted_out,
)
from mav.data.fetching.wire import BLOCK, Connection
from mav.recipes import ImageDownload, VideoShards

MAX_REDIRECTS = 5
RETRIES = 2
RETRIED = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Fetched:
    """A body and where it came from."""

    body: bytes
    headers: email.message.Message
    final_url: str

    @property
    def content_type(self) -> str:
        return self.headers.get_content_type() if "Content-Type" in self.headers else ""


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
    _paused: dict[str, tuple[float, str]] = field(
        default_factory=dict
    )  # host -> until when it wants no request, and what it answered
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
        return TDM_RESERVATION in self.refuse and any(
            value.strip() == "1" for value in headers.get_all(TDM_RESERVATION, [])
        )

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
        if (response.getheader("Content-Encoding") or "").lower() in (
            "gzip",
            "x-gzip",
        ):  # sent although we asked for none
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
        allowed = [
            a
            for a in known
            if f"{host}:{port}" in self.allow_addresses or f"{a}:{port}" in self.allow_addresses or is_public(a)
        ]
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


class Answer(io.BytesIO):
    """As much of a urllib response as its users touch."""

    def __init__(self, answer: Fetched) -> None:
        super().__init__(answer.body)
        self.headers, self.url, self.status = answer.headers, answer.final_url, 200
