"""Noise belongs to samples and frames: a share may be common to a clip, each frame stays standard normal."""

import pytest
import torch

from mav.diffusion.noise import SampleNoise, mix


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_frames_share_the_given_part(share: float) -> None:
    noise = SampleNoise(range(200), "test", (3, 8, 8), range(4), share=share)()
    assert noise.shape == (200, 4, 3, 8, 8)
    assert float(noise.var()) == pytest.approx(1.0, abs=0.03)
    assert float((noise[:, 0] * noise[:, 3]).mean()) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_noise_belongs_to_seed_and_frame(share: float) -> None:
    whole = SampleNoise([1, 2], "sr", (3, 4, 4), frames=range(6), share=share)
    window = SampleNoise([2], "sr", (3, 4, 4), frames=range(2, 5), share=share)
    still = SampleNoise([1], "sr", (3, 4, 4), frames=[0] * 5, share=share)
    for _ in range(2):  # the first draw and the next
        a, b, c = whole(), window(), still()
        assert torch.equal(a[1:, 2:5], b)
        assert torch.equal(c, c[:, :1].expand_as(c))
        assert torch.equal(c[:, 0], a[:1, 0])
        assert not torch.equal(a[0, 0], a[0, 1])


def test_mixing_keeps_the_variance() -> None:
    own, common = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    assert float(mix(own, common, 0.3).var()) == pytest.approx(1.0, abs=0.02)
