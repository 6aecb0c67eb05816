"""Held-out samples: the same ones every time, never trained on, and none when there would be nothing left."""

import numpy as np
import pytest
import torch

from mav.data.loading.source import SampleSource
from mav.errors import UserError


class Numbers(SampleSource):
    def read(self, index, number):
        if index == 3:
            raise ValueError("broken")
        return {"index": np.int64(index), "number": np.int64(number)}


def source():
    return Numbers(seed=5, sizes=[12, 8], what="nowhere", corrupted_share=0.5)


def test_held_out_samples_are_never_trained_on():
    training = source()
    held = training.hold_out(6, total=60)
    assert len(training) == 14
    assert held["number"].tolist() == [0, 10, 20, 30, 40, 50]
    seen = set(training.batch(0, 3 * 14)["index"].tolist())
    assert seen | set(held["index"].tolist()) | {3} == set(range(20))
    assert not seen & set(held["index"].tolist())
    again = source()
    assert torch.equal(again.hold_out(6, total=60)["index"], held["index"])
    assert torch.equal(again.batch(7, 5)["index"], training.batch(7, 5)["index"])


def test_holding_out_everything_is_refused():
    for count in (20, 25):
        with pytest.raises(UserError, match="hold out fewer"):
            source().hold_out(count, total=60)
