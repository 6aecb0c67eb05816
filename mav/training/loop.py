"""The training loop, for every network of the system. torch only; readable from top to bottom.

Samples seen is the one counter. What a step trains on, its noise, its noise steps and its dropped conditions are pure functions of
(seed, stage, sample number), and a checkpoint holds everything else (weights, average, optimiser, counter, the log's open sums). So a run
that was killed anywhere and resumed gives, on a CPU, the same bits as one that never stopped, and the samples of a step do not depend on
the number of workers.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mav.artifact import Folder
from mav.diffusion.noise import Draws
from mav.errors import UserError
from mav.recipe import Optimisation
from mav.training.ema import Ema

CHECKPOINT = "checkpoint.pt"
Batch = dict[str, Tensor]


class Source(Protocol):
    """Where samples come from: a pure function of the sample's number."""

    def batch(self, first: int, count: int) -> Batch:
        """Samples number first .. first + count - 1 of the training."""
        ...

    def __len__(self) -> int:
        """Distinct samples."""
        ...


@dataclass(frozen=True)
class Task:
    """What a stage trains; made by `mav.training.stages`."""

    stage: str
    network: nn.Module
    source: Source
    loss: Callable[[nn.Module, Batch, Draws], Tensor]  # mean loss of the batch's rows, a scalar
    identity: str  # digest of all that must be equal for a checkpoint to be continued
    late: frozenset[str] = frozenset()  # parameters that hold still for the first `late_samples`
    late_samples: int = 0


@dataclass
class Progress:
    """The part of the run's state that is not weights."""

    samples: int = 0
    steps: int = 0
    curves: list[dict[str, float]] = field(default_factory=list)


def train(
    task: Task,
    optimisation: Optimisation,
    seed: int,
    work: Folder,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: str = "cpu",
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Progress:
    """Trains `task.network` in place, from the checkpoint in `work` if there is one; it ends as its own moving average.

    With world_size > 1, torch.distributed is already initialised and every rank calls this. Raises UserError when the checkpoint is another
    recipe's, FloatingPointError naming the samples when loss or gradient stop being finite.
    """
    o, network = optimisation, task.network.to(device).train()

    # ---- network, optimiser, average
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    if o.compile:
        network.compile_blocks()  # type: ignore[operator]
    optimiser = make_optimiser(task, o, device)
    moving = [p for group in optimiser.param_groups for p in group["params"]]
    ema = Ema(moving, o.ema_decay)
    progress = Progress()
    log = Log(device)

    # ---- resume, then wrap
    restore(task, work, device, network, optimiser, ema, log, progress)
    wrapped: nn.Module = network
    if world_size > 1:
        devices = [torch.device(device)] if device.startswith("cuda") else None
        wrapped = nn.parallel.DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=o.precision == "bfloat16")

    # ---- steps
    micro = o.batch_size // (o.accumulation * world_size)
    started, started_at, waited = time.monotonic(), progress.samples, 0.0
    batches = prefetch(task.source, progress.samples, o, rank, world_size)
    while progress.samples < o.samples:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(o, progress.samples) * (progress.samples >= group["hold"])
        for part in range(o.accumulation):
            before = time.monotonic()
            first, batch = next(batches)
            waited += time.monotonic() - before
            draws = Draws((seed, task.stage, number) for number in range(first, first + micro))
            last = part == o.accumulation - 1
            with contextlib.nullcontext() if last or world_size == 1 else wrapped.no_sync(), autocast:  # type: ignore[operator]
                loss = task.loss(wrapped, {name: value.to(device, non_blocking=True) for name, value in batch.items()}, draws)
                (loss / o.accumulation).backward()
            log.add_loss(loss.detach() / o.accumulation)
        norm = nn.utils.clip_grad_norm_(moving, o.gradient_clip, foreach=True)
        log.end_step(norm, progress.samples)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        progress.samples += o.batch_size
        progress.steps += 1
        ema.update(progress.steps)

        # ---- now and then: the only places where the processor waits for the device
        done = progress.samples >= o.samples
        if due(progress.samples, o.log_every, o.batch_size) or done:
            line = log.read(task.stage, o.batch_size, world_size) | {"learning_rate": optimiser.param_groups[0]["lr"]}
            progress.curves.append({"samples": progress.samples, **line})
            seconds = time.monotonic() - started
            speed = {"samples_per_second": (progress.samples - started_at) / seconds, "data_wait": waited / seconds}
            report({"stage": task.stage, "total": o.samples, **progress.curves[-1], **speed})
        if (due(progress.samples, o.checkpoint_every, o.batch_size) or done) and rank == 0:
            log.check(task.stage, o.batch_size)
            save(task, work, network, optimiser, ema, log, progress)
    ema.copy_to_parameters()
    network.eval()
    return progress


# ------------------------------------------------------------------------------------------------------------- the parts


