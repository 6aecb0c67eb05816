"""The forward and backward pass of one micro-batch, on one GPU as a CUDA graph.

A graph launches a step's thousands of small kernels at once, which is most of a small network's time. All shapes are
those of the first batch, and the loss reads no value on the processor, so nothing about a step is lost in it.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mav.diffusion.noise import generator
from mav.training.monitoring.utilisation import counted
from mav.training.sharding import SpreadNetwork
from mav.training.validation import Batch, Loss

EAGER_STEPS = 3  # before the capture: they choose algorithms and make the gradients, whose places the graph keeps


class MicroStep:
    """Adds the gradients of a micro-batch to those of the parameters, and returns its share of the step's loss."""

    def __init__(
        self, loss: Loss, network: SpreadNetwork, autocast: AbstractContextManager[Any], parts: float, device: str,
        world_size: int,
    ) -> None:  # fmt: skip
        """parts: the micro-batches of a worker in a step; their mean, where not all workers have as many."""
        self.loss, self.network, self.autocast, self.parts = loss, network, autocast, parts
        self.device = torch.device(device)
        self.on_card = self.device.type == "cuda" and torch.cuda.is_available()
        drops = [m for m in network.network.modules() if isinstance(m, nn.Dropout) and m.p > 0]
        self.has_dropout = bool(drops)
        # Checkpointing that must repeat a dropout reads the generator's state, which a capture forbids; an exchange
        # between workers is left to its own hooks.
        config = getattr(network.network, "config", None)
        repeats = self.has_dropout and getattr(config, "checkpoint_levels", 0) > 0
        self.replays = self.on_card and world_size == 1 and not repeats
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: Batch = {}
        self.output = torch.zeros(())
        self.calls = 0
        self.flops = 0.0  # the model's, of a micro-batch; known after the first

    def staged(self, batch: Batch) -> Batch:
        """The batch in memory from which a card copies without the processor waiting. For the loading thread."""
        return {name: value.pin_memory() for name, value in batch.items()} if self.on_card else batch

    def __call__(self, batch: Batch, key: tuple[int | str, ...], *, exchange: bool, counts: bool = True) -> Tensor:
        """key: what dropout is a function of, so that a resumed training drops the same; exchange: between workers.

        counts: False for a micro-batch that only keeps this worker in step with others, which have one more.
        """
        if self.has_dropout:
            torch.manual_seed(generator(*key, "dropout").initial_seed())
        if not self.replays:
            batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
            with nullcontext() if exchange else self.network.no_sync():
                return self._both_ways(batch, counts)
        if not self.inputs:
            self.inputs = {name: value.to(self.device) for name, value in batch.items()}
        for name, value in batch.items():
            self.inputs[name].copy_(value, non_blocking=True)
        self.calls += 1
        if self.calls <= EAGER_STEPS:
            # On a stream of its own, as a capture is, so that nothing is made on one stream and freed on the other.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                loss = self._both_ways(self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            return loss
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            # The loading thread goes on asking for memory meanwhile.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.output = self._both_ways(self.inputs)
        self.graph.replay()
        return self.output

    def _both_ways(self, batch: Batch, counts: bool = True) -> Tensor:
        with self.autocast:
            if not self.flops:
                loss, self.flops = counted(lambda: self.loss(self.network.forward, batch))
            else:
                loss = self.loss(self.network.forward, batch)
            loss = loss / self.parts if counts else loss * 0
        loss.backward()
        return loss.detach()
