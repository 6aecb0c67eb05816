"""Noise belongs to samples and frames: a share may be common to a clip, each frame stays standard normal."""

import pytest
import torch

from mav.diffusion.noise import SampleNoise, mix


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_frames_share_what_they_are_told_to(share: float) -> None:
    noise = SampleNoise(range(200), "test", (3, 8, 8), range(4), share=share)()
    assert noise.shape == (200, 4, 3, 8, 8)
    assert float(noise.var()) == pytest.approx(1.0, abs=0.03)
    assert float((noise[:, 0] * noise[:, 3]).mean()) == pytest.approx(share, abs=0.03)


def test_windows_agree_where_they_overlap() -> None:
    one = SampleNoise([5], "test", (2,), range(0, 4), share=0.5)()
    two = SampleNoise([5], "test", (2,), range(3, 7), share=0.5)()
    assert torch.equal(one[:, 3], two[:, 0])


def test_a_sample_is_the_same_alone() -> None:
    many = SampleNoise([7, 8, 9], "test", (2, 2), range(3), share=0.5)
    alone = SampleNoise([8], "test", (2, 2), range(3), share=0.5)
    for _ in range(2):
        assert torch.equal(many()[1:2], alone())


def test_mixing_keeps_the_variance() -> None:
    own, common = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    assert float(mix(own, common, 0.3).var()) == pytest.approx(1.0, abs=0.02)
