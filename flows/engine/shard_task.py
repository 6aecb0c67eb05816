"""What a worker does with one shard: it makes the shard, judges its success rate, and commits it by its marker."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flows.engine.markers import Markers
from mav.errors import UserError

ROWS = ("rows_in", "rows_out", "dropped", "failed")  # counts that go back to the driver; the marker has all others


class ShardOutput(Protocol):
    """What a stage's work returns for a shard: its row counts, its files' names, where its samples are."""

    @property
    def counts(self) -> dict[str, Any]: ...

    @property
    def files(self) -> Sequence[str]: ...

    @property
    def places(self) -> bytes | None: ...


Work = Callable[[str], ShardOutput]


@dataclass(frozen=True)
class ShardResult:
    """The result of one attempt at a shard: its counts, bytes and seconds, or the sentence that says why it failed.

    `fatal` is an error that another attempt cannot correct.
    """

    counts: dict[str, Any] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    problem: str = ""
    fatal: Exception | None = None

    def packed(self) -> Any:
        """Returns a success as plain values, which travel in half the time that an object takes."""
        return self if self.problem or self.fatal else [self.counts, self.bytes, self.seconds]

    @classmethod
    def unpacked(cls, answer: Any) -> ShardResult:
        """Reverses `packed`."""
        return answer if isinstance(answer, ShardResult) else cls(*answer)


@dataclass(frozen=True)
class ShardTask:
    """The function that a pass over shards runs in its pool: called with a shard's name and its least success rate."""

    work: Work
    markers: Markers
    fsync: bool

    def __call__(self, name: str, floor: float) -> Any:
        return self.attempt(name, floor).packed()

    def attempt(self, name: str, floor: float) -> ShardResult:
        """Makes one shard and commits it.

        A shard below the floor is not committed, so that it is tried again: the network may have failed half-way.
        """
        began = time.monotonic()
        try:
            output = self.work(name)
            if below_floor(output.counts, floor):
                rows = f"only {output.counts['rows_out']} of {output.counts['rows_in']} rows came through"
                return ShardResult(problem=f"{rows} ({failure_reasons(output.counts)})")
            size = self.markers.commit(name, output.counts, output.files, output.places, fsync=self.fsync)
        except Exception as error:
            if isinstance(error, UserError) or getattr(error, "errno", None) == errno.ENOSPC:
                return ShardResult(fatal=error)
            return ShardResult(problem=sentence(error))
        counts = {key: output.counts[key] for key in ROWS if key in output.counts}
        return ShardResult(counts, size, time.monotonic() - began)


def below_floor(counts: dict[str, Any], floor: float) -> bool:
    """Says whether fewer than `floor` of the rows that were not dropped on purpose came through."""
    wanted = counts.get("rows_in", 0) - sum(counts.get("dropped", {}).values())
    return bool(counts.get("rows_out", 0) < floor * wanted)


def failure_reasons(counts: dict[str, Any]) -> str:
    """Says why rows failed, the most frequent reason first."""
    failed = sorted(counts.get("failed", {}).items(), key=lambda item: -item[1])
    return "failed: " + (", ".join(f"{reason} {n:,}" for reason, n in failed) or "none")


def sentence(error: BaseException) -> str:
    """Returns an error's kind and its first line, without the lines that Ray puts before them."""
    error = getattr(error, "cause", None) or error
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
