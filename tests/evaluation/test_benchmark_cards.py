"""The stage that judges the metrics of the benchmarks, on a small demo world."""

import pytest
import torch

from mav.evaluation.benchmarks import judge_metrics
from mav.models.clip import ClipModel
from mav.recipes import ClipConfig, World
from mav.recipes.reader import load_recipe
from mav.storage import Folder
from mav.world.world import draw_world

RECIPE = load_recipe("tiny", ("evaluate.card_clips=12", "cascade.frames=4"))


@pytest.fixture
def inputs(tmp_path):
    world = World(images=16, clips=3, size=32, clip_frames=48, evaluation_clips=24)
    inputs = {name: Folder(str(tmp_path / name)) for name in ("demo-world", "clip")}
    draw_world(world, 0, inputs["demo-world"])
    torch.manual_seed(0)
    ClipModel(ClipConfig(embedding_dim=16, vision_width=4, text_width=16, text_heads=2, text_layers=1)).save(
        inputs["clip"]
    )
    return inputs


def test_the_metrics_of_both_benchmarks_are_judged_on_their_own_clips(tmp_path, inputs):
    out = Folder(str(tmp_path / "out"))
    metrics = judge_metrics(RECIPE, inputs, out)
    assert out.names() == ["msrvtt.json", "ucf101.json"]
    cards = {name: out.read_json(f"{name}.json") for name in ("ucf101", "msrvtt")}
    assert {(card["reference"], card["judged"]) for card in cards.values()} == {(6, 6)}
    assert "clipsim" in cards["msrvtt"]["real"], "each clip has its caption"
    assert set(cards["ucf101"]["not_judged"]) == {"is"}
    for name, card in cards.items():
        assert metrics[f"{name}_metrics"] == len(card["real"])
        strobing = [row["points"] for row in card["rows"] if row["corruption"] == "strobing"]
        seen = [any(point["worse"] for point in points) for points in strobing]
        assert metrics[f"{name}_blind_to_strobing"] == seen.count(False), "as the page of the card counts them"


def test_a_set_of_few_readable_clips_has_no_card_and_says_so(tmp_path, inputs):
    """A run comes to its cards after days; what it has made until then stays worth reporting."""
    clips = [name for name in inputs["demo-world"].names() if name.startswith("ucf101/") and name.endswith(".mp4")]
    assert len(clips) == 24
    for name in clips[5:]:
        inputs["demo-world"].write_bytes(name, b"no video")
    out = Folder(str(tmp_path / "out"))
    metrics = judge_metrics(RECIPE, inputs, out)
    assert metrics["ucf101_metrics"] == 0
    assert metrics["msrvtt_metrics"] > 0
    lacks = out.read_json("ucf101.json")
    assert lacks["protocol"]["name"] == "ucf101-demo"
    assert "readable clips in the two halves: name a folder with more, 8 at least" in lacks["skipped"]
    assert out.names() == ["msrvtt.json", "ucf101.json"]
