"""The whole of Make-A-Video as one graph, and how a Prefect flow builds it.

`make_a_video` below reads like the paper's training section and runs nothing: it says which stage needs which. `execute` runs it within
a Prefect flow (`flows.deploy` has them): one task a stage, never one a shard; the shards are Ray's.
"""

from collections.abc import Iterable
from contextlib import ExitStack

from flows import evaluation, images, training, videos
from flows.engine.execute import execute
from flows.engine.run import Run
from flows.engine.stage import Graph
from flows.engine.store import Store
from flows.services.terminal import Terminal
from mav.recipes import Recipe
from mav.storage import Artifact


def make_a_video(recipe: Recipe) -> Graph:
    """The graph: y = SR_h . SR_l^t . F^ . D^t . P (paper, section 3), its data before it and its evaluation after."""
    plan = Graph(recipe)
    world = images.demo_world(plan) if recipe.world else None

    # Image-text pairs: the only place where text is.
    metadata = images.image_metadata(plan, world)
    pictures = images.image_download(plan, metadata, world)
    clip = training.clip(plan, pictures)
    screened = images.image_screen(plan, pictures, clip)
    embedded = images.image_embed(plan, pictures, screened, clip)

    # Unlabelled clips: the only place where motion is.
    clips = videos.video_shards(plan, world)

    # Networks on images (3.1), then inflated and trained on clips without text (3.2, 3.3). Independent ones run side by side.
    prior = training.train_prior(plan, embedded)
    decoder = training.train_decoder(plan, pictures, embedded)
    sr_low = training.train_sr_low(plan, pictures, embedded)
    sr_high = training.train_sr_high(plan, pictures, embedded)
    decoder_video = training.train_decoder_video(plan, decoder, clips, clip)
    interpolation = training.train_interpolation(plan, decoder_video, clips, clip)
    sr_low_video = training.train_sr_low_video(plan, sr_low, clips)

    # Samples, numbers, people.
    networks = (clip, prior, decoder_video, interpolation, sr_low_video, sr_high)
    samples = evaluation.generate(plan, *networks, world)
    if world:
        evaluation.oracle(plan, samples, clips, world)
    evaluation.evaluate_ucf101(plan, *networks, world)
    evaluation.evaluate_msrvtt(plan, *networks, world)
    evaluation.evaluate_interpolation(plan, *networks, world)
    evaluation.human_study(plan, samples)
    evaluation.report(plan, *plan.nodes.values())
    return plan


def run_pipeline(
    recipe: Recipe, runs: str, *, until: str = "", only: Iterable[str] = (), fresh: Iterable[str] = ()
) -> dict[str, Artifact]:
    """Builds a recipe (or its part up to `until`, or just `only`) within the present flow run. `fresh` stages are built anew."""
    plan = make_a_video(recipe)
    again = list(fresh)
    for name in again:
        plan.node(name)
    if only:
        chosen = {plan.node(name).name for name in only}
        wanted = [node for node in plan.nodes.values() if node.name in chosen]
    else:
        wanted = plan.until(until) if until else list(plan.nodes.values())
    with ExitStack() as services, Terminal() as screen:
        return execute(plan, Run(recipe, Store(runs), screen, services), wanted, again)
