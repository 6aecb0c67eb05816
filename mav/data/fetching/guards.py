"""Fetching from the open web without harm to us, to the hosts, or to those who opted out.

- Only http and https are allowed. Every hop's host is resolved here, private addresses are refused before any
  connection, and the connection goes to the address that was checked: a second DNS answer cannot lead it elsewhere.
- Proxies of the environment are not used. A proxy that the recipe names resolves hosts itself, so it has to refuse
  private addresses as well; what this machine knows to be private is refused before it is asked.
- One deadline covers the whole of a URL, redirects and retries included. Bytes are limited as sent and as unpacked. A
  short body is an error.
- X-Robots-Tag and TDM-Reservation are honoured. A host gets few connections, also those to which others redirect, and
  its Retry-After holds for all of its URLs: they wait as far as their deadline allows, and otherwise are not requested.
  The user agent names the operator.
"""

from __future__ import annotations

import contextlib
import email.message
import http.client
import importlib.metadata
import io
import ssl
import threading
import time
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mav.data.fetching import rules
from mav.data.fetching.addresses import Resolver, is_public, resolve, system_resolver
from mav.data.fetching.proxy import Proxy
from mav.data.fetching.rules import AskAgainError, FetchError
from mav.data.fetching.turns import Turn, Turns
from mav.data.fetching.wire import BLOCK, Connection
from mav.recipes import ImageDownload, VideoShards

VERSIONED_AGENT = f"{rules.AGENT}/{importlib.metadata.version(rules.AGENT)}"
MAX_REDIRECTS = 5
RETRIES = 2
HEAD_BYTES = 1 << 20  # of an answer beside its body, which in chunks takes up to twice its own bytes
PROXIED_DNS_SECONDS = 2.0  # behind a proxy this machine may know no host, and need not
RETRIED = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Fetched:
    """A body with its headers and its URL after redirects."""

    body: bytes
    headers: email.message.Message
    final_url: str

    @property
    def content_type(self) -> str:
        return self.headers.get_content_type() if "Content-Type" in self.headers else ""


def opener_settings(rule: ImageDownload | VideoShards, resolver: Resolver) -> dict[str, Any]:
    """Returns the settings of a recipe's section as arguments of GuardedOpener."""
    limits = {"timeout": rule.timeout_seconds, "deadline": rule.deadline_seconds, "max_bytes": rule.max_bytes}
    proxy = Proxy.read(rule.proxy) if rule.proxy else None
    known = {"contact": rule.contact, "allow_addresses": rule.allow_addresses, "proxy": proxy}
    return {**limits, **known, "resolver": resolver}


