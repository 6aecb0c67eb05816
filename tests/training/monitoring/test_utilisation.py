"""Utilisation is the model's arithmetic over what the device can do: counted, not guessed, and reported."""

import pytest
import torch
from small_training import run, small_recipe
from torch import nn

from flows.services.terminal import progress_values
from mav.storage import Folder
from mav.training.fake_device import fake_cuda
from mav.training.monitoring.utilisation import counted, matrix_rate
from mav.training.network_costs import network_cost


def test_a_layer_is_three_products() -> None:
    layer, x = nn.Linear(6, 5, bias=False), torch.ones(4, 6)
    result, flops = counted(lambda: layer(x))
    assert flops == 3 * 2 * 4 * 6 * 5
    torch.testing.assert_close(result, layer(x))


def test_a_rate_is_of_a_device_that_is_there() -> None:
    assert matrix_rate(torch.device("cpu"), "float32") > 1e8  # type: ignore[operator]
    with fake_cuda():
        assert matrix_rate(torch.device("cuda"), "bfloat16") is None


@pytest.mark.parametrize("stage", ["train-decoder", "train-sr-low"])
def test_a_training_reports_what_is_described(tmp_path, stage, monkeypatch) -> None:
    """`mav describe` counts the backward pass as well, which makes no product for what needs no gradient."""
    monkeypatch.setattr("mav.training.loop.matrix_rate", lambda device, precision: 1e9)
    recipe, lines = small_recipe(samples=4, log_every=2, checkpoint_every=4), []
    run(Folder(str(tmp_path)), stage, recipe, report=lines.append)
    last = [line for line in lines if "utilisation" in line][-1]
    counted_flops = last["utilisation"] * 1e9 / last["samples_per_second"]
    assert counted_flops == pytest.approx(network_cost(stage, recipe).flops_per_sample, rel=0.15)
    assert "utilised" in " ".join(progress_values(last))
