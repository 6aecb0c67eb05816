"""The stages and the loop on synthetic sources: every stage trains and exports, and no text in a video stage."""

import dataclasses
import json
import time

import pytest
import torch
from small_training import CONTEXT, DIM, FRAMES, Clips, Pairs, parents, run, small_recipe

from mav.diffusion.noise import Draws
from mav.errors import UserError
from mav.models.clip import ClipModel
from mav.models.unet import UNet
from mav.recipes import Objective, Optimisation, TrainVideo
from mav.storage import Folder
from mav.training.checkpoint import Checkpoints
from mav.training.conditions import random_mask
from mav.training.export import CURVES, DESCRIPTION, WEIGHTS, export_network, load_network
from mav.training.loop import TrainingTask, prefetch, train
from mav.training.monitoring.sheet import SHEET
from mav.training.optimiser import learning_rate
from mav.training.stages import INPUTS, VIDEO_STAGES, run_stage

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.mark.parametrize("stage", sorted(INPUTS))
def test_every_stage_trains_and_exports_what_loads_again(stage, tmp_path):
    root, recipe, lines = Folder(str(tmp_path)), small_recipe(), []
    metrics = run(root, stage, recipe, report=lines.append)
    assert metrics["samples"] == 12
    assert metrics["loss"] > 0
    assert {"samples", "total", "loss", "samples_per_second", "stage"} <= set(lines[-1])
    curves = [json.loads(line) for line in root.read_bytes(f"{stage}/{CURVES}").splitlines()]
    assert [line["samples"] for line in curves] == [4, 8, 12]
    if stage == "clip":
        assert ClipModel.load(root.child(stage)).scores(torch.randn(2, DIM)).keys() == {"punsafe", "pwatermark"}
        return
    export = load_network(root.child(stage))
    moved = sum(
        float(p.abs().sum())
        for name, p in export.network.named_parameters()
        if name.startswith(("output.spatial", "output.weight"))
    )
    assert moved > 0  # the output, which starts at zero, has learned something
    assert export.description["stage"] == stage
    assert root.exists(f"{stage}/{SHEET}") == (stage != "train-prior")
    if stage in VIDEO_STAGES:
        assert export.network.config.max_frames == FRAMES
        assert export.network.config.masked_frames == (stage == "train-interpolation")


def test_a_stage_starts_from_open_weights(tmp_path):
    """Here from its own names and sizes as diffusers would store them: the prior's, at a learning rate of nothing."""
    root, recipe = Folder(str(tmp_path)), small_recipe(learning_rate=0.0)
    weights = {"proj_in.weight": torch.full((16, DIM), 0.5), "elsewhere.bias": torch.zeros(3)}
    torch.save({"state_dict": weights}, tmp_path / "prior.ckpt")
    section = dataclasses.replace(recipe.train_prior, start=str(tmp_path / "prior.ckpt"))
    metrics = run(root, "train-prior", dataclasses.replace(recipe, train_prior=section))
    assert load_network(root.child("train-prior")).network.noised.weight.unique().tolist() == [0.5]
    report = root.read_json("train-prior/start.json")
    assert (report["carried"], report["unused"]) == (["noised.weight"], ["elsewhere.bias"])
    assert metrics["carried"] == 1
    assert metrics["fresh"] == len(report["fresh"]) > 10


@pytest.mark.parametrize("stage", VIDEO_STAGES)
def test_no_text_reaches_a_video_stage(stage, tmp_path):
    """By name: its inputs hold no pairs. By key: a batch that holds anything else than pixels and fps is refused."""
    root, recipe = Folder(str(tmp_path)), small_recipe()
    assert not {"image-embed", "image-download", "image-metadata", "train-prior"} & set(INPUTS[stage])
    inputs = parents(root, stage, recipe)
    with pytest.raises(ValueError, match=f"{stage} takes .* and nothing else, not image-embed"):
        run_stage(stage, recipe, inputs | {"image-embed": root}, root.child("work"), root.child("out"))
    captioned = Clips(recipe.cascade.low_size, tokens=torch.zeros(2, CONTEXT, dtype=torch.long))
    with pytest.raises(ValueError, match="text never meets motion, but its batch holds fps, pixels, tokens"):
        run_stage(stage, recipe, inputs, root.child("work"), root.child("out"), source=captioned)


def test_temporal_training_leaves_the_image_network_as_it_was(tmp_path):
    root, recipe = Folder(str(tmp_path)), small_recipe()
    for name, section in (
        ("never", TrainVideo(optimisation=recipe.train_decoder_video.optimisation, trainable="temporal")),
        ("later", TrainVideo(optimisation=recipe.train_decoder_video.optimisation, temporal_first_samples=6)),
    ):
        changed = dataclasses.replace(recipe, train_decoder_video=section)
        run(root, "train-decoder-video", changed, work=name, out=name)
    before = load_network(root.child("train-decoder")).network.state_dict()
    never, later = (load_network(root.child(name)).network.state_dict() for name in ("never", "later"))
    assert all(torch.equal(never[name], value) for name, value in before.items())
    assert any(not torch.equal(later[name], value) for name, value in before.items())
    assert any(
        not torch.equal(never[name], torch.zeros(())) and not torch.equal(never[name], later[name]) for name in never
    )


