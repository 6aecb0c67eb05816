"""The import of libraries that take Weights & Biases with them, to log what nobody asks them to."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

WANDB = "wandb"


@contextmanager
def without_wandb() -> Iterator[None]:
    """Within the block, whoever imports Weights & Biases for the first time gets an empty module; afterwards, its own.

    img2dataset and timm import it. That takes half a second, and two temporary folders, which stay where a process is
    ended as Ray ends its workers.
    """
    spec = None if WANDB in sys.modules else importlib.util.find_spec(WANDB)
    if spec is None:
        yield
        return
    empty = sys.modules[WANDB] = importlib.util.module_from_spec(spec)  # knows its place; nothing of it is run
    try:
        yield
    finally:
        if sys.modules.get(WANDB) is empty:
            del sys.modules[WANDB]
