"""The ordered training stages. One deployable flow a stage.

The loop itself is `mav.training.loop`; what each network trains on is `mav.training.stages`. Here a stage becomes Ray
workers: their number, processors and failures. Several workers are a Ray Train run. One worker is a plain Ray task of
the same function: there is nobody to coordinate, and a pooled process has imported torch already (a Ray Train run of
one worker takes 30 s to start on two cores). The loop keeps exact checkpoints in the stage's work folder, so a worker,
a driver or a machine that dies costs only the samples since the last one.
"""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from flows.engine.capacity import Capacity
from flows.engine.function import CHECKPOINTS, ProgressFile, following, keep_kernels, run_on_ray, save_seconds
from flows.engine.run import Job, every
from flows.engine.stage import Outcome, Stage, stage
from flows.worker_group import torch_config
from mav.errors import DivergedError, TakenOverError, UserError, full_disk_told
from mav.recipes import TRAINING_READS, Recipe
from mav.storage import Folder

T = TypeVar("T")
RESULT, STOP = "result.json", "stop.json"
NEVER_STALLED_SECONDS = 86_400.0  # that workers wait for each other where no stall is recognised
MAX_FAILURES = 3  # of the workers, without a checkpoint in between and no preemptions, before the stage fails
DRAIN_SECONDS = 5.0  # between two looks at whether this node is drained: a cloud gives 30 s or more
TERMINATED = 143  # the shell's exit code of a process that SIGTERM ended


@dataclass(frozen=True)
class Orders:
    """What each worker of a training stage is given."""

    stage: str
    recipe: Recipe
    inputs: dict[str, Folder]
    checkpoints: Folder
    work: Folder  # for the progress and the result
    out: Folder
    board: Folder  # for TensorBoard's files
    kernels: Folder  # for what Triton compiles
    wandb: str  # a Weights & Biases project; '' = none


PACE = ("samples_per_second", "utilisation", "data_wait")  # of a training's last report, kept with its metrics


def train(job: Job) -> Outcome:
    """Runs the stage's training loop until its samples are seen and its network is exported."""
    store = job.run.store
    orders = Orders(
        stage=job.name, recipe=job.recipe, inputs=job.inputs, checkpoints=job.work.child(CHECKPOINTS), work=job.work,
        out=job.out, board=store.board(job.node), kernels=store.kernels(),
        wandb=os.environ.get("WANDB_PROJECT", ""),  # is read here, since workers have another environment
    )  # fmt: skip
    metrics = _ray_train(job, orders) if job.recipe.cluster.workers > 1 else _one_worker(job, orders)
    return Outcome(metrics=metrics | {name: round(job.progress[name], 4) for name in PACE if name in job.progress})


def _one_worker(job: Job, orders: Orders) -> dict[str, Any]:
    """Trains in one Ray task; starts another when its process dies."""
    from ray.exceptions import RayError

    cluster = job.recipe.cluster

    def once() -> dict[str, Any]:
        return run_on_ray(job, _run_alone, orders, cpus=cluster.cpus_per_worker, gpus=cluster.gpus_per_worker)

    with _drained_nodes(job) as drained:
        return restarted(once, orders.checkpoints, drained, RayError)


@contextmanager
def _drained_nodes(job: Job) -> Iterator[set[str]]:
    """Yields the nodes that were about to be taken away while the block runs, as they become known."""
    from ray._private.state import state

    found = set[str]()
    with every(DRAIN_SECONDS, lambda: found.update(state.get_draining_nodes()), job.say):
        yield found


def restarted(once: Callable[[], T], checkpoints: Folder, drained: set[str], *lost: type[Exception]) -> T:
    """Returns what `once` does, which is begun again when it loses its workers (`lost`), since the checkpoints remain.

    A training whose machines are taken away again and again comes to its end, as long as it gets from one checkpoint
    to the next. Raises the last error when it did not for MAX_FAILURES times, without those in which another node was
    `drained`.
    """
    failures, before = 0, checkpoints.names()
    while True:
        known = len(drained)
        try:
            return once()
        except lost:
            before, earlier = checkpoints.names(), before
            failures = (failures if before == earlier else 0) + (len(drained) == known)
            if failures > MAX_FAILURES:
                raise


