"""Every value of the recipe is changed once: a stage's bytes move exactly where the recipe's marks say that they do."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from recorded import other_tree, reads_of_bodies, replaced, run_here

from flows.engine.run import Job, Run
from flows.engine.stage import Graph, Node
from flows.engine.store import Store
from flows.make_a_video import make_a_video
from flows.services.ports import reserve_port
from flows.services.terminal import Terminal
from mav.recipes import Recipe
from mav.recipes.identity import covers, values
from mav.recipes.reader import load_recipe
from mav.storage import MANIFEST, Folder

pytestmark = pytest.mark.slow

SMALL = (
    "world.images=60", "world.clips=8", "world.evaluation_clips=8", "evaluate.bootstrap=2", "generate.count=2",
    "generate.frame_rates=[4.0]",
)  # fmt: skip
# Records of the making, not what is made: their lines follow the intervals.
RECORDS = ("curves.jsonl",)
# Values that bite on so small a world; the ends of keys. All others are changed by a little.
BITES: dict[str, Any] = {
    "max_bytes": 2000, "max_pixels": 100, "max_seconds": 0.1, "min_caption": 30, "max_caption": 20, "min_side": 60_000,
    "punsafe_threshold": 0.1, "pwatermark_threshold": 0.1, "rows_per_shard": 20, "word_lists": [],
    "refuse_directives": [], "image_embed.batch_size": 3, "generate.batch_size": 1, "generate.frame_rates": [8.0],
    "betas": [0.5, 0.6], "warmup_samples": 16, "cooldown_samples": 16, "start": [2.0, 3.0], "end": [2.0, 3.0],
    "video.frames": 3, "interpolation.frames": 3, "contact": "someone@example.com", "success_floor": 0.1,
    "timeout_seconds": 8.0, "deadline_seconds": 12.0, "ema_decay": 0.1, "gradient_clip": 1.0e-6, "blur_sigma": 2.0,
    "train_sr_high.crop": 1.0, "train_interpolation.optimisation.checkpoint_every": 2, "video_shards.short_side": 24,
    "unknown_scores": "drop",
}  # fmt: skip
# What counts and has nothing to bite on in so small a world.
UNMOVED = {
    ("demo-world", "world.planted_clips"),  # one clip of each kind is planted anyway
    ("image-metadata", "screening.duplicates"),  # one table
    ("image-metadata", "screening.obfuscations"),  # no caption hides a word
    ("image-metadata", "screening.word_exceptions"),  # of a word that no caption has
    ("image-download", "image_download.allow_addresses"),  # of a host that no row names
    ("video-shards", "video_shards.allow_addresses"),  # the same
    ("video-shards", "video_shards.shot_weights"),  # a file that is not there ends the stage
    ("image-embed", "image_embed.batch_size"),  # it moves the last bits of `image-screen` alone
    ("train-decoder-video", "train_decoder_video.optimisation.export"),  # its best average is the last
    ("train-sr-low-video", "train_sr_low_video.optimisation.export"),  # the same
    ("train-sr-low", "train_sr_low.enlarged"),  # no picture of the world is smaller than the shards'
    ("train-sr-high", "train_sr_high.enlarged"),  # the same
    ("generate", "generate.prior_candidates"),  # the third is no closer
    ("generate", "generate.batch_size"),  # the last bits that it moves are gone in 8-bit frames
    ("evaluate-msrvtt", "generate.batch_size"),  # the same
    ("evaluate-msrvtt", "generate.prior.guidance_rescale"),  # two steps of so small a prior move no picture
    ("evaluate-ucf101", "evaluate.weights_dir"),  # the demo's networks are no files
    ("evaluate-msrvtt", "evaluate.weights_dir"),  # the same
    ("evaluate-msrvtt", "generate.decoder.sampler"),  # two steps of either are one
    ("evaluate-interpolation", "evaluate.seed"),  # there is one clip to draw from
    ("evaluate-interpolation", "cascade.frames"),  # which makes no pair of pictures
    ("evaluate-interpolation", "generate.fps"),  # the same
    ("human-study", "evaluate.study_pairs"),  # there are two prompts
    ("train-decoder-video", "train_decoder_video.fps.short_clips"),  # none of its few clips is too short
}


# The demo's addresses have the port in them, which only the whole graph can change.
MOVED_WITHOUT = {("image-download", "world.port"), ("video-shards", "world.port")}

# The quickest; MAV_PERTURBED=all takes every stage, for a quarter of an hour on a quiet core.
QUICK = ("demo-world", "image-metadata", "video-shards", "image-screen", "image-embed", "human-study")
STAGES = [name for name in make_a_video(load_recipe("tiny")).nodes if name != "report"]


def other_value(key: str, value: Any) -> Any:
    bite = next((found for end, found in BITES.items() if f".{key}".endswith(f".{end}")), None)
    return bite if bite is not None and type(bite) is type(value) else other_tree(key, value)


def made(node: Node, recipe: Recipe, store: Store, place: str) -> dict[str, str]:
    """Runs a stage's body over the first run's artifacts, and returns the digest of each file that it makes."""
    out, work = Folder(f"{place}/out"), Folder(f"{place}/work")
    for folder in (out, work):
        folder.remove()
    with ExitStack() as services:
        job = Job(node, Run(recipe, store, Terminal(), services), out, work)
        try:
            node.stage.body(job)
        except Exception as error:  # a value that the stage refuses is no value without effect
            return {"error": type(error).__name__}
    return {name: out.sha256(name) for name in out.names() if name not in (MANIFEST, *RECORDS)}


def cases(node: Node, recipe: Recipe, read: set[str]) -> Iterator[tuple[str, Any, bool]]:
    """Yields (key, another value, whether it counts) of what a stage reads."""
    for value in values(recipe):
        # A proxy that is not there ends the stage.
        apart = value.key.startswith(("cluster.", "expect.", "name", "about")) or value.key.endswith(".proxy")
        if value.key in read and not apart:
            counts = value.counts and covers(node.stage.reads_of(recipe), value.key)
            yield value.key, other_value(value.key, value.value), counts


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recipe, Graph, Store, dict[str, set[str]]]]:
    """The recipe, its graph, built in this process, and what each stage read."""
    recipe = load_recipe("tiny", [*SMALL, f"world.port={reserve_port()}"])
    graph, runs = make_a_video(recipe), str(tmp_path_factory.mktemp("runs"))
    with pytest.MonkeyPatch.context() as patch:
        run_here(patch)
        patch.setattr("torch.set_num_threads", lambda number: None)
        nodes = [node for node in graph.nodes.values() if node.name != "report"]
        yield recipe, graph, Store(runs), reads_of_bodies(recipe, nodes, runs)


@pytest.mark.parametrize("stage", STAGES if os.environ.get("MAV_PERTURBED") == "all" else QUICK)
def test_bytes_move_exactly_where_the_marks_say(
    stage: str, first_run: tuple[Recipe, Graph, Store, dict[str, set[str]]], tmp_path: Path
) -> None:
    recipe, graph, store, read = first_run
    node = graph.node(stage)
    base, wrong = made(node, recipe, store, str(tmp_path / "base")), []
    assert "error" not in base
    for key, value, counts in cases(node, recipe, read[stage]):
        changed = made(node, replaced(recipe, key, value), store, str(tmp_path / "other"))
        if (changed != base) != counts and (stage, key) not in UNMOVED | MOVED_WITHOUT:
            wrong.append((key, value, counts, changed.get("error")))
    assert wrong == []
