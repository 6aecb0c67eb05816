"""A network on several workers, as the recipe chooses: replicas (DDP), or shards of every parameter (FSDP2)."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mav.models.prior import Block
from mav.models.unet import LevelBlock
from mav.recipes import Optimisation


@dataclass(frozen=True)
class SpreadNetwork:
    """A network to train on this rank."""

    network: nn.Module  # whose parameters are optimised, averaged and saved
    forward: nn.Module  # what the loss calls
    # Used around a backward pass whose gradients are only part of a step's, and are not exchanged yet.
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext


def spread(network: nn.Module, o: Optimisation, world_size: int, device: str, sharding: str) -> SpreadNetwork:
    """Spreads a network over the workers: the network itself on one, replicas of it, or shards of a copy.

    With shards the network itself stays whole, for `gather` at the end.
    """
    cuda = device.startswith("cuda")
    if world_size == 1 or sharding == "ddp":
        network = network.to(device).train()
        if world_size == 1:
            return SpreadNetwork(network, network)
        devices = [torch.device(device)] if cuda else None
        replica = nn.parallel.DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
        return SpreadNetwork(network, replica, replica.no_sync)

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    sharded = copy.deepcopy(network).to(device).train()
    for parameter in sharded.parameters():
        parameter.data = parameter.data.contiguous()  # shards are rows, and channels-last weights have none
    low = torch.bfloat16 if o.precision == "bfloat16" else None
    # Inputs are not cast: noise steps and pixels stay exact, and autocast lowers the precision where that is allowed.
    precision = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh("cuda" if cuda else "cpu", (world_size,))
    for module in sharded_blocks(sharded):
        fully_shard(module, mesh=mesh, mp_policy=precision)
    fully_shard(sharded, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
    return SpreadNetwork(sharded, sharded)


def sharded_blocks(network: nn.Module) -> list[nn.Module]:
    """The parts of a network whose parameters are gathered and freed together."""
    return [module for module in network.modules() if isinstance(module, (LevelBlock, Block))]


@torch.no_grad()
def gather(trained: nn.Module, whole: nn.Module, device: str) -> None:
    """Makes every rank's network whole again, with the trained values, and puts it into evaluation mode."""
    if trained is not whole:
        state = trained.state_dict().items()
        whole.load_state_dict({name: v.full_tensor() if hasattr(v, "full_tensor") else v for name, v in state})
    whole.to(device).eval()
