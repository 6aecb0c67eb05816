"""The training loop for every network of the system. It uses torch only, and reads from top to bottom.

Samples seen is the one counter. The data of a step, its noise, its noise steps and its dropped conditions are pure
functions of (seed, stage, sample number), and a checkpoint holds everything else (weights, average, optimiser, counter,
the log's open sums). So a run that was killed and resumed gives on a CPU the same bits as one that was not, and the
samples of a step do not depend on the number of workers. Replicas and shards (`mav.training.sharding`) take the same
path, and so do their checkpoints.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from mav.diffusion.noise import Draws
from mav.recipes import Cluster, Optimisation
from mav.storage import Folder
from mav.training.checkpoint import Checkpoints, tensors_of
from mav.training.ema import Ema, warmed_up
from mav.training.monitoring.log import Clock, Log, peak_memory
from mav.training.monitoring.sheet import Sheet
from mav.training.monitoring.utilisation import matrix_rate
from mav.training.optimiser import make_optimiser, set_learning_rate, set_steps
from mav.training.post_hoc import PostHoc, due
from mav.training.process.preemption import PreemptedError, TerminationRequest
from mav.training.process.stall import step_made
from mav.training.sharding import evaluated, gather, spread
from mav.training.step import MicroStep
from mav.training.validation import Batch, Draw, Loss, Validation


class BatchSource(Protocol):
    """Where samples come from. A sample is a pure function of its number."""

    def batch(self, first: int, count: int) -> Batch:
        """Returns the samples number first .. first + count - 1 of the training."""

    def __len__(self) -> int:
        """The number of distinct samples."""

    def peek(self, count: int) -> Batch:
        """Returns the first samples without counting them as read. Call it when nothing else reads."""

    def hold_out(self, count: int, total: int) -> Batch:
        """Takes `count` samples out of a training of `total` for good, and returns them."""


@dataclass(frozen=True)
class TrainingTask:
    """What a stage trains; made by `mav.training.stages`."""

    stage: str
    network: nn.Module
    source: BatchSource
    loss: Loss  # on the device; it reads no values on the processor, so that a GPU is never waited for
    draw: Draw = lambda batch, draws, level: batch  # on the processor, ahead of the loss
    finish: Callable[[Folder], dict[str, Any]] = lambda out: {}  # writes the artifact's network; returns metrics
    frozen: frozenset[str] = frozenset()  # parameters that are not trained for the first `frozen_samples`
    frozen_samples: int = 0
    identity: str = ""  # digest of all that must be equal to continue a checkpoint
    validation: Validation | None = None
    sheet: Callable[[], Sheet] | None = None  # of a few training samples, if the network makes pictures


@dataclass
class RunState:
    """The part of a run's state that is not weights."""

    samples: int = 0
    steps: int = 0
    curves: list[dict[str, float]] = field(default_factory=list)
    best_loss: float | None = None  # the lowest on held-out samples
    best_samples: int = 0  # of its checkpoint
    widths: dict[float, float] = field(default_factory=dict)  # held-out loss by width of the average, if chosen

    def add(self, line: dict[str, float]) -> None:
        """Adds numbers of this moment to its line of the curves."""
        if not self.curves or self.curves[-1]["samples"] != self.samples:
            self.curves.append({"samples": self.samples})
        self.curves[-1] |= line


ALONE = Cluster()
SHOWN_STEPS = 8  # of the samples that are shown while training
Show = Callable[[int, bytes], None]  # is given the samples seen and a PNG


