"""Averages chosen after the training: rebuilt as if they had been saved, also from a killed and resumed run."""

import os
import signal
import time

import pytest
import torch
from small_training import run, small_recipe

from mav.errors import UserError
from mav.storage import Folder
from mav.training.checkpoint import COMMITTED, METADATA, Checkpoints
from mav.training.ema import Ema
from mav.training.export import CURVES, WEIGHTS, load_network
from mav.training.post_hoc import KEPT, MOMENTS, OFFERED, PostHoc, coefficients, exponent, power_decay
from mav.training.process.preemption import PreemptedError, catch_sigterm

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
STAGE = "train-decoder"
SIZES = {
    "samples": 24,
    "batch_size": 2,
    "checkpoint_every": 8,
    "held_out": 4,
    "export": "post_hoc",
    "learning_rate": 3e-3,
}


def test_exponents_are_the_published_ones():
    """The paper's two: a width of 0.05 is t^16.97, of 0.10 t^6.94."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.01)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.01)
    for width in (0.0, 0.3):
        with pytest.raises(ValueError, match="relative width"):
            exponent(width)


@pytest.mark.parametrize("width", OFFERED)
def test_an_average_that_was_not_kept_is_rebuilt(width):
    """For 500 parameters and 1,600 random steps, the rebuilt average is within 4 % of the one computed directly."""
    torch.manual_seed(0)
    steps, walker = 1600, torch.nn.Parameter(torch.zeros(500))
    kept = {each: Ema([walker], power_decay(each)) for each in KEPT}
    direct = Ema([walker], power_decay(width))
    moments, values = [], []
    for step in range(1, steps + 1):
        walker.data += torch.randn(500)
        for average in (direct, *kept.values()):
            average.update(step)
        if step % (steps // MOMENTS) == 0:
            moments += [(each, step) for each in KEPT]
            values += [kept[each].shadows[0].double().clone() for each in KEPT]
    rebuilt = coefficients(moments, (width, steps)) @ torch.stack(values)
    wanted = direct.shadows[0].double()
    assert (rebuilt - wanted).norm() / (walker.detach().double() - wanted).norm() < 0.04


@pytest.mark.parametrize("moments", [1, 3, MOMENTS])
def test_a_weight_that_never_changed_keeps_its_value(moments):
    kept = [(each, 1600 * (moment + 1) // moments) for moment in range(moments) for each in KEPT]
    for width in OFFERED:
        assert coefficients(kept, (width, 1600)).sum().item() == pytest.approx(1.0, abs=1e-12)


def test_the_width_of_the_lowest_held_out_loss_is_exported(tmp_path):
    root, recipe = Folder(str(tmp_path)), small_recipe(**SIZES)
    metrics = run(root, STAGE, recipe)
    losses = metrics["validation_by_width"]
    assert [float(width) for width in losses] == list(OFFERED)
    assert losses[str(metrics["average_width"])] == min(losses.values()) < max(losses.values())
    plain = run(root, STAGE, small_recipe(**SIZES | {"export": "last"}), work="plain", out="plain")
    assert "average_width" not in plain
    ours, theirs = (load_network(root.child(name)).network.state_dict() for name in (STAGE, "plain"))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_when_no_average_can_be_read_it_says_what_to_do(tmp_path):
    """Their files have all of their bytes, so that only reading them shows the damage."""
    network = torch.nn.Linear(300, 2)
    o, checkpoints = small_recipe(**SIZES).train_decoder.optimisation, Checkpoints(Folder(str(tmp_path)), "id")
    averages = PostHoc(network, list(network.parameters()), o, checkpoints)
    averages.keep(o.samples)
    checkpoints.wait()
    for path in tmp_path.glob("*/*.distcp"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"All averages in .* are damaged: rerun the stage"):
        averages.choose([parameter.detach() for parameter in network.parameters()], lambda: 0.0)


@pytest.mark.slow
def test_a_run_that_was_stopped_chooses_the_same_weights(tmp_path):
    """One was asked to end between two moments; one died while the averages of its last checkpoint were written."""
    root, recipe = Folder(str(tmp_path)), small_recipe(**SIZES)
    whole = run(root, STAGE, recipe)

    def terminate(line):
        if line["samples"] == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    catch_sigterm()
    with pytest.raises(PreemptedError, match="saved after 14 samples"):
        run(root, STAGE, recipe, work="again", out="again", report=terminate)
    assert Checkpoints(root.child(f"again/{STAGE}"), "", keep=2).finished() == [8, 14]
    catch_sigterm()  # a new process knows nothing of the old one's signal

    def die(line):
        if line["samples"] == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(root, STAGE, recipe, work="again", out="again", report=die)
    averages = root.child(f"again/{STAGE}/averages/{16:012d}")
    until = time.monotonic() + 30
    while not averages.exists(METADATA) and time.monotonic() < until:  # its writing thread outlived the training
        time.sleep(0.02)
    averages.remove(METADATA)
    averages.remove(COMMITTED)
    assert run(root, STAGE, recipe, work="again", out="again") == whole
    for name in (WEIGHTS, CURVES):
        assert root.read_bytes(f"again/{name}") == root.read_bytes(f"{STAGE}/{name}")
