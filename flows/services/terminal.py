"""What the terminal shows of running work: a line when a stage starts or ends, and progress lines until then."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn  # fmt: skip
from rich.text import Text

from flows.services.printing import broken, say, wrapped

PLAIN_SECONDS = 15.0  # without a terminal, a stage prints at most one progress line in this time
NARROW = 60  # columns of a terminal below which there is no room for a bar
ENDS = {"done": "green", "failed": "red"}  # how the line of a stage that has ended begins
NAME = 22  # columns of the longest stage's name
PROGRESS = {  # what is shown of a stage's progress; TensorBoard and Ray's metrics have the rest
    "loss": "loss {:.3g}", "samples_per_second": "{:,.10g} samples/s", "utilisation": "{:.0%} utilised",
    "rows_per_s": "{:,} rows/s", "in_flight": "{} in flight",
}  # fmt: skip


def progress_values(progress: dict[str, Any]) -> list[str]:
    """Formats those values of a stage's progress that `PROGRESS` names."""
    shown = {name: progress[name] for name in PROGRESS if progress.get(name) is not None}
    rounded = {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in shown.items()}
    return [PROGRESS[name].format(value).replace("%", " %") for name, value in rounded.items()]


def spinner(what: str) -> AbstractContextManager[object]:
    """Shows on the error stream that work without countable parts goes on. Shows nothing without a terminal."""
    console, text = Console(stderr=True), Text(f"{what} ...")
    text.truncate(max(console.width - len("⠋ "), 1), overflow="ellipsis")  # each turn would leave a second line behind
    return console.status(text)


class ProgressLine:
    """One progress line on the error stream that disappears when the work is done. Called with (what, done, total)."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        narrow = console.width < NARROW
        bars = () if narrow else (BarColumn(bar_width=16),)
        columns = (_name(narrow), *bars, MofNCompleteColumn(), TimeRemainingColumn())
        # The standard output may be a file, which the progress line would lead to the terminal.
        self._bar = Progress(
            *columns, console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("", total=None, visible=False)

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._bar.tasks[0].description:
            self._bar.reset(self._task, description=what, completed=done, total=total, visible=True)
        self._bar.update(self._task, completed=done, total=total)

    def say(self, text: str) -> None:
        """Prints a lasting line to the standard output, above the progress line."""
        self._bar.stop()
        say(text)
        self._bar.start()


def _name(narrow: bool) -> TextColumn:
    return TextColumn("  {task.description}" if narrow else f"  {{task.description:<{NAME}}}")


class Terminal:
    """Shows the progress of several stages: bars on a terminal, rare plain lines elsewhere. Honours NO_COLOR."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        width = self.console.width
        self._bar = 24 if width >= 100 else 8 if width >= NARROW else 0  # columns
        bar = (BarColumn(bar_width=self._bar),) if self._bar else ()
        columns = (_name(narrow=False), *bar, TextColumn("{task.fields[note]}"))
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
            self.say("started", stage)

    def progress(self, stage: str, done: float, total: float, **values: Any) -> None:
        """Shows `done` of `total` units, the values that `PROGRESS` names, and the time left."""
        with self._lock:
            task = self._tasks.get(stage)
            if task is None:
                return
            self._bars.update(task, completed=done, total=total or None)
            share = [f"{100 * done / total:3.0f} %"] if total else []
            seconds = self._bars.tasks[self._bars.task_ids.index(task)].time_remaining
            left = [f"{timedelta(seconds=round(seconds))} left"] if seconds else []
            note = self._note(stage, share, progress_values(values), left)
            self._bars.update(task, note=note)
            due = (
                not self.console.is_terminal and bool(note) and time.monotonic() - self._printed[stage] > PLAIN_SECONDS
            )
            if due:
                self._printed[stage] = time.monotonic()
        if due:
            self.say(note, stage)

    def end(self, stage: str, text: str) -> None:
        """Replaces a stage's progress line by a lasting one."""
        with self._lock:
            if stage in self._tasks:
                self._bars.remove_task(self._tasks.pop(stage))
        self.say(text, stage)

    def say(self, text: str, stage: str = "") -> None:
        """Prints a lasting line, of a stage if one is given. On a terminal, long text wraps within its own column."""
        console = self.console
        if stage:
            first, rest = f"  {stage:<{NAME}} ", " " * (NAME + 3 if console.width >= NARROW else 4)
            lines = wrapped(text, console.width, first, rest) if console.is_terminal else [first + text]
        else:
            lines = broken(text, console.width) if console.is_terminal else [text]
        line = Text("\n".join(lines))
        for word, style in ENDS.items():
            if stage and text.startswith(word):
                line.stylize(style, len(first), len(first) + len(word))
        console.print(line, soft_wrap=True)

    def _note(self, stage: str, share: list[str], values: list[str], left: list[str]) -> str:
        """Returns what stands beside a stage's bar. On a terminal, values that find no room are left out."""
        beside = max(NAME, len(stage)) + (len(" ") + self._bar if self._bar else 0)
        room = self.console.width - len("  ") - beside - len(" ")
        for count in range(len(values), -1, -1):
            note = "  ".join([*share, *values[:count], *left])
            if not self.console.is_terminal or len(note) <= room:
                return note
        return share[0] if share else ""