def _ray_train(job: Job, orders: Orders) -> dict[str, Any]:
    """Trains in several workers, coordinated by Ray Train; starts all of them again when one dies or is preempted."""
    from ray.exceptions import RayError
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    cluster = job.recipe.cluster
    least, gpu = cluster.least_workers[0], cluster.gpus_per_worker > 0
    capacity = Capacity(job, cluster.cpus_per_worker, cluster.gpus_per_worker, least)
    workers: Any = (least, cluster.workers) if least < cluster.workers else cluster.workers
    resources = {"CPU": float(cluster.cpus_per_worker)} | ({"GPU": cluster.gpus_per_worker} if gpu else {})
    seconds = cluster.stall_seconds or NEVER_STALLED_SECONDS
    for name in (RESULT, STOP):
        job.work.remove(name)

    def once() -> None:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"orders": orders},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=resources),
            torch_config=torch_config("nccl" if gpu else "gloo", seconds, job.work),
            run_config=RunConfig(name=f"{job.name}-{job.node.fingerprint[:8]}", storage_path=job.work.child("ray").url),
        )
        with following(job, capacity) as require_running:
            _fit(job, trainer, require_running)

    with _drained_nodes(job) as drained:
        restarted(once, orders.checkpoints, drained, TrainingFailedError, RayError)
    result = job.work.read_json_or_none(RESULT)
    if result is None:
        job.require_held()
        logs = "see the Ray dashboard's Train page for its workers' logs"
        raise RuntimeError(f"{job.name} ended without a result: {logs}")
    if "user_error" in result:
        raise (DivergedError if result["diverged"] else UserError)(result["user_error"])
    metrics: dict[str, Any] = result["metrics"]
    return metrics


def _fit(job: Job, trainer: Any, require_running: Callable[[], None]) -> None:
    """Waits until the workers have ended, or, when `require_running` raises, until they have saved."""
    pool = ThreadPoolExecutor(1)
    fitted = pool.submit(trainer.fit)
    pool.shutdown(wait=False)
    try:
        while not wait([fitted], timeout=1.0).done:
            require_running()
    except BaseException:
        with suppress(OSError, TakenOverError):  # who was taken over stops by the fence of its folders
            job.work.write_json(STOP, {})
        wait([fitted], timeout=save_seconds(job.work))
        raise
    fitted.result()


def _worker(config: dict[str, Orders]) -> None:
    """Runs in each Ray Train worker."""
    import ray.train
    import ray.train.torch

    from mav.training.process.preemption import PreemptedError, request_termination, told_when_ended

    orders = config["orders"]
    keep_kernels(orders.kernels)
    context = ray.train.get_context()
    rank = context.get_world_rank()
    progress = ProgressFile(orders.work)
    report = progress if rank == 0 else lambda values: None
    place = {"rank": rank, "world_size": context.get_world_size(), "device": str(ray.train.torch.get_device())}
    result: dict[str, Any]

    def look() -> None:
        if orders.work.exists(STOP):
            request_termination()

    try:
        progress.begin()
        with told_when_ended(), every(1.0, look, _tell), _ended_when_drained():
            result = {"metrics": _run(orders, report, **place)}
    except PreemptedError:
        if orders.work.exists(STOP):
            return
        raise  # only this worker's machine goes away: the driver starts the workers again
    except TakenOverError:
        return  # the driver knows, and no result of this run is wanted any more
    except UserError as error:
        # Returned, since Ray Train would repeat what is raised.
        result = {"user_error": str(error), "diverged": isinstance(error, DivergedError)}
    if rank == 0:
        orders.work.write_json(RESULT, result)


