"""The prior: what it reads, and that dropping the text drops all of it."""

import torch

from mav.models.prior import Prior, from_scale, to_scale
from mav.recipes import PriorConfig

CONFIG = PriorConfig(embedding_dim=8, vocabulary=50, text_context=6, width=16, depth=2, heads=2)


def inputs(rows: int = 3) -> dict[str, torch.Tensor]:
    return {
        "tokens": torch.randint(50, (rows, 6), generator=torch.Generator().manual_seed(0)),
        "text_embedding": from_scale(torch.randn(rows, 8, generator=torch.Generator().manual_seed(1))),
    }


def test_scale_round_trip():
    unit = from_scale(torch.randn(5, 8))
    torch.testing.assert_close(to_scale(unit).norm(dim=-1), torch.full((5,), 8**0.5))
    torch.testing.assert_close(from_scale(to_scale(unit)), unit)


def test_every_input_matters_and_every_parameter_learns():
    net, given = Prior(CONFIG), inputs()
    x, t = torch.randn(3, 8), torch.tensor([5.0, 500.0, 999.0])
    base = net(x, t, **given)
    assert base.shape == (3, 8)
    for change in ({"tokens": (given["tokens"] + 1) % 50}, {"text_embedding": -given["text_embedding"]}):
        assert not torch.allclose(net(x, t, **(given | change)), base)
    assert not torch.allclose(net(x + 1, t, **given), base)
    assert not torch.allclose(net(x, t / 2, **given), base)
    net(x, t, keep=torch.tensor([True, False, True]), **given).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_dropped_text_leaves_no_trace():
    net, given = Prior(CONFIG), inputs()
    x, t, keep = torch.randn(3, 8), torch.full((3,), 100.0), torch.tensor([True, False, False])
    other = {"tokens": given["tokens"].flip(0), "text_embedding": given["text_embedding"].flip(0)}
    first, second = net(x, t, keep=keep, **given), net(x, t, keep=keep, **other)
    torch.testing.assert_close(first[1:], second[1:])
    assert not torch.allclose(first[0], second[0])
