"""What `mav describe` prints, against what the networks really do."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flows.cli.main import app
from mav.errors import UserError
from mav.models.unet import UNet
from mav.recipes.reader import load_recipe
from mav.training import network_costs as network_costs_module
from mav.training.network_costs import STATE_BYTES, _fitted, network_cost, network_costs


@pytest.fixture(scope="module")
def demo():
    recipe = load_recipe("demo")
    return {
        stage: network_cost(stage, recipe) for stage in ("train-decoder", "train-decoder-video", "train-interpolation")
    }


def test_the_count_on_shapes_is_the_count_on_numbers(demo):
    recipe = load_recipe("demo")
    network = UNet(recipe.train_decoder.network)
    x = torch.randn(3, 1, 3, 16, 16)
    with FlopCounterMode(display=False) as counter:
        network(x, torch.zeros(3), embedding=torch.randn(3, 64)).square().mean().backward()
    described, o = demo["train-decoder"], recipe.train_decoder.optimisation
    assert described.parameters == sum(p.numel() for p in network.parameters())
    flops = counter.get_total_flops() / 3
    assert described.flops_per_sample == pytest.approx(flops, rel=0.05)  # fused attention is counted apart
    assert described.flops_in_all == described.flops_per_sample * o.samples
    assert described.state_bytes == STATE_BYTES * described.parameters
    assert (described.micro_batch, described.recomputed_flops_per_sample) == (o.batch_size, 0)


def test_recomputation_takes_time_and_saves_memory(monkeypatch):
    """A level's forward pass is done again: at most the third of forward and backward that it is."""
    monkeypatch.setattr(network_costs_module, "WORKSPACE", 0)
    plain, again = (
        network_cost("train-decoder", load_recipe("demo", [f"train_decoder.network.checkpoint_levels={levels}"]))
        for levels in (0, 1)
    )
    assert again.flops_per_sample == plain.flops_per_sample
    assert 0.05 < again.recomputed_flops_per_sample / plain.flops_per_sample < 0.33
    assert again.activation_bytes < plain.activation_bytes


def test_autocast_keeps_less_than_float32_and_more_than_half(monkeypatch):
    monkeypatch.setattr(network_costs_module, "WORKSPACE", 0)
    whole, cast = (
        network_cost("train-decoder", load_recipe("demo", [f"train_decoder.optimisation.precision={precision}"]))
        for precision in ("float32", "bfloat16")
    )
    assert 0.5 * whole.activation_bytes < cast.activation_bytes < whole.activation_bytes


def test_a_crop_is_measured_as_it_is_trained():
    """A whole number of low-resolution pixels, of which each becomes two here: 20.8 pixels of 32 are 20."""
    recipe = load_recipe("demo", ["train_sr_low.crop=0.65"])
    assert network_cost("train-sr-low", recipe).sample == (1, 3, 20, 20)


def test_a_micro_batch_that_fits_is_the_largest_divisor_with_a_tenth_to_spare():
    recipe = load_recipe("demo")
    one, two, four = (_cost_of(recipe, size).peak_bytes for size in (1, 2, 4))
    assert one < two < four
    found = _fitted("train-decoder", recipe, two)
    batch = recipe.train_decoder.optimisation.batch_size
    assert (found.micro_batch, found.accumulation) == (2, batch // 2)
    with pytest.raises(UserError, match="checkpoint_levels"):
        _fitted("train-decoder", recipe, one / 2)


def _cost_of(recipe, micro):
    return network_cost("train-decoder", recipe, recipe.train_decoder.optimisation.batch_size // micro)


def test_a_clip_costs_more_than_its_frames(demo):
    assert demo["train-decoder-video"].flops_per_sample > 8 * demo["train-decoder"].flops_per_sample
    assert demo["train-interpolation"].parameters > demo["train-decoder-video"].parameters


@pytest.mark.slow
def test_single_gpu_fits_an_80_gb_card():
    """Of those that are not held against a card below, the quickest to describe."""
    assert network_cost("train-sr-low-video", load_recipe("single-gpu")).peak_bytes < 72e9


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "micro", "measured"), [("train-decoder", 256, 47.5), ("train-sr-low", 256, 13.75)])
def test_described_memory_is_what_a_card_measured(stage, micro, measured):
    """Gigabytes of steps on an H200."""
    recipe = load_recipe("single-gpu", [f"{stage.replace('-', '_')}.optimisation.export=last"])
    batch = recipe.section_of(stage).optimisation.batch_size
    assert network_cost(stage, recipe, batch // micro).peak_bytes / 1e9 == pytest.approx(measured, rel=0.1)


def test_the_command_prints_a_table_and_json(capsys, monkeypatch):
    measured = network_costs(load_recipe("tiny"))
    monkeypatch.setattr(network_costs_module, "network_costs", lambda *_: measured)
    app(["describe", "tiny"], standalone_mode=False)
    assert "decoder-video" in capsys.readouterr().out
    app(["describe", "tiny", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)[0]["stage"] == "train-prior"
