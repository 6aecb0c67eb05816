"""What a recipe's networks cost before they are trained: parameters, arithmetic and memory, measured on shapes.

Each training stage's network is built on the meta device, which knows shapes and holds no numbers, and makes one real
forward and backward pass on the shapes that its stage trains on. Arithmetic is counted operator by operator;
activations are what autograd keeps for the backward pass.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mav.models.prior import Prior
from mav.models.unet import MASK_CHANNELS, UNet
from mav.recipes import Cluster, Optimisation, Recipe
from mav.training.sharding import sharded_blocks
from mav.training.stages import TRAININGS, VIDEO_STAGES

STATE_BYTES = 20  # a parameter in float32, its gradient, AdamW's two moments, its moving average
POST_HOC_BYTES = 8  # two more averages
GATHERED, FLOAT_BYTES = 2, 4  # blocks that are whole at once on a sharded worker: the current one and the next
COUNTED = 2  # samples that the count is made with; one would hide what a batch shares


@dataclass(frozen=True)
class NetworkCost:
    """The cost of one stage's network. FLOPs are of forward, backward and recomputation; bytes are on one worker."""

    stage: str
    parameters: int
    sample: tuple[int, ...]  # shape of one training sample, as the network takes it
    batch_size: int  # over all workers
    flops_per_sample: float
    flops_per_step: float  # of the whole batch, over all workers
    flops_in_all: float
    state_bytes: int  # with shards: this worker's part, and the blocks that are whole at once
    activation_bytes: int  # of one micro-batch


def network_costs(recipe: Recipe) -> list[NetworkCost]:
    """Measures the seven networks in their order of training. Nothing is allocated: a 3B network takes seconds."""
    return [_cost(stage, recipe) for stage in TRAININGS if stage != "clip"]


def _cost(stage: str, recipe: Recipe) -> NetworkCost:
    network, inputs = _network(stage, recipe)
    o: Optimisation = recipe.section_of(stage).optimisation
    parameters = sum(p.numel() for p in network.parameters())
    if o.precision == "bfloat16":  # activations are kept in the precision that autocast computes in
        network.to(torch.bfloat16)
        inputs = {name: x.to(torch.bfloat16) if x.is_floating_point() else x for name, x in inputs.items()}
    flops, kept = _measured(network.train(), inputs)
    micro = o.batch_size // (o.accumulation * recipe.cluster.workers)
    return NetworkCost(
        stage=stage, parameters=parameters, sample=tuple(inputs["x"].shape[1:]), batch_size=o.batch_size,
        flops_per_sample=flops, flops_per_step=flops * o.batch_size, flops_in_all=flops * o.samples,
        state_bytes=_state_bytes(network, o, recipe.cluster), activation_bytes=int(kept * micro),
    )  # fmt: skip


def _state_bytes(network: nn.Module, o: Optimisation, cluster: Cluster) -> int:
    """Bytes on one worker that do not depend on the batch."""
    each = STATE_BYTES + POST_HOC_BYTES * (o.export == "post_hoc")
    parameters = sum(p.numel() for p in network.parameters())
    if cluster.sharding == "ddp" or cluster.workers == 1:
        return each * parameters
    whole = max(sum(p.numel() for p in module.parameters()) for module in sharded_blocks(network))
    return each * parameters // cluster.workers + GATHERED * FLOAT_BYTES * whole


def _network(stage: str, recipe: Recipe) -> tuple[nn.Module, dict[str, Tensor]]:
    """The stage's network and COUNTED samples of what it trains on, all on the meta device."""
    with torch.device("meta"):
        each = torch.zeros(COUNTED)
        if stage == "train-prior":
            prior = recipe.train_prior.network
            tokens = torch.zeros(COUNTED, prior.text_context, dtype=torch.long)
            x = torch.zeros(COUNTED, prior.embedding_dim)
            return Prior(prior), {"x": x, "t": each, "tokens": tokens, "text_embedding": x}
        # The config: a video stage's is its image network's, with time.
        section, sizes, video = recipe.section_of(stage), recipe.cascade, stage in VIDEO_STAGES
        image, side = {
            "decoder": (recipe.train_decoder, sizes.base_size),
            "sr-low": (recipe.train_sr_low, sizes.low_size),
            "sr-high": (recipe.train_sr_high, sizes.high_size),
        }[stage.removeprefix("train-").removesuffix("-video").replace("interpolation", "decoder")]
        frames, masked = (section.frames or sizes.frames) if video else 0, stage == "train-interpolation"
        config = dataclasses.replace(image.network, max_frames=frames, masked_frames=masked)
        # The inputs that this config asks for.
        size = round(side * section.crop)
        x = torch.zeros(COUNTED, max(1, frames), config.in_channels, size, size)
        inputs = {"x": x, "t": each}
        if config.embedding_dim:
            inputs["embedding"] = torch.zeros(COUNTED, config.embedding_dim)
        if video:
            inputs["fps"] = each
        if config.low_resolution:
            inputs |= {"low": x, "low_noise": each}
        if config.masked_frames:
            inputs["known"] = torch.zeros(COUNTED, frames, MASK_CHANNELS, size, size)
        return UNet(config), inputs


def _measured(network: nn.Module, inputs: dict[str, Tensor]) -> tuple[float, float]:
    """FLOPs of forward and backward, and bytes kept between the two, for each sample."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, _kept_bytes(network) as kept:
        network(**inputs).float().square().mean().backward()
    return counter.get_total_flops() / COUNTED, sum(kept.values()) / COUNTED


@contextlib.contextmanager
def _kept_bytes(network: nn.Module) -> Iterator[dict[int, int]]:
    """Collects the bytes of every distinct storage that autograd saves, except those of parameters."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    seen: dict[int, int] = {}
    held = []  # keeps the storages alive, because the address of a freed one may be used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage.nbytes()
            held.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield seen
