"""Samplers against a distribution whose answer is known, and a sample's independence of its batch."""

import pytest
import torch

from mav.diffusion.guidance import Denoiser
from mav.diffusion.noise import SampleNoise, generator
from mav.diffusion.sampler import sample
from mav.diffusion.schedule import make_schedule
from mav.models.unet import UNet, inflate
from mav.recipes import Level, Objective, Sampling, UNetConfig

MEAN, SPREAD = 0.7, 0.3


def gaussian(objective: Objective) -> Denoiser:
    """The exact denoiser of x0 ~ N(MEAN, SPREAD^2)."""
    schedule = make_schedule(objective)

    def network(x, t):
        alpha, sigma = schedule.at(t.long(), x)
        x0 = MEAN + alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * (x - alpha * MEAN)
        return x0 if objective.prediction == "x0" else (alpha * x - x0) / sigma

    return Denoiser(network, objective, {}, clip=False)


@pytest.mark.parametrize("terminal", [False, True], ids=["cosine", "zero-terminal"])
@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize(
    ("sampler", "steps", "tolerance"), [("ddim", 100, 0.02), ("ancestral", 250, 0.02), ("dpm++2m", 25, 0.03)]
)
def test_sampler_recovers_a_gaussian(sampler, steps, tolerance, prediction, terminal):
    objective = Objective(prediction=prediction, zero_terminal_snr=terminal)
    noise = SampleNoise([0], "test", (20_000,))
    found = sample(gaussian(objective), noise, Sampling(sampler=sampler, steps=steps))
    assert abs(found.mean() - MEAN) < tolerance
    assert abs(found.std() - SPREAD) < tolerance


def test_a_guess_is_kept_as_far_as_the_start_says():
    denoiser, guess, sampling = gaussian(Objective()), torch.full((20_000,), MEAN + 2 * SPREAD), Sampling(steps=100)
    noise = SampleNoise([0], "test", (20_000,))()
    moved = {start: sample(denoiser, lambda: noise, sampling, guess=guess, start=start).mean() for start in (0.2, 1.0)}
    assert moved[0.2] > MEAN + SPREAD
    assert moved[1.0] == pytest.approx(MEAN, abs=0.02), "from pure noise"
    unguided = sample(denoiser, lambda: noise, sampling, start=0.2)
    assert torch.equal(unguided, sample(denoiser, lambda: noise, sampling)), "without a guess there is only noise"


def test_second_order_beats_first_at_equal_steps():
    objective = Objective()
    noise = SampleNoise([0], "test", (20_000,))()
    fine = sample(gaussian(objective), lambda: noise, Sampling(sampler="ddim", steps=1000))
    first, second = (
        sample(gaussian(objective), lambda: noise, Sampling(sampler=s, steps=20)) for s in ("ddim", "dpm++2m")
    )
    assert (second - fine).abs().mean() < 0.5 * (first - fine).abs().mean()


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpm++2m"])
def test_a_sample_is_the_same_alone_and_in_a_batch(sampler):
    config = UNetConfig(levels=(Level(channels=8, blocks=1, attention=True),), embedding_dim=4, head_channels=8)
    net = inflate(UNet(config), max_frames=3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator(0, "weights"))
    net = net.double().eval()
    embedding = torch.nn.functional.normalize(torch.randn(4, 4, generator=generator(0, "embedding")).double())
    seeds = [11, 12, 13, 14]

    def draw(rows):
        given = {"embedding": embedding[rows], "fps": torch.full((len(rows),), 8.0)}
        noise = SampleNoise([seeds[i] for i in rows], "test", (3, 8, 8), frames=range(3))
        denoiser = Denoiser(net, Objective(), given, guidance=2.0, rescale=0.5, time=True)
        return sample(denoiser, lambda: noise().double(), Sampling(sampler=sampler, steps=5))

    together = draw([0, 1, 2, 3])
    torch.testing.assert_close(together[2:3], draw([2]), rtol=0, atol=1e-12)
    assert (together[0] - together[1]).abs().mean() > 0.01


def test_guidance_leaves_the_condition_alone_at_one_and_extrapolates_beyond():
    def network(x, t, embedding, keep=None):
        value = embedding.view(-1, 1, 1, 1, 1) if keep is None else (embedding * keep[:, None]).view(-1, 1, 1, 1, 1)
        return torch.zeros_like(x) + value

    given = {"embedding": torch.tensor([[0.2], [0.3]])}
    x = torch.zeros(2, 1, 3, 4, 4)
    for guidance, expected in ((1.0, 1.0), (2.0, 2.0), (0.0, 0.0)):
        x0, _ = Denoiser(network, Objective(prediction="x0"), given, guidance=guidance)(x, 500)
        torch.testing.assert_close(x0[:, 0, 0, 0, 0], expected * given["embedding"][:, 0])


def test_guidance_acts_within_its_interval_and_costs_nothing_outside():
    rows = []

    def network(x, t, embedding, keep=None):
        rows.append(len(x))
        kept = torch.ones(len(x)) if keep is None else keep
        return torch.zeros_like(x) + (embedding * kept[:, None]).view(-1, 1, 1, 1, 1)

    x, given = torch.zeros(2, 1, 3, 4, 4), {"embedding": torch.tensor([[0.2], [0.3]])}
    denoiser = Denoiser(network, Objective(prediction="x0"), given, guidance=3.0, interval=(0.25, 0.75))
    for t, scale in ((999, 1), (750, 1), (749, 3), (249, 3), (248, 1), (0, 1)):  # 749 is share 0.75 of 1000 steps
        x0, _ = denoiser(x, t)
        torch.testing.assert_close(x0[:, 0, 0, 0, 0], scale * given["embedding"][:, 0])
    assert rows == [2, 2, 4, 4, 2, 2]


def test_steps_trail_from_the_noisiest():
    schedule = make_schedule(Objective())
    assert schedule.trailing(4) == [999, 749, 499, 249]
    assert schedule.trailing(1000) == list(range(999, -1, -1))
    with pytest.raises(ValueError, match="1 to 1000"):
        schedule.trailing(1001)


def test_given_frames_stand_as_they_are():
    known = torch.zeros(1, 3, 4, 2, 2)
    known[:, 1] = torch.tensor([0.1, 0.2, 0.3, 1.0]).view(4, 1, 1)

    def network(x, t, known):
        return torch.full_like(x, 0.5)

    x0, _ = Denoiser(network, Objective(prediction="x0"), {"known": known})(torch.zeros(1, 3, 3, 2, 2), 500)
    torch.testing.assert_close(x0[0, :, :, 0, 0], torch.tensor([[0.5, 0.5, 0.5], [0.1, 0.2, 0.3], [0.5, 0.5, 0.5]]))
