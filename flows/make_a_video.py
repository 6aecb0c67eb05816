"""The whole of Make-A-Video as one graph.

`make_a_video` reads like the paper's training section and runs nothing: it says which stage needs which. `run_pipeline`
builds it within a Prefect flow run (`flows.deploy` has the flows).
"""

import operator
from collections.abc import Iterable
from contextlib import ExitStack

from flows import demo, evaluation, images, training, videos
from flows.engine.execute import execute
from flows.engine.run import Run
from flows.engine.stage import Graph, Node, Stage, require_files
from flows.engine.store import Store, record
from flows.services.terminal import Terminal
from mav.recipes import Recipe
from mav.storage import Artifact


def make_a_video(recipe: Recipe) -> Graph:
    """Returns the graph: y = SR_h . SR_l^t . F^ . D^t . P (paper, section 3), after its data, before its evaluation.

    Stages that have no source are left out, and so is all that needs them.
    """
    graph = Graph(recipe)
    world = (demo.demo_world(graph),) if recipe.world else ()

    def from_source(key: str, stage: Stage, *inputs: Node | None) -> Node | None:
        """Adds a stage that reads the demo world, or what the recipe names in `key`; without either it is left out."""
        if world or operator.attrgetter(key)(recipe):
            return stage(graph, *inputs, *world)
        graph.leave_out(stage.name, f"`{key}` is empty and there is no `world`")
        return None

    # Image-text pairs: the only place where text is.
    metadata = from_source("image_metadata.sources", images.image_metadata)
    pictures = images.image_download(graph, metadata, *world)
    clip = training.clip(graph, pictures)
    screened = images.image_screen(graph, pictures, clip)
    embedded = images.image_embed(graph, pictures, screened, clip)
    selected = images.image_select(graph, pictures, embedded, *world)

    # Unlabelled clips: the only place where motion is.
    clips = from_source("video_shards.sources", videos.video_shards)
    chosen = videos.video_select(graph, clips, *world)

    # Networks on images (3.1), then inflated and trained on clips without text (3.2, 3.3).
    prior = training.train_prior(graph, embedded, selected)
    decoder = training.train_decoder(graph, pictures, embedded, selected)
    sr_low = training.train_sr_low(graph, pictures, embedded, selected)
    sr_high = training.train_sr_high(graph, pictures, embedded, selected)
    decoder_video = training.train_decoder_video(graph, decoder, clips, chosen, clip)
    interpolation = training.train_interpolation(graph, decoder_video, clips, chosen, clip)
    sr_low_video = training.train_sr_low_video(graph, sr_low, clips, chosen)

    # Samples, numbers, people.
    networks = (clip, prior, decoder_video, interpolation, sr_low_video, sr_high)
    samples = from_source("generate.prompts", evaluation.generate, *networks)
    if world and not recipe.generate.prompts:
        demo.oracle(graph, samples, clips, chosen, *world)
    from_source("evaluate.ucf101", evaluation.evaluate_ucf101, *networks)
    from_source("evaluate.msrvtt", evaluation.evaluate_msrvtt, *networks)
    from_source("evaluate.ucf101", evaluation.evaluate_interpolation, *networks)
    if recipe.evaluate.card_clips:
        from_source("evaluate.msrvtt", evaluation.evaluate_card, clip)
    else:
        graph.leave_out(evaluation.evaluate_card.name, "`evaluate.card_clips` is 0")
    evaluation.human_study(graph, samples)
    evaluation.report(graph, *graph.nodes.values())
    return graph


def run_pipeline(
    recipe: Recipe, runs: str, *, owner: str = "", until: str = "", only: Iterable[str] = (), fresh: Iterable[str] = ()
) -> dict[str, Artifact]:
    """Builds a recipe within the present flow run: all of it, the part up to `until`, or just the stages in `only`.

    `fresh` stages are built again. What the graph is made of is recorded as needed by `owner`, by default the recipe's
    name. Raises UserError for a stage that does not exist.
    """
    from flows.services.prefect_artifacts import stage_artifacts

    graph, again = make_a_video(recipe), list(fresh)
    for name in again:
        graph.node(name)
    if only:
        chosen = {graph.node(name).name for name in only}
        wanted = [node for node in graph.nodes.values() if node.name in chosen]
    else:
        wanted = graph.until(until) if until else list(graph.nodes.values())
    require_files(wanted)
    with ExitStack() as services, Terminal() as terminal:
        run = Run(recipe, Store(runs), terminal, services, make_a_video)
        record(owner or recipe.name, run.store, graph.nodes.values(), recipe)
        return execute(graph, run, wanted, again, stage_artifacts)
