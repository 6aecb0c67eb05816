"""Each stage declares what it reads of the recipe and decides its bytes: no value less, none without effect."""

from pathlib import Path

import pytest
from recorded import reads_of_bodies, run_here, with_other

from flows.make_a_video import make_a_video
from flows.services.ports import reserve_port
from mav.recipes import Recipe
from mav.recipes.identity import covers, values
from mav.recipes.reader import load_recipe

SMALL = (
    "world.images=40", "world.clips=8", "world.evaluation_clips=8", "evaluate.bootstrap=2", "generate.count=2",
    "image_download.timeout_seconds=1", "image_download.deadline_seconds=1", "video_shards.timeout_seconds=1",
)  # fmt: skip
# What belongs to the section of a stage and has no effect on it. `mav.recipes.rules` refuses any other value than the
# default for most of them.
LOW_RESOLUTION = ("crop", "noise_augmentation", "blur_sigma")
WITHOUT_EFFECT = {
    "clip": {"clip.architecture"},  # it is that of `clip.pretrained`
    "train-decoder": {f"train_decoder.{name}" for name in (*LOW_RESOLUTION, "enlarged")},
    "train-decoder-video": {f"train_decoder_video.{name}" for name in LOW_RESOLUTION},
    "train-interpolation": {f"train_interpolation.{name}" for name in LOW_RESOLUTION},
    "train-sr-low": {"train_sr_low.network.context_tokens", "train_sr_low.objective.condition_dropout"},
    "train-sr-high": {"train_sr_high.network.context_tokens", "train_sr_high.objective.condition_dropout"},
    "train-sr-low-video": {"train_sr_low_video.objective.condition_dropout"},
}


@pytest.mark.slow
def test_the_bodies_read_what_the_stages_declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("tiny", [*SMALL, f"world.port={reserve_port()}"])
    nodes = list(make_a_video(recipe).nodes.values())
    run_here(monkeypatch)
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    read = reads_of_bodies(recipe, nodes, str(tmp_path))
    counting = {value.key for value in values(recipe) if value.counts}
    undeclared, without_effect = {}, {}
    for node in nodes:
        declared = node.stage.reads_of(recipe)
        # What an input was made from is part of its fingerprint, and so of this stage's.
        known = [*declared, *(name for up in node.upstream() for name in up.stage.reads_of(recipe))]
        undeclared[node.name] = sorted(key for key in read[node.name] & counting if not covers(known, key))
        without_effect[node.name] = {key for key in counting if covers(declared, key)} - read[node.name]
    assert undeclared == {node.name: [] for node in nodes}
    assert without_effect == {node.name: WITHOUT_EFFECT.get(node.name, set()) for node in nodes}


def test_a_seed_follows_only_where_it_is_read(tmp_path: Path) -> None:
    """With tables and lists of one's own, another seed screens, fetches and cuts nothing again."""
    for name in ("part.parquet", "clips.csv", "weights.safetensors", "nsfw.pth", "watermark.pth"):
        (tmp_path / name).write_bytes(b"")
    own = ["world=null", f"image_metadata.sources=['{tmp_path}/part.parquet']"]
    given = [f"clip.{key}={tmp_path / name}" for key, name in (
        ("pretrained", "weights.safetensors"), ("nsfw_head", "nsfw.pth"), ("watermark_head", "watermark.pth"),
    )]  # fmt: skip
    given += ["clip.architecture=RN50", "clip.optimisation.samples=0", "train_prior.network.embedding_dim=1024"]
    given += ["train_decoder.network.embedding_dim=1024", "train_prior.network.text_context=77"]

    def moved(lists: str, *more: str) -> set[str]:
        sources = [*own, f"video_shards.sources=['{tmp_path}/{lists}']", *more]
        one, two = (make_a_video(load_recipe("tiny", [*sources, f"seed={seed}"])).nodes for seed in (0, 1))
        return {name for name, node in one.items() if node.fingerprint != two[name].fingerprint}

    fetching = {"image-metadata", "image-download", "video-shards"}
    assert fetching.isdisjoint(moved("clips.csv"))
    assert "clip" in moved("clips.csv")
    assert {*fetching, "clip", "image-screen", "image-embed"}.isdisjoint(moved("clips.csv", *given))
    (tmp_path / "clips.jsonl").write_bytes(b"")
    assert moved("clips.jsonl") & fetching == {"video-shards"}, "spans of whole videos are drawn by seed"


def test_fingerprints_follow_every_value_that_counts_and_no_other() -> None:
    recipe = load_recipe("tiny")

    def prints(recipe: Recipe) -> dict[str, str]:
        return {name: node.fingerprint for name, node in make_a_video(recipe).nodes.items()}

    base, graph = prints(recipe), make_a_video(recipe)
    for value in values(recipe):
        changed = with_other(recipe, value.key)
        moved = {name for name, print_ in prints(changed).items() if print_ != base.get(name)}
        readers = [n.name for n in graph.nodes.values() if value.counts and covers(n.stage.reads_of(recipe), value.key)]
        assert moved >= set(readers), value.key
        followers = {node.name for name in readers for node in graph.downstream(name)}
        assert moved <= {*readers, *followers}, value.key
        assert bool(moved) == value.counts, value.key


def test_the_pairs_of_the_study_are_those_of_the_study_alone() -> None:
    one, two = (make_a_video(load_recipe("tiny", [f"evaluate.study_pairs={n}"])).nodes for n in (4, 5))
    assert [name for name in one if one[name].fingerprint != two[name].fingerprint] == ["human-study", "report"]


def test_a_checkpoint_s_interval_counts_only_where_a_checkpoint_is_chosen() -> None:
    recipe = load_recipe("tiny")
    counts = {value.key: value.counts for value in values(recipe) if value.key.endswith("checkpoint_every")}
    assert [key for key, counting in counts.items() if counting] == [
        "train_interpolation.optimisation.checkpoint_every"
    ]
