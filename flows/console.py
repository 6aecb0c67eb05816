"""What a person sees while a run works: one line when a stage starts or ends, and a moving line for each that is running."""

from __future__ import annotations

import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

PLAIN_SECONDS = 15.0  # without a terminal: at most one progress line a stage in so many seconds


class Screen:
    """Progress of several stages at once; bars on a terminal, sparse plain lines elsewhere. Honours NO_COLOR."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("  {task.description:<22}"), BarColumn(bar_width=24), TextColumn("{task.fields[note]}"), TimeElapsedColumn(),
            console=self.console, transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._spoken: dict[str, float] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """A lasting line."""
        self.console.print(text, soft_wrap=True)

    def start(self, stage: str) -> None:
        with self._lock:
            self._spoken[stage] = time.monotonic()
            self._tasks[stage] = self._bars.add_task(stage, total=None, note="")
        if not self.console.is_terminal:
            self.say(f"  {stage:<22} started")

    def progress(self, stage: str, done: float, total: float, **facts: Any) -> None:
        """`done` of `total` units; facts such as loss or images/s are shown behind the bar."""
        note = "  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items())
        with self._lock:
            if stage in self._tasks:
                self._bars.update(self._tasks[stage], completed=done, total=total or None, note=note)
            speak = not self.console.is_terminal and time.monotonic() - self._spoken.get(stage, 0.0) > PLAIN_SECONDS
            if speak:
                self._spoken[stage] = time.monotonic()
        if speak:
            share = f"{100 * done / total:5.1f} %" if total else ""
            self.say(f"  {stage:<22} {share}  {note}")

    def end(self, stage: str, text: str) -> None:
        with self._lock:
            if stage in self._tasks:
                self._bars.remove_task(self._tasks.pop(stage))
        self.say(f"  {stage:<22} {text}")
