"""x0, eps and v are one knowledge; so are their losses; and the learned variance learns what the posterior is."""

import dataclasses

import pytest
import torch

from mav.diffusion.noise import Draws
from mav.diffusion.objective import diffusion_loss, draw_noise, target, to_eps, to_x0, weights
from mav.diffusion.schedule import make_schedule
from mav.recipes import Objective

KINDS = ["x0", "eps", "v"]


def draws(rows: int, purpose: str = "test") -> Draws:
    return Draws((0, purpose, i) for i in range(rows))


def loss_of(network, x0, conditions, objective, draws):
    drawn = draw_noise(draws, x0.shape[1:], objective, drops="embedding" in conditions)
    return diffusion_loss(network, x0, conditions, drawn, objective, make_schedule(objective))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_perfect_prediction_gives_back_the_clean_sample(kind, name):
    schedule = make_schedule(Objective(schedule=name))
    x0, eps = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    t = torch.arange(0, 1000, 20)
    alpha, sigma = schedule.at(t, x0)
    x_t = schedule.noised(x0, eps, t)
    keep = alpha[:, 0] > 1e-3
    found = to_x0(target(x0, eps, alpha, sigma, kind), x_t, alpha, sigma, kind)
    torch.testing.assert_close(found[keep], x0[keep], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(to_eps(x0, x_t, alpha, sigma), eps, rtol=1e-6, atol=1e-6)


def test_the_three_losses_are_one_with_their_weights():
    schedule = make_schedule(Objective())
    x0, eps, error = (torch.randn(40, 3, dtype=torch.float64) for _ in range(3))
    t = torch.arange(0, 1000, 25)
    alpha, sigma = schedule.at(t, x0)
    x_t, snr = schedule.noised(x0, eps, t), schedule.snr[t]
    guess = {"x0": x0 + error}
    guess["eps"] = to_eps(guess["x0"], x_t, alpha, sigma)
    guess["v"] = alpha * guess["eps"] - sigma * guess["x0"]
    losses = {k: (guess[k] - target(x0, eps, alpha, sigma, k)).square().mean(1) * weights(snr, 5.0, k) for k in KINDS}
    torch.testing.assert_close(losses["eps"], losses["x0"], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(losses["v"], losses["x0"], rtol=1e-6, atol=1e-8)


def test_zero_terminal_snr_ends_in_pure_noise_and_v_loss_is_finite_there():
    schedule = make_schedule(Objective(zero_terminal_snr=True))
    assert schedule.alpha[-1] == 0
    assert torch.isfinite(weights(schedule.snr, 5.0, "v")).all()
    torch.testing.assert_close(schedule.alpha[0], make_schedule(Objective()).alpha[0])


def test_shift_lowers_the_log_snr_by_twice_its_log():
    plain, shifted = make_schedule(Objective()), make_schedule(Objective(shift=2.0))
    torch.testing.assert_close(shifted.snr * 4, plain.snr, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_schedules_only_add_noise(name):
    schedule = make_schedule(Objective(schedule=name))
    assert (schedule.alpha.diff() < 0).all()
    assert schedule.alpha[0] > 0.99
    assert schedule.alpha[-1] < 0.1
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(1000, dtype=torch.float64))


def test_loss_of_a_sample_does_not_depend_on_its_batch():
    objective = Objective()
    x0 = torch.randn(4, 1, 3, 8, 8)

    def network(x, t, **conditions):
        return x * t.view(-1, 1, 1, 1, 1) / 1000

    whole = loss_of(network, x0, {}, objective, draws(4))
    alone = loss_of(network, x0[2:3], {}, objective, Draws([(0, "test", 2)]))
    torch.testing.assert_close(whole[2:3], alone)


def test_conditions_are_dropped_at_the_asked_rate():
    objective = Objective(condition_dropout=0.25)
    seen = []

    def network(x, t, keep, embedding):
        seen.append(keep)
        return x

    loss_of(network, torch.zeros(2000, 1), {"embedding": torch.zeros(2000, 2)}, objective, draws(2000))
    assert 0.2 < 1 - seen[0].float().mean() < 0.3


def test_learned_variance_prefers_the_true_posterior_variance():
    """With a perfect mean the hybrid loss is lowest when the variance channel chooses the posterior's own variance."""
    objective = Objective(prediction="eps_learned_sigma", min_snr_gamma=0.0)
    schedule = make_schedule(objective)
    x0 = torch.zeros(64, 1, 3, 4, 4)

    def network(fraction):
        def predict(x, t):
            sigma = schedule.sigma[t.long()].to(x).view(-1, 1, 1, 1, 1)
            return torch.cat([x / sigma, torch.full_like(x, fraction)], dim=2)

        return predict

    low, middle, high = (loss_of(network(f), x0, {}, objective, draws(64)).mean() for f in (-1.0, 0.0, 1.0))
    assert torch.isfinite(torch.stack([low, middle, high])).all()
    assert low < middle < high


def test_the_variance_of_given_frames_is_not_trained():
    """Otherwise a mean that nothing trains would decide it: of the others, the bound is the same whatever that is."""
    objective = Objective(prediction="eps_learned_sigma")
    x0, mask = torch.rand(2, 4, 3, 4, 4) * 2 - 1, torch.zeros(2, 4, 1, 4, 4)
    mask[:, 0] = 1
    losses, gradients = [], []
    for mean_of_given in (0.0, 9.0):
        output = torch.zeros(2, 4, 6, 4, 4)
        output[:, 0] = mean_of_given
        output.requires_grad_()
        known = torch.cat([x0 * mask, mask], dim=2)
        loss = loss_of(lambda x, t, known, output=output: output, x0, {"known": known}, objective, draws(2))
        loss.sum().backward()
        losses.append(loss.detach())
        gradients.append(output.grad)
    torch.testing.assert_close(losses[0], losses[1])
    assert (gradients[1][:, 0] == 0).all()
    assert (gradients[1][:, 1:] != 0).any(dim=2).all()
    alone = loss_of(lambda x, t: torch.zeros(2, 3, 6, 4, 4), x0[:, 1:], {}, objective, draws(2))
    assert losses[0].shape == alone.shape


def test_given_frames_are_not_asked_for():
    """F^'s loss is the mean over the frames it was not given, whatever it predicts for the others."""
    objective = Objective(prediction="x0", min_snr_gamma=0.0)
    x0 = torch.zeros(2, 4, 3, 4, 4)
    mask = torch.tensor([[1, 0, 0, 1], [1, 0, 0, 0]]).view(2, 4, 1, 1, 1).expand(-1, -1, 1, 4, 4)
    known = torch.cat([x0, mask.float()], dim=2)

    def network(x, t, known):
        return torch.where(known[:, :, 3:] > 0, 9.0, 0.5).expand_as(x)

    loss = loss_of(network, x0, {"known": known}, objective, draws(2))
    torch.testing.assert_close(loss, torch.full((2,), 0.25))


def test_how_an_error_changes_from_frame_to_frame_is_weighed():
    """An error that all frames share costs less, one that turns in every frame more, one of independent frames as much;
    what is right costs nothing, and of a clip of one frame all errors cost as much as ever."""
    plain = Objective(prediction="x0", min_snr_gamma=0.0)
    moving = dataclasses.replace(plain, motion_weight=2.0)
    torch.manual_seed(0)

    def ratio(error, conditions=None):
        x0 = torch.zeros_like(error)
        one, two = (loss_of(lambda x, t, **_: error, x0, conditions or {}, o, draws(2)) for o in (plain, moving))
        return (two / one).mean().item()

    shape = (2, 8, 3, 16, 16)
    turning = torch.tensor([0.5, -0.5]).repeat(4).view(1, 8, 1, 1, 1).expand(shape)
    assert ratio(torch.full(shape, 0.5)) == pytest.approx(1 / 5)
    assert ratio(turning) == pytest.approx((1 + 2 * 4) / 5)
    assert ratio(torch.randn(shape)) == pytest.approx(1, abs=0.05)
    assert ratio(torch.full((2, 1, 3, 16, 16), 0.5)) == pytest.approx(1)
    # Between given frames at both ends, a constant error changes twice in seven steps.
    mask = torch.tensor([1, 0, 0, 0, 0, 0, 0, 1.0]).view(1, 8, 1, 1, 1).expand(2, -1, 1, 16, 16)
    known = torch.cat([torch.zeros(shape), mask], dim=2)
    assert ratio(torch.full(shape, 0.5), {"known": known}) == pytest.approx((1 + 2 * 2 / 7) / 5)
