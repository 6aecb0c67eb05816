"""Samples, benchmarks, the human study and the report. One deployable flow a stage."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from flows.engine.function import run_on_ray
from flows.engine.run import Job
from flows.engine.stage import Node, Outcome, stage
from flows.engine.store import Store

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


@stage("evaluate-ucf101", reads=(*MEASURING, "evaluate.ucf101"), version=3, gpu=True)
def evaluate_ucf101(job: Job) -> Outcome:
    """UCF-101: FVD and inception score, with protocol and interval."""
    from mav.evaluation.benchmarks import evaluate_text_to_video

    return evaluate(job, functools.partial(evaluate_text_to_video, "ucf101"), device=job.device)


@stage("evaluate-msrvtt", reads=(*MEASURING, "evaluate.msrvtt"), version=3, gpu=True)
def evaluate_msrvtt(job: Job) -> Outcome:
    """MSR-VTT: FID over frames and CLIPSIM, with protocol and interval."""
    from mav.evaluation.benchmarks import evaluate_text_to_video

    return evaluate(job, functools.partial(evaluate_text_to_video, "msrvtt"), device=job.device)


@stage("evaluate-interpolation", reads=(*FILLING, "evaluate.ucf101", *INTERVALS), version=4, gpu=True)
def evaluate_interpolation(job: Job) -> Outcome:
    """F^ against linear blending on held-out middle frames, and between photographs."""
    from mav.evaluation import interpolation

    return evaluate(job, interpolation.evaluate_interpolation, device=job.device)


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
            )
        )
    return views
