"""What a training measures of itself: losses and gradients on the device, time and memory."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mav.errors import DivergedError


class Log:
    """Sums since the last line, kept on the device, and the first step at which something was not finite."""

    def __init__(self, device: str, world_size: int) -> None:
        self.world_size = world_size
        self.loss, self.norm = torch.zeros((), device=device), torch.zeros((), device=device)
        self.steps = 0
        self.bad = torch.full((), -1, dtype=torch.long, device=device)

    def end_step(self, norm: Tensor, samples: int) -> None:
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.norm += norm
        self.steps += 1
        finite = torch.isfinite(norm) & torch.isfinite(self.loss)
        self.bad = torch.where((self.bad < 0) & ~finite, samples, self.bad)

    def check(self, stage: str, batch_size: int) -> None:
        """Raises DivergedError when a step was not finite. No checkpoint is written after such a step."""
        first = int(self.bad)
        if first >= 0:
            problem = f"{stage}: loss or gradient is not finite at samples {first} to {first + batch_size - 1}"
            key = f"{stage.replace('-', '_')}.optimisation"
            raise DivergedError(
                f"{problem}: look at these samples, lower `{key}.learning_rate` or raise `{key}.warmup_samples`."
            )

    def read(self, stage: str, batch_size: int) -> dict[str, float]:
        """Returns the means since the last line over all ranks, and starts the next line."""
        self.check(stage, batch_size)
        sums = self.state()
        self.load({"loss": 0.0, "norm": 0.0, "steps": 0})
        return {"loss": sums["loss"] / sums["steps"], "gradient_norm": sums["norm"] / sums["steps"]}

    def state(self) -> dict[str, Any]:
        """The open sums, where the loss is the mean over the ranks."""
        loss = self.loss.clone()
        if self.world_size > 1:
            torch.distributed.all_reduce(loss)
            loss /= self.world_size
        return {"loss": float(loss), "norm": float(self.norm), "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        self.loss.fill_(state["loss"])
        self.norm.fill_(state["norm"])
        self.steps = state["steps"]


class Clock:
    """Seconds since it was made, and the shares of them that were spent waiting."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.spent = dict.fromkeys(("data_wait", "save_wait", "sample_wait", "validation_wait"), 0.0)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        before = time.monotonic()
        yield
        self.spent[what] += time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def shares(self) -> dict[str, float]:
        return {what: spent / self.seconds for what, spent in self.spent.items()}


def peak_memory(device: str) -> float:
    """The most memory used so far in GB: the device's, or on a CPU the process's."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
