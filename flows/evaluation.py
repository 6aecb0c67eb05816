"""Samples, benchmarks, the human study and the report. One deployable flow a stage."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from flows.engine.function import run_on_ray
from flows.engine.run import Job
from flows.engine.stage import Node, Outcome, stage
from flows.engine.store import Store
from mav.errors import UserError
from mav.recipes import Cluster

if TYPE_CHECKING:
    from mav.evaluation.feature_store import Chunk, FeatureWork, Runner

IN_PROCESS_CHUNKS = 4  # Ray is not started for fewer chunks of features
# What shapes the frames of F^, and every sample; prompts and further samples of them are those of `generate` alone.
FILLING = (
    "cascade.frames", "cascade.frame_skip", "cascade.base_size", "cascade.high_size", "generate.fps",
    "generate.interpolation", "generate.interpolation_start",
)  # fmt: skip
SAMPLING = (
    *FILLING, "cascade.low_size", "generate.batch_size", "generate.prior", "generate.prior_candidates",
    "generate.decoder", "generate.sr_low", "generate.sr_high", "generate.noise_augmentation",
)  # fmt: skip
INTERVALS = ("evaluate.bootstrap", "evaluate.seed")
FRAMES = ("cascade.frames", "cascade.base_size", "generate.fps")  # of the clips that are measured
SETS = ("evaluate.features", "evaluate.weights_dir", "evaluate.ucf101", "evaluate.msrvtt")
MEASURING = (*SAMPLING, "evaluate.features", "evaluate.weights_dir", *INTERVALS)


def evaluate(job: Job, function: Callable[..., dict[str, Any]], **options: Any) -> Outcome:
    """Runs `function(recipe, inputs, out, report, **options)` on Ray; what it returns are the stage's metrics."""
    cluster = job.recipe.cluster
    gpus = cluster.gpus_per_worker if job.node.stage.gpu else 0.0
    bound = functools.partial(function, **options)
    metrics = run_on_ray(job, bound, job.recipe, job.inputs, job.out, cpus=cluster.cpus_per_worker, gpus=gpus)
    return Outcome(metrics=metrics)


@stage("generate", reads=("cascade", "generate", "seed"), version=2, gpu=True)
def generate(job: Job) -> Outcome:
    """Text to video through the whole cascade: P, D^t, F^, SR_l^t, SR_h."""
    from mav.generation.write import generate_videos

    return evaluate(job, generate_videos, device=job.device)


@stage("evaluate-ucf101", reads=(*MEASURING, "evaluate.ucf101"), version=4, gpu=True)
def evaluate_ucf101(job: Job) -> Outcome:
    """UCF-101: FVD and inception score, with protocol and interval."""
    from mav.evaluation.benchmarks import evaluate_text_to_video

    return evaluate(job, functools.partial(evaluate_text_to_video, "ucf101"), device=job.device)


@stage("evaluate-msrvtt", reads=(*MEASURING, "evaluate.msrvtt"), version=4, gpu=True)
def evaluate_msrvtt(job: Job) -> Outcome:
    """MSR-VTT: FID over frames and CLIPSIM, with protocol and interval."""
    from mav.evaluation.benchmarks import evaluate_text_to_video

    return evaluate(job, functools.partial(evaluate_text_to_video, "msrvtt"), device=job.device)


@stage("evaluate-interpolation", reads=(*FILLING, "evaluate.ucf101"), version=6, gpu=True)
def evaluate_interpolation(job: Job) -> Outcome:
    """F^ against linear blending on held-out middle frames, and between photographs."""
    from mav.evaluation import interpolation

    return evaluate(job, interpolation.evaluate_interpolation, device=job.device)


@stage("evaluate-card", reads=(*FRAMES, *SETS, "evaluate.card_clips", *INTERVALS), version=3, gpu=True)
def evaluate_card(job: Job) -> Outcome:
    """Validity cards: which damage to real clips the metrics of these evaluations see, and from which strength."""
    from mav.evaluation.benchmarks import judge_metrics

    return evaluate(job, judge_metrics, device=job.device)


@stage("human-study", reads=("evaluate.study_pairs", "evaluate.seed"), version=3)
def human_study(job: Job) -> Outcome:
    """A frozen study: pairs in blind order, ready for raters."""
    from mav.study.study import freeze_study

    return evaluate(job, freeze_study)


@stage("report", reads=())
def report(job: Job) -> Outcome:
    """One self-contained page: the graph, the rows, pictures, curves, numbers and the verdict."""
    from mav.report.page import write_report

    write_report(job.recipe, stage_views(job.node.inputs, job.run.store, job.recipe.name), job.out)
    return Outcome()


def stage_views(nodes: Iterable[Node], store: Store, recipe: str, owner: str = "") -> list[Any]:
    """Returns what the report shows of each stage: its place in the graph, its state and its artifact."""
    from mav.report.page import StageView

    views = []
    for node in nodes:
        artifact = store.find(node)
        views.append(
            StageView(
                name=node.name,
                fingerprint=node.fingerprint,
                inputs=[needed.name for needed in node.inputs],
                artifact=artifact,
                state="done" if artifact else store.state(node, recipe, owner),
                seconds=artifact.manifest.seconds if artifact else 0.0,
                board=store.board(node),
            )
        )
    return views


@contextmanager
def features_on_ray(device: str) -> Iterator[Runner]:
    """Yields a function that computes chunks of features on Ray, one process for each core, or for each GPU.

    A few chunks are computed in this process. Ray starts when the first chunk needs it.
    """
    from mav.evaluation.feature_store import in_process

    with ExitStack() as services:

        def run(work: FeatureWork, chunks: Sequence[Chunk]) -> Iterator[int]:
            if len(chunks) < IN_PROCESS_CHUNKS:
                return in_process(work, chunks)
            import ray

            from flows.engine.pool import ActorPool, Pool, TaskPool, results
            from flows.services.ray_cluster import ray_cluster
            from mav.evaluation.features import let_go

            let_go()
            if not ray.is_initialized():
                services.enter_context(ray_cluster(Cluster(dashboard=False)))
            gpus = int(ray.cluster_resources().get("GPU", 0)) if device == "cuda" else 0
            name = "features"
            pool: Pool = ActorPool(work, name, 1, 1, gpus, len(chunks)) if gpus else TaskPool(work, name)
            ends = {str(number): (entries[0].index, entries[-1].index) for number, entries in chunks}

            def lost(key: str) -> UserError:
                first, last = ends[key]
                return UserError(f"Videos {first} to {last} ended two workers: look at them, or at the memory.")

            return results(pool, [(str(chunk[0]), (chunk,)) for chunk in chunks], lost)

        yield run