def test_masks_give_at_least_one_frame_and_leave_at_least_one():
    masks = random_mask(Draws((0, "mask", n) for n in range(400)), 8, skip=2)
    assert masks.any(1).all()
    assert not masks.all(1).any()
    known = {tuple(row.nonzero().flatten().tolist()) for row in masks}
    assert {(0,), (0, 7), (0, 2, 4, 6), (1, 3, 5, 7), (0, 3, 6)} <= known
    half = sum(row.nonzero().flatten().tolist() in ([0, 2, 4, 6], [0, 1, 3, 5, 7], [1, 3, 5, 7]) for row in masks)
    assert half >= 180, "about half of them are the pattern of generation"


def test_the_samples_of_a_step_do_not_depend_on_the_number_of_workers():
    class Numbers:
        def __len__(self):
            return 100

        def batch(self, first, count):
            return {"n": torch.arange(first, first + count)}

    def seen(world_size, accumulation, workers=1):
        o = Optimisation(samples=48, batch_size=16, accumulation=accumulation)
        ranks = [list(prefetch(Numbers(), 16, o, rank, world_size, workers)) for rank in range(world_size)]
        turns = len(ranks[0]) // 2
        assert {len(rank) for rank in ranks} == {2 * turns}  # all ranks compute as often
        assert len({len(batch["n"]) for rank in ranks for _, _, batch in rank}) == 1
        steps = [
            torch.cat([b["n"] for rank in ranks for _, counts, b in rank[i : i + turns] if counts]).sort().values
            for i in (0, turns)
        ]
        return torch.stack(steps)

    assert torch.equal(seen(1, 1), torch.arange(16, 48).view(2, 16))
    # The last ones: workers were lost, down to a number that shares nothing evenly.
    for numbers in ((2, 1), (2, 4), (4, 2), (1, 2, 4), (3, 1, 4), (3, 2, 8), (7, 1, 8)):
        assert torch.equal(seen(*numbers), seen(1, 1)), numbers


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    root = Folder(str(tmp_path))
    for accumulation in (1, 2):
        run(
            root,
            "train-decoder",
            small_recipe(batch_size=4, accumulation=accumulation),
            work=f"w{accumulation}",
            out=f"o{accumulation}",
        )
    one, two = (load_network(root.child(f"o{a}")).network.state_dict() for a in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_and_names_the_samples(tmp_path):
    network = torch.nn.Linear(2, 2)

    def loss(net, batch):
        value = net(torch.ones(1, 2)).square().mean()
        return value * float("nan") if batch["pixels"].sum() == Pairs(4).batch(6, 2)["pixels"].sum() else value

    o = Optimisation(samples=16, batch_size=2, log_every=4, checkpoint_every=4)
    with pytest.raises(FloatingPointError, match="samples 6 to 7"):
        train(TrainingTask("test", network, Pairs(4), loss, identity="id"), o, 0, Folder(str(tmp_path)))
    saved = {f"network.{name}": torch.full_like(value, float("nan")) for name, value in network.state_dict().items()}
    checkpoints = Checkpoints(Folder(str(tmp_path)), "id", keep=2)
    while not checkpoints.finished():  # the thread that writes it is still running
        time.sleep(0.01)
    assert checkpoints.restore(saved)["progress"]["samples"] == 4
    assert all(torch.isfinite(value).all() for value in saved.values())


def test_learning_rate_warms_up_and_cools_down():
    o = Optimisation(samples=1000, batch_size=10, learning_rate=1.0, warmup_samples=100, cooldown_samples=200)
    assert [round(learning_rate(o, n), 3) for n in (0, 40, 90, 500, 800, 900, 990)] == [0.1, 0.5, 1, 1, 1, 0.5, 0.05]


def test_export_is_strict(tmp_path):
    from safetensors.torch import load, save

    folder = Folder(str(tmp_path))
    config = small_recipe().train_decoder.network
    network = UNet(config)
    export_network(folder, network, Objective(prediction="eps"), stage="train-decoder")
    export = load_network(folder)
    assert export.objective.prediction == "eps"
    assert export.network.config == config
    assert all(
        torch.equal(a, b)
        for a, b in zip(export.network.state_dict().values(), network.state_dict().values(), strict=True)
    )

    tensors = load(folder.read_bytes(WEIGHTS))
    removed = tensors.pop("output.spatial.bias")
    folder.write_bytes(WEIGHTS, save(tensors | {"extra": removed}))
    with pytest.raises(UserError, match=r"lacks output.spatial.bias; it has no place for extra"):
        load_network(folder)
    folder.write_bytes(WEIGHTS, save(tensors | {"output.spatial.bias": torch.zeros(7)}))
    with pytest.raises(UserError, match=r"of another shape is output.spatial.bias"):
        load_network(folder)
    folder.write_bytes(DESCRIPTION, b'{"kind": "unet"}')
    with pytest.raises(UserError, match="cannot be read"):
        load_network(folder)
    with pytest.raises(UserError, match="run its stage first"):
        load_network(folder.child("nothing"))
