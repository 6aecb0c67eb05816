"""A network's forward pass as a CUDA graph, so that a sampling step costs its arithmetic and not its launches.

A video is sampled in hundreds of steps of the same shapes, and the space-time networks launch thousands of kernels in
each. On one clip that takes a processor ten times as long as the kernels take the card.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EAGER_CALLS = 1  # of each shape, before the capture: they choose algorithms
KEPT = 8  # sets of shapes of a network: with guidance and without, of a whole batch and of the last one


@dataclass
class _Captured:
    """The calls of one set of shapes: how many there were, and from the capture on the tensors that a replay uses."""

    calls: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    inputs: dict[str, Tensor] | None = None
    output: Tensor | None = None


class Pool:
    """The memory of the graphs of networks that take turns. PyTorch takes it back with the last of the graphs."""

    def __init__(self) -> None:
        self._handle: Any = None

    def handle(self) -> Any:
        """The pool's name, which is PyTorch's from the first capture on."""
        self._handle = self._handle or torch.cuda.graph_pool_handle()
        return self._handle


class Replayed:
    """Calls a network without gradients; on a GPU, from the second call of the same shapes on, as a CUDA graph.

    The graphs of networks that were given the same `pool` share its memory, which is as large as the largest needs.
    That is safe because an output is copied before the next replay, and inputs lie elsewhere. Of more than `KEPT` sets
    of shapes, the graph that was asked for longest ago goes. The network's weights must stay where they are.
    """

    def __init__(self, network: Callable[..., Tensor], pool: Pool) -> None:
        self.network, self.pool = network, pool
        self.captured: dict[tuple[Any, ...], _Captured] = {}

    def __call__(self, x: Tensor, t: Tensor, *, time: bool | None = None, **conditions: Tensor) -> Tensor:
        """Takes what the network takes: tensors on its device, and for U-Nets `time`."""
        options = {} if time is None else {"time": time}
        if not (x.is_cuda and torch.cuda.is_available()) or torch.is_grad_enabled():
            return self.network(x, t, **conditions, **options)
        given = {"x": x, "t": t, **conditions}
        key = (time, torch.is_autocast_enabled("cuda"), *((n, v.shape, v.dtype) for n, v in sorted(given.items())))
        # The latest one stands last.
        known = self.captured[key] = self.captured.pop(key) if key in self.captured else _Captured()
        if len(self.captured) > KEPT:
            del self.captured[next(iter(self.captured))]
        known.calls += 1
        if known.calls <= EAGER_CALLS:
            return self.network(**given, **options)
        if known.graph is None:
            known.inputs = {name: value.clone() for name, value in given.items()}
            known.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(known.graph, pool=self.pool.handle()):
                known.output = self.network(**known.inputs, **options)
        assert known.inputs is not None
        assert known.output is not None
        for name, value in given.items():
            known.inputs[name].copy_(value)
        known.graph.replay()
        return known.output.clone()