@dataclass
class GuardedOpener:
    """Fetches URLs under the guards; one is made for each shard. It is thread-safe and raises only FetchError.

    timeout: seconds for connecting and for each read; deadline: seconds for the whole URL. allow_addresses: `host:port`
    pairs that may be private, and that no proxy is asked for. refuse: X-Robots-Tag directives that forbid use, and
    `tdm-reservation`.
    """

    timeout: float = 10.0
    deadline: float = 30.0
    max_bytes: int = 50_000_000
    per_host: int = 8
    contact: str = ""
    allow_addresses: Sequence[str] = ()
    refuse: Sequence[str] = ()
    resolver: Resolver = system_resolver
    proxy: Proxy | None = None
    # For each host the time until which it wants no request, and its answer that said so.
    _paused: dict[str, tuple[float, str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        self._turns = Turns(self.per_host)

    def open(self, fullurl: urllib.request.Request | str, data: object = None, timeout: object = None) -> Answer:
        """Fetches a URL for `urllib.request.urlopen`, which calls this method."""
        return Answer(self.fetch(fullurl if isinstance(fullurl, str) else fullurl.full_url))

    def fetch(self, url: str) -> Fetched:
        """Returns the body of a URL, after redirects, and after retries where the answer invites one."""
        with Turn(self._turns) as turn:
            turn.at(rules.split_url(url).hostname or "")
            end = time.monotonic() + self.deadline  # which starts when the URL's turn has come
            for attempt in range(RETRIES + 1):
                try:
                    return self._follow(url, end, turn)
                except AskAgainError as error:
                    wait = 0.0 if error.retry_after else 0.25 * 2**attempt
                    if attempt == RETRIES or time.monotonic() + wait >= end:
                        raise FetchError(error.reason) from None
                    time.sleep(wait)
        raise AssertionError("unreachable")

    def _follow(self, url: str, end: float, turn: Turn) -> Fetched:
        seen: set[str] = set()
        while True:
            if url in seen:
                raise FetchError("redirect_loop")
            if len(seen) > MAX_REDIRECTS:
                raise FetchError("too_many_redirects")
            seen.add(url)
            answer = self._request(url, end, turn)
            if isinstance(answer, Fetched):
                return answer
            try:
                url = urllib.parse.urljoin(url, answer)
            except ValueError:
                raise FetchError("bad_url") from None

    def _request(self, url: str, end: float, turn: Turn) -> Fetched | str:
        """Makes one request and returns its answer, or the address to which it redirects."""
        parts = rules.split_url(url)
        host = parts.hostname or ""
        turn.at(host, end)
        self._wait_for(host, end)
        connection = self._connect(parts, end)
        try:
            whole = f"http://{parts.netloc}" if connection.proxied else ""
            connection.request("GET", whole + rules.request_target(parts), headers=self._headers())
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308) and (location := response.getheader("Location")):
                return rules.as_sent(location)
            if response.status in RETRIED:
                raise self._pause(host, f"http_{response.status}", response.getheader("Retry-After"))
            if response.status != 200:
                raise FetchError(f"http_{response.status}")
            if self._refused(response.headers):
                raise FetchError("opted_out")
            return Fetched(self._body(response), response.headers, url)
        except FetchError:
            raise
        except TimeoutError:
            raise FetchError("timeout") from None
        except ssl.SSLError as error:
            raise FetchError("tls", str(error.reason)) from None
        except (ConnectionError, http.client.RemoteDisconnected):
            raise AskAgainError("reset") from None
        except http.client.IncompleteRead:
            raise FetchError("truncated") from None
        except (http.client.HTTPException, zlib.error, ValueError, ArithmeticError) as error:
            raise FetchError("bad_response", type(error).__name__) from None
        except OSError as error:
            raise FetchError("connection", str(error.errno)) from None
        finally:
            connection.hang_up()

    def _pause(self, host: str, reason: str, retry_after: str | None) -> AskAgainError:
        """Records when a host may be contacted again, if it said so, and returns the error to raise."""
        seconds = rules.seconds_to_wait(retry_after)
        if seconds is not None:
            with self._lock:
                self._paused[host] = max(self._paused.get(host, (0.0, "")), (time.monotonic() + seconds, reason))
        return AskAgainError(reason, retry_after=seconds is not None)

    def _wait_for(self, host: str, end: float) -> None:
        """Waits as long as a host asked for. Raises FetchError with the host's reason when the deadline comes first."""
        while (pause := self._paused.get(host, (0.0, "")))[0] > time.monotonic():
            until, reason = pause
            if until >= end:
                raise FetchError(reason, "its host asks for patience")
            time.sleep(max(until - time.monotonic(), 0.0))

    def _refused(self, headers: email.message.Message) -> bool:
        if rules.opted_out(headers.get_all("X-Robots-Tag", []), self.refuse):
            return True
        reserved = any(value.strip() == "1" for value in headers.get_all(rules.TDM_RESERVATION, []))
        return reserved and rules.TDM_RESERVATION in self.refuse

    def _headers(self) -> dict[str, str]:
        agent = f"{VERSIONED_AGENT} (+{self.contact})" if self.contact else VERSIONED_AGENT
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
        # Some hosts send gzip although the request does not accept it.
        if (response.getheader("Content-Encoding") or "").lower() not in ("gzip", "x-gzip"):
            return bytes(body)
        unpacker = zlib.decompressobj(wbits=31)
        unpacked = unpacker.decompress(bytes(body), self.max_bytes + 1)
        if len(unpacked) > self.max_bytes:
            raise FetchError("too_large")
        if not unpacker.eof:
            raise FetchError("truncated")
        return unpacked

    def _connect(self, parts: urllib.parse.SplitResult, end: float) -> Connection:
        """Connects to the first allowed address of the host that accepts a connection."""
        host, tls = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        named = f"{host}:{port}" in self.allow_addresses
        proxy = None if named else self.proxy
        known = self._addresses(host, port, end, proxy)
        allowed = [a for a in known if named or f"{a}:{port}" in self.allow_addresses or is_public(a)]
        if len(allowed) < len(known) if proxy else not allowed:  # a proxy may take any address of the host
            raise FetchError("private_address")
        error, most = FetchError("connection"), 2 * self.max_bytes + HEAD_BYTES
        for address in [proxy.host] if proxy else allowed:
            left = min(self.timeout, end - time.monotonic())
            if left <= 0:
                raise FetchError("timeout")
            try:
                return Connection(host, port, address, tls, left, self.timeout, end, most, proxy)
            except TimeoutError:
                error = FetchError("timeout")
            except ConnectionRefusedError:
                error = FetchError("proxy" if proxy else "refused")
            except ssl.SSLError as problem:
                error = FetchError("tls", str(problem.reason))
            except OSError as problem:
                error = FetchError("connection", str(problem.errno))
        raise error

    def _addresses(self, host: str, port: int, end: float, proxy: Proxy | None) -> list[str]:
        """Returns the addresses of a host; none where it is for the proxy to know them.

        A name that is an address in an odd form, or of a private network, is not for the proxy to read in its way.
        """
        if proxy is None:
            return resolve(self.resolver, host, port, end)
        try:
            return resolve(self.resolver, host, port, min(end, time.monotonic() + PROXIED_DNS_SECONDS))
        except FetchError:
            if rules.PRIVATE_NAME.fullmatch(host):
                raise FetchError("private_address") from None
            return []


_INSTALLING = threading.Lock()


@contextlib.contextmanager
def installed(opener: GuardedOpener) -> Iterator[None]:
    """Sends all urllib requests of this process through `opener` until the context closes. One context at a time."""
    with _INSTALLING:
        before = getattr(urllib.request, "_opener", None)
        urllib.request.install_opener(opener)  # type: ignore[arg-type]  # urlopen only calls its `open`
        try:
            yield
        finally:
            urllib.request.install_opener(before)  # None restores the default


class Answer(io.BytesIO):
    """The part of a urllib response that its users read."""

    def __init__(self, answer: Fetched) -> None:
        super().__init__(answer.body)
        self.headers, self.url, self.status = answer.headers, answer.final_url, 200
