"""A network on several workers, as the recipe chooses: replicas (DDP), or shards of every parameter (FSDP2).

No worker ever holds a sharded network whole: the first reads or draws its values, every worker builds the same network
without values and gets its shards of them, and at the end the first alone puts it together again for its export.
"""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mav.errors import UserError
from mav.models.prior import Block
from mav.models.unet import LevelBlock
from mav.recipes import Optimisation

NODE_WORKERS = "LOCAL_WORLD_SIZE"  # the variable in which launchers say how many workers a node has


@dataclass(frozen=True)
class SpreadNetwork:
    """A network to train on this rank."""

    network: nn.Module  # whose parameters are optimised, averaged and saved
    forward: nn.Module  # what the loss calls
    # Used around a backward pass whose gradients are only part of a step's, and are not exchanged yet.
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext
    sharded: bool = False


def spread(network: nn.Module, o: Optimisation, world_size: int, device: str, sharding: str) -> SpreadNetwork:
    """Spreads a network over the workers: the network itself on one, replicas of it, or shards of a copy.

    sharding: `fsdp` shards every parameter over all workers; `hsdp` over those of a node, and nodes hold replicas. A
    network without blocks to shard, as CLIP, is replicated. Of a sharded network only the first rank's values count;
    the network itself keeps none until `gather`.
    """
    cuda = device.startswith("cuda")
    if world_size == 1 or sharding == "ddp" or not sharded_blocks(network):
        network = network.to(device).train()
        if world_size == 1:
            return SpreadNetwork(network, network)
        devices = [torch.device(device)] if cuda else None
        replica = nn.parallel.DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)
        return SpreadNetwork(network, replica, replica.no_sync)

    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    # Without values, the network costs nothing.
    assert not list(network.buffers()), "a buffer that is not saved would be lost"
    # Shards are rows, and channels-last weights have none; and what is sent is the memory as it lies.
    values = {name: value.contiguous() for name, value in network.state_dict().items()} if dist.get_rank() == 0 else {}
    sharded = copy.deepcopy(network.to("meta")).train()
    for parameter in sharded.parameters():
        parameter.data = parameter.data.contiguous()
    low = torch.bfloat16 if o.precision == "bfloat16" else None
    # Inputs are not cast: noise steps and pixels stay exact, and autocast lowers the precision where that is allowed.
    precision = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    shape, names = (_by_nodes(world_size), ("node", "worker")) if sharding == "hsdp" else ((world_size,), ("worker",))
    mesh = init_device_mesh("cuda" if cuda else "cpu", shape, mesh_dim_names=names)
    for module in sharded_blocks(sharded):
        fully_shard(module, mesh=mesh, mp_policy=precision)
    # What is outside of the blocks is used first and last, so it is not gathered a second time for the backward pass.
    fully_shard(sharded, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
    assert isinstance(sharded, FSDPModule)
    # Every rank gets its shards of the first rank's values.
    sharded.to_empty(device=device)
    set_model_state_dict(sharded, values, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))

    exchange = sharded.set_requires_all_reduce if sharding == "hsdp" else sharded.set_requires_gradient_sync

    @contextmanager
    def no_sync() -> Iterator[None]:
        """`hsdp` goes on reducing within nodes, where that is fast; `fsdp` keeps whole gradients meanwhile."""
        exchange(False)
        try:
            yield
        finally:
            exchange(True)

    return SpreadNetwork(sharded, sharded, no_sync, sharded=True)


def _by_nodes(world_size: int) -> tuple[int, int]:
    """Returns nodes and workers of each. Raises UserError when the nodes have not as many."""
    found = [0] * world_size
    dist.all_gather_object(found, int(os.environ.get(NODE_WORKERS, world_size)))
    if len(set(found)) > 1 or world_size % found[0]:
        raise UserError(
            f"`cluster.sharding: hsdp` needs as many workers on each node, and they are {sorted(set(found))}: choose "
            "`cluster.workers` as a multiple of a node's GPUs, or `fsdp`."
        )
    return world_size // found[0], found[0]


@contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """Puts a network into evaluation mode while the block runs, without gradients.

    Afterwards a sharded one forgets what it gathered: no backward pass makes it do so, and its weights may be others.
    """
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train()
        if reshard := getattr(network, "reshard", None):
            reshard()


def sharded_blocks(network: nn.Module) -> list[nn.Module]:
    """The parts of a network whose parameters are gathered and freed together."""
    return [module for module in network.modules() if isinstance(module, (LevelBlock, Block))]


@torch.no_grad()
def gather(trained: SpreadNetwork, whole: nn.Module, device: str) -> None:
    """Makes the network whole again, with the trained values and in evaluation mode.

    Of a sharded one the first rank's alone becomes whole; on the others it stays without values.
    """
    if trained.sharded:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(trained.network, options=options)
        if dist.get_rank():
            return
        whole.to_empty(device="cpu").load_state_dict(state)
    whole.to(device).eval()