def train(
    task: TrainingTask, optimisation: Optimisation, seed: int, work: Folder, *, rank: int = 0, world_size: int = 1,
    device: str = "cpu", cluster: Cluster = ALONE, report: Callable[[dict[str, Any]], None] = lambda _: None,
    show: Show = lambda samples, picture: None,
) -> RunState:  # fmt: skip
    """Trains `task.network` in place, from the last checkpoint in `work` if there is one. It ends as its own average;
    a sharded one does so on rank 0 alone.

    With world_size > 1, torch.distributed is initialised before and every rank calls this. Raises UserError when the
    checkpoint is another recipe's, DivergedError naming the samples when loss or gradient are not finite,
    PreemptedError when a rank was asked to end.
    """
    o, validation = optimisation, task.validation

    # ---- network, optimiser and average, new
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    spread_out = spread(task.network, o, world_size, device, cluster.sharding)
    network = spread_out.network
    optimiser = make_optimiser(network, o, device, task.frozen, task.frozen_samples)
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    ema = Ema(trained, warmed_up(o.ema_decay))
    state, log = RunState(), Log(device, world_size)

    # ---- all of them as the last checkpoint has them
    tensors = tensors_of(network, optimiser, ema)

    def tell(sentence: str) -> None:
        report(
            {"stage": task.stage, "total": o.samples, "samples": state.samples, "message": f"{task.stage}: {sentence}"}
        )

    place = (rank, world_size, spread_out.sharded)
    checkpoints = Checkpoints(work, task.identity, *place, keep=cluster.keep_checkpoints, tell=tell)
    post_hoc = None
    if o.export == "post_hoc":
        averages = Checkpoints(work.child("averages"), task.identity, *place, tell=tell)
        post_hoc = PostHoc(network, trained, o, averages)
        tensors |= post_hoc.tensors
    if metadata := checkpoints.restore(tensors):
        state = RunState(**metadata["progress"])
        log.load(metadata["log"])
        set_steps(optimiser, state.steps)
        if post_hoc:
            post_hoc.keep(state.samples)

    micro, parts, rounds = division(o, cluster.workers, world_size)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=o.precision == "bfloat16")
    micro_step = MicroStep(task.loss, spread_out, autocast, parts / world_size, device, world_size)
    rate = matrix_rate(micro_step.device, o.precision)
    termination_requested = TerminationRequest(world_size)
    sheet = task.sheet() if o.sample_every and task.sheet else None
    clock, started_at = Clock(), state.samples

    def draw(first: int, batch: Batch) -> Batch:
        draws = Draws((seed, task.stage, number) for number in range(first, first + micro))
        return micro_step.staged(task.draw(batch, draws, None))

    batches = prefetch(task.source, state.samples, o, rank, world_size, cluster.workers, draw)
    while state.samples < o.samples:
        # ---- gradients, in parts; only the last part's backward pass exchanges them between workers
        set_learning_rate(optimiser, o, state.samples)
        for turn in range(rounds):
            with clock("data_wait"):
                first, counts, batch = next(batches)
            log.loss += micro_step(batch, (seed, task.stage, first), exchange=turn == rounds - 1, counts=counts)

        # ---- the step, and the averages
        norm = nn.utils.clip_grad_norm_(trained, o.gradient_clip, foreach=True)
        log.end_step(norm, state.samples)
        optimiser.step()
        optimiser.zero_grad(set_to_none=not micro_step.replays)
        state.samples += o.batch_size
        state.steps += 1
        ema.update(state.steps)
        if post_hoc:
            post_hoc.update(state.steps)
        step_made()

        # ---- what is due after this step; only there the processor waits for the device
        ending, done = termination_requested(), state.samples >= o.samples
        logs = due(state.samples, o.log_every, o.batch_size) or done
        saves = due(state.samples, o.checkpoint_every, o.batch_size) or done

        # ---- a line of the curves, with the held-out loss of the average
        if logs:
            state.add(log.read(task.stage, o.batch_size) | {"learning_rate": optimiser.param_groups[0]["lr"]})
        if saves and validation:
            with clock("validation_wait"), ema.in_place(), autocast:
                state.add(validation(network, device))
            loss_now = state.curves[-1]["validation"]
            if state.best_loss is None or loss_now < state.best_loss:
                state.best_loss, state.best_samples = loss_now, state.samples
        # ---- samples of the average and its held-out loss, for the eye alone: nothing of the training depends on them
        beside: dict[str, float] = {}  # not in the curves, whose bytes are those of a training that shows nothing
        if sheet and (due(state.samples, o.sample_every, o.batch_size) or done):
            with clock("sample_wait"), ema.in_place(), evaluated(network), autocast:
                picture = sheet(network, SHOWN_STEPS)
            if validation and not saves:
                with clock("validation_wait"), ema.in_place(), autocast:
                    beside = validation(network, device)
            if rank == 0:
                show(state.samples, picture)
            step_made()
        if logs or beside or (saves and validation):
            pace = (state.samples - started_at) / clock.seconds
            speed = {"samples_per_second": pace, "steps_per_second": pace / o.batch_size}
            speed |= {"memory_gb": peak_memory(device), **clock.shares()}
            if rate:
                speed["utilisation"] = micro_step.flops / micro * pace / world_size / rate
            line = state.curves[-1] if logs or saves else {"samples": state.samples}
            report({"stage": task.stage, "total": o.samples, **line, **beside, **speed})

        # ---- a checkpoint, unless a step since the last was not finite
        if saves or ending:
            log.check(task.stage, o.batch_size)
            with clock("save_wait"):
                if post_hoc:
                    post_hoc.keep(state.samples)
                facts = {"progress": vars(state), "log": log.state()}
                checkpoints.save(state.samples, tensors, facts, best=state.best_samples)
        if ending and not done:
            checkpoints.wait()
            raise PreemptedError(
                f"{task.stage} was asked to end and saved after {state.samples} samples: it continues from there"
            )

    # ---- the end: choose the average, make the network its average, and gather it whole on every rank
    checkpoints.wait()
    if o.export == "best" and state.best_samples:
        best = {name: value for name, value in tensors.items() if name.startswith("ema.")}
        if not checkpoints.try_load(state.best_samples, best):
            tell("the average of the lowest loss is lost with its checkpoint: the last average is exported instead.")
            checkpoints.load(state.samples, best)
    if post_hoc and validation:

        def held_out_loss() -> float:
            step_made()  # it takes as long as one, so the stall timer starts again
            with ema.in_place(), autocast:
                return validation(network, device)["validation"]

        state.widths = post_hoc.choose(ema.shadows, held_out_loss)
    ema.copy_to_parameters()
    gather(spread_out, task.network, device)
    return state


