"""What the terminal shows: tables, a line when a stage starts or ends, and a progress line for each running stage."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)  # fmt: skip
from rich.table import Column, Table

PLAIN_SECONDS = 15.0  # without a terminal, a stage prints at most one progress line in this time
WIDEST = 10_000  # columns in which every table finds room
FILE_WIDTH = 160  # columns of a table that is printed to a file
PROGRESS = {  # what is shown of a stage's progress; TensorBoard and Ray's metrics have the rest
    "loss": "loss {:.3g}", "samples_per_second": "{:.3g} samples/s", "utilisation": "{:.0%} utilised",
    "rows_per_s": "{:,} rows/s", "in_flight": "{} in flight",
}  # fmt: skip


def progress_values(progress: dict[str, Any]) -> list[str]:
    """Formats those values of a stage's progress that `PROGRESS` names."""
    return [form.format(progress[name]) for name, form in PROGRESS.items() if progress.get(name) is not None]


def table_console() -> Console:
    """Returns the console that tables are printed to: as wide as the terminal, and wide enough in a file."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else FILE_WIDTH)


class PlainTable(Table):
    """A table that is printed row by row, each under its name, where the terminal is too narrow for its columns."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if Measurement.get(console, options.update(max_width=WIDEST), self).minimum <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield console.render_str(str(self.title))
        for name, *cells in zip(*(column.cells for column in self.columns), strict=True):
            yield console.render_str(str(name), style="bold")
            for column, cell in zip(self.columns[1:], cells, strict=True):
                if str(cell):
                    yield console.render_str(f"  {column.header}: {cell}")


def plain_table(*columns: str, right: tuple[str, ...] = (), **options: Any) -> PlainTable:
    """Returns a table without borders; the columns named in `right` are added at the right and aligned there."""
    table = PlainTable(*columns, box=None, header_style="bold", pad_edge=False, title_justify="left", **options)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def spinner(what: str) -> AbstractContextManager[object]:
    """Shows on the error stream that work without countable parts goes on. Shows nothing without a terminal."""
    return Console(stderr=True).status(f"{what} ...")


class ProgressLine:
    """One progress line on the error stream that disappears when the work is done. Called with (what, done, total)."""

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

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._bar.tasks[0].description:
            self._bar.reset(self._task, description=what)
        self._bar.update(self._task, completed=done, total=total)


class Terminal:
    """Shows the progress of several stages: bars on a terminal, rare plain lines elsewhere. Honours NO_COLOR."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        bar = BarColumn(bar_width=24 if self.console.width >= 100 else 8)
        columns = TextColumn("  {task.description:<22}"), bar, TextColumn("{task.fields[note]}"), TimeElapsedColumn()
        self._bars = Progress(*columns, console=self.console, transient=True, speed_estimate_period=300)
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}  # when each stage printed its last plain line
        self._lock = threading.Lock()

    def __enter__(self) -> Terminal:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def start(self, stage: str) -> None:
        """Begins a stage's progress line."""
        with self._lock:
            self._printed[stage] = time.monotonic()
            self._tasks[stage] = self._bars.add_task(stage, total=None, note="")
        if not self.console.is_terminal:
            self._print(stage, "started")

    def progress(self, stage: str, done: float, total: float, **values: Any) -> None:
        """Shows `done` of `total` units, the values that `PROGRESS` names, and the time left."""
        with self._lock:
            task = self._tasks.get(stage)
            if task is None:
                return
            self._bars.update(task, completed=done, total=total or None)
            parts = [f"{100 * done / total:3.0f} %"] if total else []
            parts += progress_values(values)
            left = self._bars.tasks[self._bars.task_ids.index(task)].time_remaining
            parts += [f"{timedelta(seconds=round(left))} left"] if left else []
            note = "  ".join(parts)
            self._bars.update(task, note=note)
            due = not self.console.is_terminal and time.monotonic() - self._printed[stage] > PLAIN_SECONDS
            if due:
                self._printed[stage] = time.monotonic()
        if due:
            self._print(stage, note)

    def end(self, stage: str, text: str) -> None:
        """Replaces a stage's progress line by a lasting one."""
        with self._lock:
            if stage in self._tasks:
                self._bars.remove_task(self._tasks.pop(stage))
        self._print(stage, text)

    def say(self, text: str) -> None:
        """Prints a lasting line."""
        self.console.print(text, soft_wrap=True)

    def _print(self, stage: str, text: str) -> None:
        """Prints a lasting line about a stage. On a terminal, long text wraps within its own column."""
        if self.console.is_terminal:
            line = Table.grid(Column(width=25), Column())
            line.add_row(f"  {stage}", text)
            self.console.print(line)
        else:
            self.say(f"  {stage:<22} {text}")
