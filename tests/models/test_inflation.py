"""Right after inflation the video network is the image network (Make-A-Video section 3.2)."""

import pytest
import torch

from mav.models.pseudo3d import RateGate, zero
from mav.models.unet import UNet, add_masked_frames, inflate, known_frames
from mav.recipes import Level, UNetConfig

B, T, S = 2, 5, 16
DECODER = UNetConfig(
    levels=(Level(channels=16, blocks=1), Level(channels=24, blocks=2, attention=True)),
    embedding_dim=8,
    head_channels=8,
)
SUPER_RESOLUTION = UNetConfig(levels=(Level(channels=8, blocks=1), Level(channels=16, blocks=1)), low_resolution=True)
LEARNED_SIGMA = UNetConfig(
    levels=(Level(channels=8, blocks=1, attention=True),), embedding_dim=8, head_channels=8, out_channels=6
)


def randomised(net: UNet, seed: int = 0) -> UNet:
    """A network as if trained: no parameter keeps a neutral start (zero outputs would make every comparison true)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return net.eval()


def conditions(config: UNetConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    given: dict[str, torch.Tensor] = {}
    if config.embedding_dim:
        given["embedding"] = torch.nn.functional.normalize(
            torch.randn(B, config.embedding_dim, generator=generator, dtype=dtype)
        )
        given["keep"] = torch.tensor([True, False])
    if config.low_resolution:
        given["low"] = torch.randn(B, T, 3, S, S, generator=generator, dtype=dtype)
        given["low_noise"] = torch.tensor([0.1, 0.4])
    return given


def noisy(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(B, T, 3, S, S, generator=torch.Generator().manual_seed(2), dtype=dtype), torch.tensor(
        [10.0, 700.0]
    )


def per_frame(net: UNet, x: torch.Tensor, t: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The image network on each frame by itself."""
    frames = []
    for i in range(T):
        own = {name: value[:, i : i + 1] if name in ("low", "known") else value for name, value in given.items()}
        frames.append(net(x[:, i : i + 1], t, **own))
    return torch.cat(frames, dim=1)


@pytest.mark.parametrize("config", [DECODER, SUPER_RESOLUTION, LEARNED_SIGMA], ids=["D", "SR", "learned-sigma"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inflated_network_equals_image_network_per_frame(config, dtype):
    image_net = randomised(UNet(config)).to(dtype)
    video_net = inflate(image_net, max_frames=T).eval()
    (x, t), given = noisy(dtype), conditions(config, dtype)
    fps = torch.tensor([4.0, 24.0])
    with torch.no_grad():
        video, together, alone = (
            video_net(x, t, fps=fps, **given),
            image_net(x, t, **given),
            per_frame(image_net, x, t, given),
        )
    assert alone.abs().mean() > 0.05  # the comparison is not between zeros
    if dtype is torch.float64:
        assert torch.equal(video, together)
        assert torch.equal(video, alone) if config is DECODER else torch.allclose(video, alone, rtol=0, atol=1e-13)
    else:
        torch.testing.assert_close(video, together, rtol=0, atol=1e-6)
        torch.testing.assert_close(video, alone, rtol=1e-5, atol=1e-6 * float(alone.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_interpolation_starts_as_the_video_decoder(dtype):
    decoder = randomised(inflate(UNet(DECODER), max_frames=T)).to(dtype)
    interpolation = add_masked_frames(decoder).eval()
    (x, t), given = noisy(dtype), conditions(DECODER, dtype)
    given["fps"] = torch.tensor([4.0, 24.0])
    mask = torch.tensor([[True, False, False, False, True], [True, False, False, False, False]])
    clean = noisy(dtype)[0] + 1
    shown, steps = torch.where(mask[:, :, None, None, None], clean, x), torch.where(mask, 0, t[:, None])
    with torch.no_grad():
        started = interpolation(x, t, known=known_frames(clean, mask), **given)
        assert torch.equal(started, decoder(shown, steps, **given)), (
            "known frames are clean, at the step of clean frames"
        )
        nothing = interpolation(x, t, known=known_frames(clean, mask & False), **given)
        torch.testing.assert_close(nothing, decoder(x, t, **given), rtol=1e-5, atol=1e-5 * float(started.abs().max()))


def test_time_off_is_the_image_network_also_after_training():
    image_net = randomised(UNet(DECODER))
    video_net = inflate(image_net, max_frames=T).eval()
    with torch.no_grad():
        for parameter in video_net.temporal_parameters():
            parameter += 0.1
    (x, t), given = noisy(torch.float32), conditions(DECODER, torch.float32)
    with torch.no_grad():
        off, on = video_net(x, t, time=False, **given), video_net(x, t, fps=torch.tensor([4.0, 24.0]), **given)
        assert torch.equal(off, image_net(x, t, **given))
    assert (on - off).abs().mean() > 0.01


def test_layers_over_time_are_gated_by_the_frame_rate():
    """Without the fps in the time embedding, the same frames are still mixed otherwise at another frame rate."""
    net = randomised(inflate(UNet(DECODER), max_frames=T))
    zero(net.fps)
    (x, t), given = noisy(torch.float32), conditions(DECODER, torch.float32)
    slow, fast = torch.tensor([4.0, 24.0]), torch.tensor([16.0, 24.0])
    with torch.no_grad():
        difference = (net(x, t, fps=slow, **given) - net(x, t, fps=fast, **given)).abs().amax(dim=(1, 2, 3, 4))
        assert difference[0] > 1e-3
        assert difference[1] == 0
        for module in net.modules():
            if isinstance(module, RateGate):
                zero(module)
        assert torch.equal(net(x, t, fps=slow, **given), net(x, t, fps=fast, **given))


def test_time_mixes_frames_and_space_does_not_mix_clips():
    net = randomised(inflate(UNet(DECODER), max_frames=T))
    (x, t), given = noisy(torch.float32), conditions(DECODER, torch.float32)
    fps = torch.tensor([4.0, 24.0])
    changed = x.clone()
    changed[0, 4] += 1
    with torch.no_grad():
        difference = (net(changed, t, fps=fps, **given) - net(x, t, fps=fps, **given)).abs().amax(dim=(2, 3, 4))
    assert difference[0].min() > 0
    assert difference[1].max() == 0


def test_new_parameters_are_the_temporal_ones_and_all_learn():
    image_net = UNet(DECODER)
    video_net = add_masked_frames(inflate(image_net, max_frames=T))
    new = {id(p) for p in video_net.temporal_parameters()}
    old_names = set(dict(image_net.named_parameters()))
    assert {name for name, p in video_net.named_parameters() if id(p) not in new} == old_names
    net = randomised(video_net).train()
    (x, t), given = noisy(torch.float32), conditions(DECODER, torch.float32)
    mask = torch.ones(B, T, dtype=torch.bool)
    net(x, t, fps=torch.tensor([4.0, 24.0]), known=known_frames(x, mask), **given).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_conditions_a_network_lacks_or_does_not_take_are_refused():
    net = inflate(UNet(DECODER), max_frames=T)
    (x, t), given = noisy(torch.float32), conditions(DECODER, torch.float32)
    with pytest.raises(ValueError, match="needs the condition `fps`"):
        net(x, t, **given)
    with pytest.raises(ValueError, match="does not take the condition `low`"):
        net(x, t, fps=t, low=x, **given)
    with pytest.raises(ValueError, match="longer than this network's 5"):
        net(torch.cat([x, x], dim=1), t, fps=t, **given)
    with pytest.raises(ValueError, match="multiples of 2"):
        net(x[..., :15], t, fps=t, **given)