def division(o: Optimisation, workers: int, world_size: int) -> tuple[int, int, int]:
    """Returns the samples of a micro-batch, how many of these a step has, and in how many turns the ranks make them.

    A step has the micro-batches that all `workers` of the recipe make of it, also when fewer are there: they make more
    of them in turn, in the memory they have.
    """
    parts = o.accumulation * max(workers, world_size)
    return o.batch_size // parts, parts, -(-parts // world_size)


def prefetch(
    source: BatchSource, samples: int, o: Optimisation, rank: int, world_size: int, workers: int,
    draw: Callable[[int, Batch], Batch] = lambda first, batch: batch,
) -> Iterator[tuple[int, bool, Batch]]:  # fmt: skip
    """Yields this rank's parts of each step as (first sample number, whether it counts, batch).

    A thread makes one part ahead. Where the parts of a step cannot be shared evenly, ranks without a last one repeat a
    part that does not count, since sharded networks compute together.
    """
    micro, parts, rounds = division(o, workers, world_size)

    def places() -> Iterator[tuple[int, bool]]:
        for step in range(samples, o.samples, o.batch_size):
            for turn in range(rounds):
                part = turn * world_size + rank
                counts = part < parts
                yield step + (part if counts else 0) * micro, counts

    def made(first: int) -> Batch:
        return draw(first, source.batch(first, micro))

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        pending = None
        for first, counts in places():
            upcoming = (first, counts, pool.submit(made, first))
            if pending:
                yield *pending[:2], pending[2].result()
            pending = upcoming
        if pending:
            yield *pending[:2], pending[2].result()
