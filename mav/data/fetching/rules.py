"""TODO-DOC mav/data/fetching/rules.py"""

from __future__ import annotations

import email.message
import email.utils
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence

AGENT = "make-a-video-system"
VALUED = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)  # directives of X-Robots-Tag that hold a colon
TDM_RESERVATION = (
    "tdm-reservation"  # stands in `refuse` beside the directives, and is a header of its own (W3C's TDM protocol)
)


TRANSIENT = frozenset({"dns", "timeout", "reset", "connection", "http_429"})  # and every http_5xx


def is_transient(reason: str) -> bool:
    """Whether what failed for this reason may come through another day."""
    return reason in TRANSIENT or reason.startswith("http_5")


class FetchError(Exception):
    """A URL that could not be had. `reason` is one of a closed set of classes, safe to count by."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


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