def make_optimiser(task: Task, o: Optimisation, device: str) -> torch.optim.AdamW:
    """AdamW; weights decay, biases and norms do not. Each group knows the sample until which it holds still."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in task.network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim >= 2, name in task.late), []).append(parameter)
    described = [
        {"params": parameters, "weight_decay": o.weight_decay * decays, "hold": task.late_samples * late}
        for (decays, late), parameters in sorted(groups.items(), reverse=True)
    ]
    fused = torch.device(device).type in ("cpu", "cuda")
    return torch.optim.AdamW(described, lr=o.learning_rate, betas=o.betas, eps=o.eps, fused=fused)


def learning_rate(o: Optimisation, samples: int) -> float:
    """Linear warm-up, then constant, then a linear cool-down to zero over the last samples."""
    rate = o.learning_rate
    if o.warmup_samples:
        rate *= min(1.0, (samples + o.batch_size) / o.warmup_samples)
    if o.cooldown_samples:
        rate *= min(1.0, max(0, o.samples - samples) / o.cooldown_samples)
    return rate


def due(samples: int, every: int, step: int) -> bool:
    """True once in every `every` samples, for steps of `step`."""
    return samples // every != (samples - step) // every


def prefetch(source: Source, samples: int, o: Optimisation, rank: int, world_size: int) -> Iterator[tuple[int, Batch]]:
    """This rank's parts of each step, (first sample number, batch), one read ahead by a thread."""
    micro = o.batch_size // (o.accumulation * world_size)
    firsts = (
        step + (part * world_size + rank) * micro for step in range(samples, o.samples, o.batch_size) for part in range(o.accumulation)
    )
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        pending = None
        for first in firsts:
            upcoming = (first, pool.submit(source.batch, first, micro))
            if pending:
                yield pending[0], pending[1].result()
            pending = upcoming
        if pending:
            yield pending[0], pending[1].result()


class Log:
    """Sums since the last line, kept on the device; and the first step at which something was not finite."""

    def __init__(self, device: str) -> None:
        self.loss, self.norm = torch.zeros((), device=device), torch.zeros((), device=device)
        self.steps = 0
        self.bad = torch.full((), -1, dtype=torch.long, device=device)

    def add_loss(self, loss: Tensor) -> None:
        self.loss += loss

    def end_step(self, norm: Tensor, samples: int) -> None:
        self.norm += norm
        self.steps += 1
        finite = torch.isfinite(norm) & torch.isfinite(self.loss)
        self.bad = torch.where((self.bad < 0) & ~finite, samples, self.bad)

    def check(self, stage: str, batch_size: int) -> None:
        """Raises FloatingPointError when a step since the start was not finite. No checkpoint is written after such a step."""
        first = int(self.bad)
        if first >= 0:
            raise FloatingPointError(
                f"{stage}: loss or gradient is not finite at samples {first} to {first + batch_size - 1}: "
                "look at these samples, or lower the learning rate"
            )

    def read(self, stage: str, batch_size: int, world_size: int) -> dict[str, float]:
        """Means since the last line, over all ranks; starts the next line."""
        self.check(stage, batch_size)
        loss = self.loss
        if world_size > 1:
            torch.distributed.all_reduce(loss)
            loss = loss / world_size
        line = {"loss": float(loss) / self.steps, "gradient_norm": float(self.norm) / self.steps}
        self.loss.zero_()
        self.norm.zero_()
        self.steps = 0
        return line

    def state(self) -> dict[str, Any]:
        return {"loss": self.loss, "norm": self.norm, "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        self.loss.copy_(state["loss"])
        self.norm.copy_(state["norm"])
        self.steps = state["steps"]


def save(task: Task, work: Folder, network: nn.Module, optimiser: torch.optim.Optimizer, ema: Ema, log: Log, progress: Progress) -> None:
    """Writes the checkpoint under a temporary name and renames it: a kill inside leaves the one before."""
    state = {
        "identity": task.identity,
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "ema": ema.state(),
        "log": log.state(),
        "progress": vars(progress),
    }
    with work.create(CHECKPOINT) as file:
        torch.save(state, file)


def restore(
    task: Task, work: Folder, device: str, network: nn.Module, optimiser: torch.optim.Optimizer, ema: Ema, log: Log, progress: Progress
) -> None:
    """Reads the checkpoint, if there is one, into all that `save` wrote. Raises UserError when it is of another recipe."""
    if not work.exists(CHECKPOINT):
        return
    state = torch.load(io.BytesIO(work.read_bytes(CHECKPOINT)), map_location=device, weights_only=True)
    if state["identity"] != task.identity:
        raise UserError(f"{work.path(CHECKPOINT)} is the checkpoint of another recipe: remove it, or train in another folder.")
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    ema.load(state["ema"])
    log.load(state["log"])
    for name, value in state["progress"].items():
        setattr(progress, name, value)
