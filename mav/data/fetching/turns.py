"""Turns at the hosts that are fetched from: a host gets few connections at a time, wherever its requests come from."""

import threading
import time
from types import TracebackType

from mav.data.fetching.rules import FetchError


class Turns:
    """The connections that all fetches of a shard may have to each host at a time."""

    def __init__(self, per_host: int) -> None:
        self._per_host, self._lock = per_host, threading.Lock()
        self._slots: dict[str, threading.BoundedSemaphore] = {}

    def slot(self, host: str) -> threading.BoundedSemaphore:
        """Returns what counts the connections to a host."""
        with self._lock:
            return self._slots.setdefault(host, threading.BoundedSemaphore(self._per_host))


class Turn:
    """A fetch's turn at one host after another, given back when the context closes.

    It has one host's at a time: two fetches that each hold what the other waits for would both wait in vain.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns, self._host = turns, ""
        self._held: threading.BoundedSemaphore | None = None

    def at(self, host: str, end: float | None = None) -> None:
        """Waits for a connection to a host, until `end` at most; None: as long as it takes.

        Raises FetchError("timeout").
        """
        if self._held and host == self._host:
            return
        self._leave()
        slot = self._turns.slot(host)
        if not slot.acquire(timeout=None if end is None else max(end - time.monotonic(), 0.0)):
            raise FetchError("timeout", f"too many other fetches from {host}")
        self._host, self._held = host, slot

    def _leave(self) -> None:
        if self._held:
            self._held.release()
        self._held = None

    def __enter__(self) -> "Turn":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
