"""The stage that judges the metrics of the benchmarks, on a small demo world."""

import dataclasses

import torch

from mav.evaluation.benchmarks import judge_metrics
from mav.models.clip import ClipModel
from mav.recipes import ClipConfig, World
from mav.recipes.reader import load_recipe
from mav.storage import Folder
from mav.world.world import draw_world


def test_the_metrics_of_both_benchmarks_are_judged_on_their_own_clips(tmp_path):
    recipe = load_recipe("tiny", ("evaluate.card_clips=12", "cascade.frames=4"))
    world = World(images=16, clips=3, size=32, clip_frames=48, evaluation_clips=24)
    inputs = {name: Folder(str(tmp_path / name)) for name in ("demo-world", "clip")}
    draw_world(world, 0, inputs["demo-world"])
    torch.manual_seed(0)
    ClipModel(ClipConfig(embedding_dim=16, vision_width=4, text_width=16, text_heads=2, text_layers=1)).save(
        inputs["clip"]
    )
    out = Folder(str(tmp_path / "out"))
    metrics = judge_metrics(dataclasses.replace(recipe, world=world), inputs, out)
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
