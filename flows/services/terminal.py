"""What a person sees while work is done: one line when a stage starts or ends, and a moving line for each that is running."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

PLAIN_SECONDS = 15.0  # without a terminal: at most one progress line a stage in so many seconds
FILE_WIDTH = 160  # columns of a table that goes to a file
# What is told of a stage's progress; TensorBoard and Ray's metrics have the rest.
FACTS = {
    "loss": "loss {:.3g}",
    "samples_per_second": "{:.3g} samples/s",
    "rows_per_s": "{:,} rows/s",
    "in_flight": "{} in flight",
}


def tables() -> Console:
    """Where tables are printed: as wide as the terminal, and wide enough for any of ours in a file."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else FILE_WIDTH)


def working(what: str) -> AbstractContextManager[object]:
    """Says on the error stream that something is worked at which has no parts to count; nothing where nobody watches."""
    return Console(stderr=True).status(f"{what} ...")


class Line:
    """One moving line on the error stream, gone when the work is done; nothing where nobody watches. Called with what, done, total."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("  {task.description:<22}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Line:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._bar.tasks[0].description:
            self._bar.reset(self._task, description=what)
        self._bar.update(self._task, completed=done, total=total)


class Terminal:
    """Progress of several stages at once; bars on a terminal, sparse plain lines elsewhere. Honours NO_COLOR."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("  {task.description:<22}"), BarColumn(bar_width=24 if self.console.width >= 100 else 8),
            TextColumn("{task.fields[note]}"), TimeElapsedColumn(), console=self.console, transient=True, speed_estimate_period=300,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._spoken: dict[str, float] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Terminal:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def start(self, stage: str) -> None:
        with self._lock:
            self._spoken[stage] = time.monotonic()
            self._tasks[stage] = self._bars.add_task(stage, total=None, note="")
        if not self.console.is_terminal:
            self._tell(stage, "started")

    def progress(self, stage: str, done: float, total: float, **facts: Any) -> None:
        """`done` of `total` units, and of the facts those that `FACTS` names; with them the share done and the time left."""
        with self._lock:
            task = self._tasks.get(stage)
            if task is None:
                return
            self._bars.update(task, completed=done, total=total or None)
            parts = [f"{100 * done / total:3.0f} %"] if total else []
            parts += [form.format(facts[name]) for name, form in FACTS.items() if facts.get(name) is not None]
            left = self._bars.tasks[self._bars.task_ids.index(task)].time_remaining
            parts += [f"{timedelta(seconds=round(left))} left"] if left else []
            note = "  ".join(parts)
            self._bars.update(task, note=note)
            speak = not self.console.is_terminal and time.monotonic() - self._spoken[stage] > PLAIN_SECONDS
            if speak:
                self._spoken[stage] = time.monotonic()
        if speak:
            self._tell(stage, note)

    def end(self, stage: str, text: str) -> None:
        with self._lock:
            if stage in self._tasks:
                self._bars.remove_task(self._tasks.pop(stage))
        self._tell(stage, text)

    def say(self, text: str) -> None:
        """A lasting line."""
        self.console.print(text, soft_wrap=True)

    def _tell(self, stage: str, text: str) -> None:
        """A lasting line about a stage; on a terminal what is too long goes on in its own column."""
        if self.console.is_terminal:
            line = Table.grid(Column(width=25), Column())
            line.add_row(f"  {stage}", text)
            self.console.print(line)
        else:
            self.say(f"  {stage:<22} {text}")
