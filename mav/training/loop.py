"""The training loop, for every network of the system. torch only; readable from top to bottom.

Samples seen is the one counter. What a step trains on, its noise, its noise steps and its dropped conditions are pure functions of
(seed, stage, sample number), and a checkpoint holds everything else (weights, average, optimiser, counter, the log's open sums). So a run
that was killed anywhere and resumed gives, on a CPU, the same bits as one that never stopped, and the samples of a step do not depend on
the number of workers. Replicas and shards (`mav.training.sharding`) take the same path, and so do their checkpoints.
"""

import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mav.diffusion.noise import Draws
from mav.recipes import Cluster, Optimisation
from mav.storage import Folder
from mav.training.checkpoint import Checkpoints, tensors_of
from mav.training.ema import Ema, warmed_up
from mav.training.post_hoc import PostHoc, due
from mav.training.process.preemption import PreemptedError, Told
from mav.training.process.stall import step_made
from mav.training.sharding import gather, spread
from mav.training.validation import Batch, Validation


class BatchSource(Protocol):
    """Where samples come from: a pure function of the sample's number."""

    def batch(self, first: int, count: int) -> Batch:
        """Samples number first .. first + count - 1 of the training."""
        ...

    def __len__(self) -> int:
        """Distinct samples."""
        ...

    def hold_out(self, count: int, total: int) -> Batch:
        """Takes so many samples out of a training of `total` for good, and returns them."""
        ...


@dataclass(frozen=True)
class Task:
    """What a stage trains; made by `mav.training.stages`."""

    stage: str
    network: nn.Module
    source: BatchSource
    loss: Callable[[nn.Module, Batch, Draws], Tensor]  # mean loss of the batch's rows, a scalar
    identity: str  # digest of all that must be equal for a checkpoint to be continued
    late: frozenset[str] = frozenset()  # parameters that hold still for the first `late_samples`
    late_samples: int = 0
    validation: Validation | None = None


@dataclass
class Progress:
    """The part of the run's state that is not weights."""

    samples: int = 0
    steps: int = 0
    curves: list[dict[str, float]] = field(default_factory=list)
    best_loss: float | None = None  # the lowest on held-out samples
    best_samples: int = 0  # of its checkpoint
    widths: dict[float, float] = field(
        default_factory=dict
    )  # loss on held-out samples by width of the average, where one is chosen

    def add(self, line: dict[str, float]) -> None:
        """Numbers of this moment, in one line of the curves."""
        if not self.curves or self.curves[-1]["samples"] != self.samples:
            self.curves.append({"samples": self.samples})
        self.curves[-1] |= line


ALONE = Cluster()


