"""The demo's networks learn as they did when the reference curves were made, so a change that breaks it is seen."""

import pytest
from learning import STEPS, curves, outside, shortened

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]


def test_every_network_learns_as_it_did():
    found = curves(shortened(seed=0))
    assert list(found) == list(STEPS)
    assert not outside(found)


@pytest.mark.parametrize(
    "broken", [{"learning_rate": 1e-5}, {"learning_rate": 0.3}, {"gradient_clip": 1e-4, "eps": 1.0}]
)
def test_a_network_that_learns_badly_leaves_its_range(broken):
    found = curves(shortened(0, **broken), ("clip", "train-sr-high"))
    assert {sentence.split(":")[0] for sentence in outside(found)} == {"clip", "train-sr-high"}