def _run_alone(orders: Orders, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Runs in a Ray task whose process may receive SIGTERM."""
    from mav.training.process.preemption import PreemptedError, catch_termination_signals

    try:
        with catch_termination_signals(), _ended_when_drained():
            return _run(orders, report)
    except PreemptedError:
        sys.exit(TERMINATED)  # unless it is being stopped itself, the driver starts another task, which goes on


@contextmanager
def _ended_when_drained() -> Iterator[None]:
    """Lets the training save and end when Ray is about to take this worker's node away, while the block runs.

    What Ray Train tells of a preemption comes from the same list of nodes; asked here, it is there for a worker without
    Ray Train too, and the workers need not meet to ask it.
    """
    import ray
    from ray._private.state import state

    from mav.training.process.preemption import request_termination

    node = ray.get_runtime_context().get_node_id()

    def look() -> None:
        if node in state.get_draining_nodes():
            request_termination()

    with every(DRAIN_SECONDS, look, _tell):
        yield


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)  # Ray shows it in the driver's terminal


def _run(
    orders: Orders, report: Callable[[dict[str, Any]], None], rank: int = 0, world_size: int = 1, device: str = ""
) -> dict[str, Any]:
    """Runs the stage's loop in the present process and returns the stage's metrics."""
    import torch

    from mav.training.monitoring.board import Board, WandbBoard
    from mav.training.process.memory import keep_freed_memory
    from mav.training.process.stall import ended_when_stalled
    from mav.training.stages import run_stage

    o = orders.recipe.section_of(orders.stage).optimisation
    torch.set_num_threads(o.threads or orders.recipe.cluster.cpus_per_worker)  # their number may change last bits
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        keep_freed_memory()
    local = Board(orders.board, report)
    wandb = bool(orders.wandb) and rank == 0
    board = WandbBoard(orders.wandb, orders.stage, orders.recipe, local) if wandb else local
    report = board if rank == 0 else report
    given = (orders.stage, orders.recipe, orders.inputs, orders.checkpoints, orders.out)
    sent = board if isinstance(board, WandbBoard) else nullcontext()
    with sent, full_disk_told(orders.stage, orders.work.url), ended_when_stalled(orders.recipe.cluster.stall_seconds):
        return run_stage(*given, rank=rank, world_size=world_size, device=device, report=report, show=board.show)


def _training_stage(name: str, about: str, version: int = 1) -> Stage:
    def body(job: Job) -> Outcome:
        return train(job)

    body.__doc__, body.__qualname__ = about, f"train:{name}"
    return stage(name, reads=clip_reads if name == "clip" else TRAINING_READS[name], version=version, gpu=True)(body)


def clip_reads(recipe: Recipe) -> tuple[str, ...]:
    """Returns what `clip` reads: no seed where weights and heads are given, so that no second seed embeds again."""
    section = recipe.clip
    given = section.pretrained and section.nsfw_head and section.watermark_head and not section.optimisation.samples
    return ("clip",) if given else TRAINING_READS["clip"]


clip = _training_stage(
    "clip", "The CLIP in use and its NSFW and watermark scorers: pretrained, or trained here (demo)."
)
train_prior = _training_stage("train-prior", "P: text to CLIP image embedding.", version=2)
train_decoder = _training_stage("train-decoder", "D: CLIP image embedding to pixels.", version=3)
train_sr_low = _training_stage("train-sr-low", "SR_l on images.", version=3)
train_sr_high = _training_stage("train-sr-high", "SR_h, spatial only.", version=3)
train_decoder_video = _training_stage(
    "train-decoder-video", "D^t: D inflated, learning motion from clips without text.", version=2
)
train_interpolation = _training_stage("train-interpolation", "F^: D^t fine-tuned to fill in masked frames.", version=3)
train_sr_low_video = _training_stage("train-sr-low-video", "SR_l^t: SR_l inflated.", version=2)
