"""The rules of fetching that need no connection: reasons of failure, opt-out headers, Retry-After and URLs."""

import email.utils
import re
import time
import urllib.parse
from collections.abc import Sequence
from contextlib import suppress

import idna

AGENT = "make-a-video-system"  # the distribution, whose version the user agent has too
# Directives of X-Robots-Tag with a colon of their own.
VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
# Names that end in a number, which some programs take for an IPv4 address, and those of machines and private networks.
PRIVATE_NAME = re.compile(r"(?i)(?:.*\.)?(?:\d+|0x[0-9a-f]*|localhost|localdomain|local|internal)\.?")
TDM_RESERVATION = "tdm-reservation"  # allowed in `refuse` beside the directives: a header of W3C's TDM protocol
TRANSIENT = frozenset({"dns", "timeout", "reset", "connection", "proxy", "http_429"})  # and every http_5xx


def is_transient(reason: str) -> bool:
    """Says whether a fetch that failed for this reason may succeed later."""
    return reason in TRANSIENT or reason.startswith("http_5")


class FetchError(Exception):
    """A URL could not be fetched. `reason` is one of a closed set of classes that can be counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class AskAgainError(FetchError):
    """A fetch failed in a way that is worth a retry. retry_after: the host said when."""

    def __init__(self, reason: str, retry_after: bool = False) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def opted_out(values: Sequence[str], refuse: Sequence[str]) -> bool:
    """Says whether X-Robots-Tag headers forbid use by a directive in `refuse`, for everyone or for `AGENT`.

    An agent's name before a colon applies up to the next name. Some directives hold a colon of their own (`VALUED`).
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


def as_sent(header: str) -> str:
    """Returns an address from a header, which http.client reads as Latin-1, as browsers read it: as UTF-8.

    Bytes that are not UTF-8 are percent-encoded, and backslashes before the query are slashes.
    """
    address = percent_encoded(header.strip().encode("latin-1", "replace"))
    before, mark, query = address.partition("?")
    return before.replace("\\", "/") + mark + query


def percent_encoded(address: bytes | str) -> str:
    """Returns an address as text that can be stored; its bytes that are not UTF-8 are percent-encoded.

    In a text they are what the error handler `surrogateescape` made of them; other lone surrogates become U+FFFD.
    """
    text = address.decode("utf-8", "surrogateescape") if isinstance(address, bytes) else address
    text = re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", text)
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def split_url(url: str) -> urllib.parse.SplitResult:
    """Returns the parts of an http or https URL, its host in ASCII. Raises FetchError for any other."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
        port = parts.port  # raises when it is no number
    except ValueError:
        raise FetchError("bad_url") from None
    if parts.scheme not in ("http", "https"):
        raise FetchError("bad_scheme", parts.scheme)
    if not parts.hostname:
        raise FetchError("bad_url")
    try:
        host = f"[{parts.hostname}]" if ":" in parts.hostname else _ascii_host(parts.hostname)
    except UnicodeError:
        raise FetchError("bad_url") from None
    return parts._replace(netloc=host + (f":{port}" if port else ""))


def _ascii_host(host: str) -> str:
    """Returns a host's name in ASCII, as browsers make it: Python's own codec follows the older IDNA 2003."""
    if not host.isascii():
        with suppress(idna.IDNAError):
            return idna.encode(host, uts46=True).decode()
    return host.encode("idna").decode()  # which also refuses empty and overlong labels


def request_target(parts: urllib.parse.SplitResult) -> str:
    """Returns path and query, percent-encoded where a character may not stand in a request line."""
    safe = "%/:=&?~+!$,;'@()*[]"
    path = urllib.parse.quote(parts.path or "/", safe=safe)
    return f"{path}?{urllib.parse.quote(parts.query, safe=safe)}" if parts.query else path


def seconds_to_wait(retry_after: str | None) -> float | None:
    """Returns the seconds of a Retry-After header, a number or a date; None when it says nothing usable."""
    if not retry_after:
        return None
    try:
        if retry_after.strip().isdigit():
            return float(retry_after)
        date = email.utils.parsedate_tz(retry_after)
        return max(email.utils.mktime_tz(date) - time.time(), 0.0) if date else None
    except (ValueError, OverflowError):  # digits of other scripts, and years without end
        return None
