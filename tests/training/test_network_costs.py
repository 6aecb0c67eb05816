"""What `mav describe` prints, against what the networks really do."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flows.cli.main import app
from mav.models.kernels import dispatch
from mav.models.unet import UNet
from mav.recipes.reader import load_recipe
from mav.training.network_costs import STATE_BYTES, network_costs


@pytest.fixture(scope="module")
def demo():
    return {c.stage: c for c in network_costs(load_recipe("demo"))}


def test_the_count_on_shapes_is_the_count_on_numbers(demo):
    recipe = load_recipe("demo")
    network = UNet(recipe.train_decoder.network)
    x = torch.randn(3, 1, 3, 16, 16)
    with FlopCounterMode(display=False) as counter:
        network(x, torch.zeros(3), embedding=torch.randn(3, 64)).square().mean().backward()
    described = demo["train-decoder"]
    assert described.parameters == sum(p.numel() for p in network.parameters())
    assert described.flops_per_sample == pytest.approx(
        counter.get_total_flops() / 3, rel=0.05
    )  # fused attention is counted apart
    assert described.flops_per_step == described.flops_per_sample * recipe.train_decoder.optimisation.batch_size
    assert described.state_bytes == STATE_BYTES * described.parameters


@pytest.mark.parametrize("everywhere", [True, False])
def test_activations_are_the_tensors_that_backward_needs(demo, everywhere, monkeypatch):
    """Counted is what other devices keep; norms on a CPU keep neither the normalised input nor that of the SiLU."""
    if everywhere:
        monkeypatch.setattr(dispatch, "_is_plain_cpu", lambda x: False)
    recipe = load_recipe("demo")
    network, rows = UNet(recipe.train_decoder.network).train(), recipe.train_decoder.optimisation.batch_size
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(torch.randn(rows, 1, 3, 16, 16), torch.zeros(rows), embedding=torch.randn(rows, 64)).square().mean()
        measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    counted = demo["train-decoder"].activation_bytes * (1 if everywhere else 0.715)
    assert counted == pytest.approx(measured, rel=0.05)


def test_a_clip_costs_more_than_its_frames(demo):
    assert demo["train-decoder-video"].flops_per_sample > 8 * demo["train-decoder"].flops_per_sample
    assert demo["train-interpolation"].parameters > demo["train-decoder-video"].parameters


@pytest.mark.slow
def test_single_gpu_fits_an_80_gb_card_and_checkpointing_is_seen():
    single = network_costs(load_recipe("single-gpu"))
    for component in single:
        assert component.state_bytes + component.activation_bytes < 64 * 1024**3, (
            component
        )  # the rest is the libraries'
    without = network_costs(load_recipe("single-gpu", ["train_decoder.network.checkpoint_levels=0"]))
    assert single[4].activation_bytes < 0.8 * without[4].activation_bytes
    assert single[4].flops_per_sample > without[4].flops_per_sample


def test_the_command_prints_a_table_and_json(capsys):
    app(["describe", "demo"], standalone_mode=False)
    assert "decoder-video" in capsys.readouterr().out
    app(["describe", "demo", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)[0]["stage"] == "train-prior"
