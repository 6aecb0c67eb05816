"""Curves of a running training, in TensorBoard's event files and on request in Weights & Biases.

`tensorboard --logdir RUNS/tensorboard` shows them. Event files are stored beside the artifacts, not in them: they hold
clock times, and an artifact's bytes are a function of its inputs.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any, Self
from unittest import mock

import numpy as np
from PIL import Image

from mav.errors import UserError
from mav.recipes import Recipe, to_plain
from mav.storage import Folder

STEP = "samples"  # the loop's one counter
NOT_CURVES = {STEP, "total"}
PICTURES = "samples"  # the folder of the pictures, beside TensorBoard's files
SENT_WITHIN = 60.0  # seconds after a training in which Weights & Biases may still send
MESSAGE = "message"  # a report with a sentence for the user has no numbers
Report = Callable[[dict[str, Any]], None]


class Board:
    """A report callback that writes every number as a curve over samples, then passes the report on.

    A resumed training replaces what was written after its checkpoint. Only a local disk gets event files: TensorBoard
    would write each file again on every flush to other storage. `curves.jsonl` of the artifact has the same numbers.
    """

    def __init__(self, folder: Folder, then: Report) -> None:
        self.folder, self.then = folder, then
        self._writer: Any = None

    def __call__(self, progress: dict[str, Any]) -> None:
        self.then(progress)
        if not self.folder.local or MESSAGE in progress:
            return
        samples = int(progress[STEP])
        writer = self._opened(samples)
        for name, value in sorted(_numbers(progress).items()):
            writer.add_scalar(name, value, samples)
        writer.flush()

    def show(self, samples: int, picture: bytes) -> None:
        """Keeps a PNG of what the network makes after so many samples, and shows it in TensorBoard."""
        self.folder.write_bytes(f"{PICTURES}/{samples:012d}.png", picture)
        if self.folder.local:
            with Image.open(io.BytesIO(picture)) as image:
                self._opened(samples).add_image("samples", np.asarray(image), samples, dataformats="HWC")

    def _opened(self, samples: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            suffix = f".{time.time_ns()}"
            self._writer = SummaryWriter(self.folder.url, purge_step=samples, filename_suffix=suffix)
        return self._writer


class WandbBoard:
    """A report callback that passes the report on to a board, and logs every number to a Weights & Biases project.

    A stage of a recipe is one run there, named by its fingerprint, so that a resumed training continues it. Within its
    `with` block all is sent by the end, for a minute at most: Ray ends workers without a word. Raises UserError when
    the package is missing.
    """

    def __init__(self, project: str, stage: str, recipe: Recipe, board: Board) -> None:
        folder = board.folder
        place = folder.path("wandb") if folder.local else None
        if place:
            os.makedirs(place, exist_ok=True)
        try:
            with mock.patch.object(tempfile, "tempdir", place or tempfile.tempdir):  # it makes folders when it is read
                import wandb
        except ImportError:
            raise UserError(
                "WANDB_PROJECT is set but the package wandb is not installed: `pip install wandb`, "
                "or unset WANDB_PROJECT."
            ) from None
        fingerprint = folder.root.rstrip("/").rpartition("/")[2]
        config = {"seed": recipe.seed, stage: to_plain(recipe.section_of(stage))}
        names: dict[str, Any] = {"group": recipe.name, "name": f"{recipe.name} {stage}", "id": f"{stage}-{fingerprint}"}
        self.board, self._image = board, wandb.Image
        if place:  # what is written offline lies beside TensorBoard's files, not where a worker happens to run
            names["dir"] = place
        settings = {"finish_timeout": SENT_WITHIN}
        self._run: Any = wandb.init(project=project, **names, config=config, resume="allow", settings=settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._run.finish(exit_code=int(kind is not None))

    def __call__(self, progress: dict[str, Any]) -> None:
        self.board(progress)
        if MESSAGE not in progress:
            self._run.log(_numbers(progress), step=int(progress[STEP]))

    def show(self, samples: int, picture: bytes) -> None:
        """Keeps a PNG of what the network makes after so many samples, and shows it in both places."""
        self.board.show(samples, picture)
        with Image.open(io.BytesIO(picture)) as image:
            self._run.log({"samples": self._image(image.convert("RGB"))}, step=samples)


def _numbers(progress: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in progress.items() if key not in NOT_CURVES and isinstance(value, (int, float))}
