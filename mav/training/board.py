"""TensorBoard event files of a training: `tensorboard --logdir RUNS/tensorboard` shows every stage while it trains.

They live beside the artifacts, not in them: event files carry clock times, and an artifact's bytes are a function of its inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mav.artifact import Folder

STEP = "samples"  # the loop's one counter
ALWAYS = {STEP, "total"}  # not curves


class Board:
    """A report callback that writes every number it is given as a curve over samples, then hands the facts on.

    A resumed training replaces what was written beyond its checkpoint. Storage that is not a local disk gets no event files: TensorBoard
    would write each of them anew on every flush; `curves.jsonl` of the artifact has the numbers.
    """

    def __init__(self, folder: Folder, then: Callable[[dict[str, Any]], None]) -> None:
        self.folder, self.then = folder, then
        self._writer: Any = None

    def __call__(self, facts: dict[str, Any]) -> None:
        self.then(facts)
        if not self.folder.local:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.folder.url, purge_step=int(facts[STEP]), filename_suffix=f".{time.time_ns()}")
        for name, value in sorted(facts.items()):
            if name not in ALWAYS and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, int(facts[STEP]))
        self._writer.flush()
