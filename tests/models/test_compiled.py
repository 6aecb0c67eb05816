"""A compiled network computes what the eager one does, one graph a block, and compiles nothing again in training."""

from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters

from mav.models.unet import UNet
from mav.recipes import Level, UNetConfig


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "backend"),
    [
        # More than the eight graphs that dynamo allows at first.
        pytest.param([8, 16, 24, 32], aot_eager, id="many kinds of blocks, traced only"),
        pytest.param([8], None, id="inductor"),  # a minute of a C++ compiler
    ],
)
def test_a_compiled_network_is_the_eager_one_and_is_not_compiled_again(
    channels: list[int], backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.manual_seed(0)
    levels = tuple(Level(channels=c, blocks=2, attention=c in (8, 32)) for c in channels)
    net = UNet(UNetConfig(levels=levels, embedding_dim=16, head_channels=8, max_frames=3))
    # Kinds of shapes: a level's first block in the encoder, where it widens, its others, and those of the decoder.
    kinds = 3 * len(channels) - 1
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    given = {
        "keep": torch.tensor([True, False]),
        "embedding": torch.nn.functional.normalize(torch.randn(2, 16), dim=-1),
        "fps": torch.tensor([4.0, 8.0]),
    }

    def step() -> torch.Tensor:
        net.zero_grad(set_to_none=True)
        out: torch.Tensor = net(clip, t, **given)
        out.square().mean().backward()
        return out.detach()

    clip, t = torch.randn(2, 3, 3, 16, 16), torch.tensor([100.0, 900.0])
    eager, eager_gradients = step(), [p.grad for p in net.parameters()]
    counters.clear()
    net.compile_blocks()
    compiled = step()
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    for (name, parameter), gradient in zip(net.named_parameters(), eager_gradients, strict=True):
        assert parameter.grad is not None, name
        assert gradient is not None, name
        distance = (parameter.grad - gradient).norm() / gradient.norm()
        assert distance < 1e-3, name

    assert counters["stats"]["unique_graphs"] == kinds
    assert not counters["graph_break"]
    with torch.no_grad():  # held-out losses
        net.eval()
        torch.testing.assert_close(net(clip, t, **given), eager, rtol=1e-4, atol=1e-5)
        net.train()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(10):
            clip, t = torch.randn_like(clip), 1000 * torch.rand(2)
            step()
