"""Curves of a training while it trains: TensorBoard event files (`tensorboard --logdir RUNS/tensorboard`), and Weights & Biases when asked.

Event files live beside the artifacts, not in them: event files carry clock times, and an artifact's bytes are a function of its inputs.
"""

import time
from collections.abc import Callable
from typing import Any

from mav.errors import UserError
from mav.recipes import Recipe, to_plain
from mav.storage import Folder

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

            self._writer = SummaryWriter(
                self.folder.url, purge_step=int(facts[STEP]), filename_suffix=f".{time.time_ns()}"
            )
        for name, value in sorted(_numbers(facts).items()):
            self._writer.add_scalar(name, value, int(facts[STEP]))
        self._writer.flush()


class WandbBoard:
    """A report callback that also logs every number to a Weights & Biases project, then hands the facts on.

    A stage of a recipe is one run there, by its fingerprint, so that a resumed training goes on in it. Raises UserError when the package
    is absent.
    """

    def __init__(
        self, project: str, stage: str, recipe: Recipe, folder: Folder, then: Callable[[dict[str, Any]], None]
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                "WANDB_PROJECT is set but the package wandb is not installed: `pip install wandb`, or unset WANDB_PROJECT."
            ) from None
        fingerprint = folder.root.rstrip("/").rpartition("/")[2]
        config = {"seed": recipe.seed, stage: to_plain(recipe.section_of(stage))}
        names: dict[str, Any] = {
            "project": project,
            "group": recipe.name,
            "name": f"{recipe.name} {stage}",
            "id": f"{stage}-{fingerprint}",
        }
        self.then = then
        self._run: Any = wandb.init(**names, config=config, resume="allow")

    def __call__(self, facts: dict[str, Any]) -> None:
        self.then(facts)
        self._run.log(_numbers(facts), step=int(facts[STEP]))


def _numbers(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in ALWAYS and isinstance(value, (int, float))}