def train(
    task: Task,
    optimisation: Optimisation,
    seed: int,
    work: Folder,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: str = "cpu",
    cluster: Cluster = ALONE,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Progress:
    """Trains `task.network` in place, from the last checkpoint in `work` if there is one; it ends as its own moving average.

    With world_size > 1, torch.distributed is already initialised and every rank calls this. Raises UserError when the checkpoint is another
    recipe's, FloatingPointError naming the samples when loss or gradient stop being finite, PreemptedError when a rank was told to end.
    """
    o = optimisation

    # ---- network, optimiser, average: fresh, or as the last checkpoint has them
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    spread_out = spread(task.network, o, world_size, device, cluster.sharding)
    network, forward = spread_out.network, spread_out.forward
    optimiser = make_optimiser(network, task, o, device)
    moving = [p for group in optimiser.param_groups for p in group["params"]]
    ema = Ema(moving, warmed_up(o.ema_decay))
    progress, log = Progress(), Log(device, world_size)
    tensors = tensors_of(network, optimiser, ema)
    checkpoints = Checkpoints(work, task.identity, rank, world_size, cluster.keep_checkpoints)
    post_hoc = None
    if o.export == "post_hoc":
        post_hoc = PostHoc(
            network, moving, o, Checkpoints(work.child("averages"), task.identity, rank, world_size, keep=None)
        )
        tensors |= post_hoc.tensors
    if facts := checkpoints.restore(tensors):
        progress = Progress(**facts["progress"])
        log.load(facts["log"])
        set_steps(optimiser, progress.steps)
        checkpoints.best = progress.best_samples
        if post_hoc:
            post_hoc.keep(progress.samples)

    # ---- steps
    micro = o.batch_size // (o.accumulation * world_size)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=o.precision == "bfloat16")
    told_to_end = Told(world_size)
    clock, started_at = Clock(), progress.samples
    batches = prefetch(task.source, progress.samples, o, rank, world_size)
    while progress.samples < o.samples:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(o, progress.samples) * (progress.samples >= group["hold"])
        for part in range(o.accumulation):
            with clock("data_wait"):
                first, batch = next(batches)
            draws = Draws((seed, task.stage, number) for number in range(first, first + micro))
            with nullcontext() if part == o.accumulation - 1 else spread_out.unsynced(), autocast:
                loss = task.loss(
                    forward, {name: value.to(device, non_blocking=True) for name, value in batch.items()}, draws
                )
                (loss / o.accumulation).backward()
            log.add_loss(loss.detach() / o.accumulation)
        norm = nn.utils.clip_grad_norm_(moving, o.gradient_clip, foreach=True)
        log.end_step(norm, progress.samples)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        progress.samples += o.batch_size
        progress.steps += 1
        ema.update(progress.steps)
        if post_hoc:
            post_hoc.update(progress.steps)
        step_made()

        # ---- now and then: the only places where the processor waits for the device
        ending, done = told_to_end(), progress.samples >= o.samples
        logs = due(progress.samples, o.log_every, o.batch_size) or done
        saves = due(progress.samples, o.checkpoint_every, o.batch_size) or done
        if logs:
            progress.add(log.read(task.stage, o.batch_size) | {"learning_rate": optimiser.param_groups[0]["lr"]})
        if saves and task.validation:
            with ema.in_place(), autocast:
                progress.add(task.validation(network, device))
            loss_now = progress.curves[-1]["validation"]
            if progress.best_loss is None or loss_now < progress.best_loss:
                progress.best_loss, progress.best_samples = loss_now, progress.samples
            checkpoints.best = progress.best_samples
        if logs or (saves and task.validation):
            pace = (progress.samples - started_at) / clock.seconds
            speed = {"samples_per_second": pace, "steps_per_second": pace / o.batch_size, "memory_gb": memory(device)}
            report({"stage": task.stage, "total": o.samples, **progress.curves[-1], **speed, **clock.shares()})
        if saves or ending:
            log.check(task.stage, o.batch_size)
            with clock("save_wait"):
                if post_hoc:
                    post_hoc.keep(progress.samples)
                checkpoints.save(progress.samples, tensors, {"progress": vars(progress), "log": log.state()})
        if ending and not done:
            checkpoints.wait()
            raise PreemptedError(
                f"{task.stage} was told to end and saved after {progress.samples} samples: it goes on from there"
            )

    # ---- the end: the network is its average, whole on every rank
    checkpoints.wait()
    if o.export == "best" and progress.best_samples:
        checkpoints.load(
            progress.best_samples, {name: value for name, value in tensors.items() if name.startswith("ema.")}
        )
    if post_hoc and (judge := task.validation):

        def judged() -> float:
            step_made()  # not one, but as long
            with ema.in_place(), autocast:
                return judge(network, device)["validation"]

        progress.widths = post_hoc.choose(ema.shadows, judged)
    ema.copy_to_parameters()
    gather(network, task.network, device)
    return progress


# ------------------------------------------------------------------------------------------------------------- the parts


def make_optimiser(network: nn.Module, task: Task, o: Optimisation, device: str) -> torch.optim.AdamW:
    """AdamW; weights decay, biases and norms do not. Each group knows the sample until which it holds still."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim >= 2, name in task.late), []).append(parameter)
    described = [
        {"params": parameters, "weight_decay": o.weight_decay * decays, "hold": task.late_samples * late}
        for (decays, late), parameters in sorted(groups.items(), reverse=True)
    ]
    fused = torch.device(device).type in ("cpu", "cuda")
    optimiser = torch.optim.AdamW(described, lr=o.learning_rate, betas=o.betas, eps=o.eps, fused=fused)
    for group in (
        optimiser.param_groups
    ):  # its state from the start, as it would make it at the first step: a checkpoint fills it in place
        for p in group["params"]:
            moments = {
                name: torch.zeros_like(p, memory_format=torch.preserve_format) for name in ("exp_avg", "exp_avg_sq")
            }
            optimiser.state[p] = {"step": torch.zeros((), dtype=torch.float32, device=p.device), **moments}
    return optimiser


def set_steps(optimiser: torch.optim.Optimizer, steps: int) -> None:
    """Every parameter takes part in every step, so one number says how many each has taken."""
    for moments in optimiser.state.values():
        moments["step"].fill_(steps)


def learning_rate(o: Optimisation, samples: int) -> float:
    """Linear warm-up, then constant, then a linear cool-down to zero over the last samples."""
    rate = o.learning_rate
    if o.warmup_samples:
        rate *= min(1.0, (samples + o.batch_size) / o.warmup_samples)
    if o.cooldown_samples:
        rate *= min(1.0, max(0, o.samples - samples) / o.cooldown_samples)
    return rate


def prefetch(
    source: BatchSource, samples: int, o: Optimisation, rank: int, world_size: int
) -> Iterator[tuple[int, Batch]]:
    """This rank's parts of each step, (first sample number, batch), one read ahead by a thread."""
    micro = o.batch_size // (o.accumulation * world_size)
    firsts = (
        step + (part * world_size + rank) * micro
        for step in range(samples, o.samples, o.batch_size)
        for part in range(o.accumulation)
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


class Clock:
    """Seconds since it was made, and the shares of them spent waiting."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.spent: dict[str, float] = {"data_wait": 0.0, "save_wait": 0.0}

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


def memory(device: str) -> float:
    """The most memory used so far, GB: the device's, or on a CPU the process's."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Log:
    """Sums since the last line, kept on the device; and the first step at which something was not finite."""

    def __init__(self, device: str, world_size: int) -> None:
        self.world_size = world_size
        self.loss, self.norm = torch.zeros((), device=device), torch.zeros((), device=device)
        self.steps = 0
        self.bad = torch.full((), -1, dtype=torch.long, device=device)

    def add_loss(self, loss: Tensor) -> None:
        self.loss += loss

    def end_step(self, norm: Tensor, samples: int) -> None:
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
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

    def read(self, stage: str, batch_size: int) -> dict[str, float]:
        """Means since the last line, over all ranks; starts the next line."""
        self.check(stage, batch_size)
        sums = self.state()
        self.load({"loss": 0.0, "norm": 0.0, "steps": 0})
        return {"loss": sums["loss"] / sums["steps"], "gradient_norm": sums["norm"] / sums["steps"]}

    def state(self) -> dict[str, Any]:
        """The open sums, the loss as the mean of all ranks'."""
        loss = self.loss.clone()
        if self.world_size > 1:
            torch.distributed.all_reduce(loss)
            loss /= self.world_size
        return {"loss": float(loss), "norm": float(self.norm), "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        self.loss.fill_(state["loss"])
        self.norm.fill_(state["norm"])
        self.steps = state["steps"]
