"""Samples, benchmarks, the human study and the report. One deployable flow a stage."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from flows.engine.remote import on_ray
from flows.engine.run import Job
from flows.engine.stage import Node, Outcome, stage
from flows.engine.store import Store

TOLD = ("cascade", "generate")  # the sections that shape every sample


@stage("generate", sections=TOLD, gpu=True)
def generate(job: Job) -> Outcome:
    """Text to video through the whole cascade: P, D^t, F^, SR_l^t, SR_h."""
    from mav.generation.write import generate_videos

    return _evaluate(job, functools.partial(generate_videos, device=job.device))


@stage("oracle", sections=(*TOLD, "evaluate"))
def oracle(job: Job) -> Outcome:
    """Reads colour, shape and motion back from the generated pixels: was the text obeyed, was motion learned?"""
    from mav.world.verdict import evaluate_oracle

    return _evaluate(job, evaluate_oracle)


@stage("evaluate-ucf101", sections=(*TOLD, "evaluate"), version=2, gpu=True)
def evaluate_ucf101(job: Job) -> Outcome:
    """UCF-101: FVD and inception score, with protocol and interval."""
    from mav.evaluation.benchmarks import evaluate_text_to_video as body

    return _evaluate(job, functools.partial(body, "ucf101", device=job.device))


@stage("evaluate-msrvtt", sections=(*TOLD, "evaluate"), version=2, gpu=True)
def evaluate_msrvtt(job: Job) -> Outcome:
    """MSR-VTT: FID over frames and CLIPSIM, with protocol and interval."""
    from mav.evaluation.benchmarks import evaluate_text_to_video as body

    return _evaluate(job, functools.partial(body, "msrvtt", device=job.device))


@stage("evaluate-interpolation", sections=(*TOLD, "evaluate"), version=2, gpu=True)
def evaluate_interpolation(job: Job) -> Outcome:
    """F^ against linear blending on held-out middle frames, and between photographs."""
    from mav.evaluation.interpolation import evaluate_interpolation as body

    return _evaluate(job, functools.partial(body, device=job.device))


@stage("human-study", sections=("evaluate",), version=2)
def human_study(job: Job) -> Outcome:
    """A frozen study: pairs in blind order, ready for raters."""
    from mav.study.study import freeze_study

    return _evaluate(job, freeze_study)


def _evaluate(job: Job, body: Callable[..., dict[str, Any]]) -> Outcome:
    cluster = job.recipe.cluster
    gpus = cluster.gpus_per_worker if job.node.stage.gpu else 0.0
    metrics = on_ray(job, body, job.recipe, job.inputs, job.out, cpus=cluster.cpus_per_worker, gpus=gpus)
    return Outcome(metrics=metrics)


@stage("report", sections=())
def report(job: Job) -> Outcome:
    """One self-contained page: the graph, the rows, pictures, curves, numbers and the verdict."""
    from mav.report.page import write_report

    write_report(job.recipe, stage_views(job.node.inputs, job.run.store, job.recipe.name), job.out)
    return Outcome()


def stage_views(nodes: Iterable[Node], store: Store, recipe: str) -> list[Any]:
    """What the report shows of each stage: its place in the graph, its state and its artifact."""
    from mav.report.page import StageView

    views = []
    for node in nodes:
        artifact = store.find(node)
        views.append(
            StageView(
                name=node.name,
                fingerprint=node.fingerprint,
                inputs=[up.name for up in node.inputs],
                artifact=artifact,
                state="done" if artifact else store.state(node, recipe),
                seconds=artifact.manifest.seconds if artifact else 0.0,
            )
        )
    return views
