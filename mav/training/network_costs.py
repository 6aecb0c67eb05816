"""What a recipe's networks cost before they are trained: parameters, arithmetic and memory.

Each training stage's network makes a real forward and backward pass on a CUDA device that holds no numbers
(`mav.training.fake_device`), on a micro-batch of the shapes that its stage trains on and in its stage's precision. So
counted is what autocast, autograd and recomputation really keep at the worst moment.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mav.errors import UserError
from mav.models.clip import ClipModel
from mav.models.prior import Prior
from mav.models.unet import MASK_CHANNELS, UNet
from mav.recipes import Cluster, Optimisation, Recipe
from mav.recipes.training import crop_side
from mav.training.fake_device import fake_cuda
from mav.training.sharding import sharded_blocks
from mav.training.stages import INPUTS, TRAININGS, VIDEO_STAGES

STATE_BYTES = 20  # a parameter in float32, its gradient, AdamW's two moments, its moving average
POST_HOC_BYTES = 8  # two more averages
GATHERED, FLOAT_BYTES = 2, 4  # blocks that are whole at once on a sharded worker: the current one and the next
DURING_BACKWARD = 8  # bytes of a parameter, with its gradient, that the measured step holds itself
WORKSPACE = 256 * 2**20  # bytes that cuBLAS and cuDNN take for themselves
SPARE = 0.1  # of a card's memory, which `fitted` leaves
Report = Callable[[str, int, int], None]
STAGES = tuple(stage for stage in TRAININGS if stage != "clip")


@dataclass(frozen=True)
class NetworkCost:
    """The cost of one stage's network. FLOPs are of forward and backward; bytes are on one worker."""

    stage: str
    parameters: int
    sample: tuple[int, ...]  # shape of one training sample, as the network takes it
    batch_size: int  # over all workers
    micro_batch: int  # samples that a worker computes at once
    accumulation: int
    flops_per_sample: float  # without recomputation
    recomputed_flops_per_sample: float  # of forward passes that the backward pass repeats (`checkpoint_levels`)
    flops_in_all: float  # of the whole training, over all workers, with recomputation
    state_bytes: int  # with shards: this worker's part, and the blocks that are whole at once
    activation_bytes: int  # what a step takes beyond its state when it takes most

    @property
    def peak_bytes(self) -> int:
        """The most memory that the stage takes on one worker."""
        return self.state_bytes + self.activation_bytes


def network_costs(recipe: Recipe, report: Report = lambda *_: None) -> list[NetworkCost]:
    """Measures the seven networks in their order of training. Nothing is allocated: a 3B network takes seconds.

    report: called with the stage, its place among all and their number, before each.
    """
    return [network_cost(stage, recipe) for stage in _in_turn(report)]


def fitted(recipe: Recipe, memory: float, report: Report = lambda *_: None) -> list[NetworkCost]:
    """The costs with the largest micro-batches, and so the fewest parts of a step, that take 0.9 of `memory` bytes.

    Micro-batches divide a worker's part of the batch, and each that is tried takes as long as a network of
    `network_costs`. Raises UserError where not even one sample fits.
    """
    return [_fitted(stage, recipe, (1 - SPARE) * memory) for stage in _in_turn(report)]


def _in_turn(report: Report) -> Iterator[str]:
    for place, stage in enumerate(STAGES):
        report(stage, place, len(STAGES))
        yield stage


def _fitted(stage: str, recipe: Recipe, memory: float) -> NetworkCost:
    share = recipe.section_of(stage).optimisation.batch_size // recipe.cluster.workers
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    best, low, high = None, 0, len(sizes)
    while low < high:  # memory grows with the micro-batch
        middle = (low + high) // 2
        cost = network_cost(stage, recipe, share // sizes[middle])
        if cost.peak_bytes <= memory:
            best, low = cost, middle + 1
        else:
            high = middle
    if best is None:
        raise UserError(
            f"{stage} does not fit {memory / 1e9:.3g} GB with one sample at a time: raise `checkpoint_levels` of its "
            "image network, set `cluster.sharding: fsdp`, or make the network smaller."
        )
    return best


def network_cost(stage: str, recipe: Recipe, accumulation: int = 0) -> NetworkCost:
    """Measures one stage's network; accumulation: parts of a step instead of the recipe's."""
    o: Optimisation = recipe.section_of(stage).optimisation
    parts = accumulation or o.accumulation
    micro = o.batch_size // (parts * recipe.cluster.workers)
    with fake_cuda() as device:
        network, inputs = _network(stage, recipe, micro)
        parameters, sample = sum(p.numel() for p in network.parameters()), tuple(inputs["x"].shape[1:])
        _step(network.train(), inputs, o.precision, parts > 1)
    flops, recomputed = device.flops / micro, device.recomputed_flops / micro
    state = _state_bytes(network, o, recipe.cluster) + _clip_bytes(stage, recipe)
    return NetworkCost(
        stage=stage, parameters=parameters, sample=sample, batch_size=o.batch_size, micro_batch=micro,
        accumulation=parts, flops_per_sample=flops, recomputed_flops_per_sample=recomputed,
        flops_in_all=(flops + recomputed) * o.samples, state_bytes=state,
        activation_bytes=max(0, device.peak - DURING_BACKWARD * parameters) + WORKSPACE,
    )  # fmt: skip


def _step(network: nn.Module, inputs: dict[str, Tensor], precision: str, accumulates: bool) -> None:
    """One micro-batch's passes; where it is not a step's first, there are gradients already."""
    if accumulates:
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
        network(**inputs).float().square().mean().backward()


def _clip_bytes(stage: str, recipe: Recipe) -> int:
    """Bytes of the CLIP that a video stage embeds first frames with."""
    if "clip" not in INPUTS[stage]:
        return 0
    section = recipe.clip
    with torch.device("meta"):
        clip = ClipModel(architecture=section.architecture) if section.pretrained else ClipModel(section.network)
    return sum(FLOAT_BYTES * p.numel() for p in clip.parameters())


def _state_bytes(network: nn.Module, o: Optimisation, cluster: Cluster) -> int:
    """Bytes on one worker that do not depend on the batch."""
    each = STATE_BYTES + POST_HOC_BYTES * (o.export == "post_hoc")
    parameters = sum(p.numel() for p in network.parameters())
    if cluster.sharding == "ddp" or cluster.workers == 1:
        return each * parameters
    whole = max(sum(p.numel() for p in module.parameters()) for module in sharded_blocks(network))
    return each * parameters // cluster.workers + GATHERED * FLOAT_BYTES * whole


def _network(stage: str, recipe: Recipe, count: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """The stage's network and `count` samples of what it trains on, all on the device."""
    with torch.device("cuda"):
        each = torch.zeros(count)
        if stage == "train-prior":
            prior = recipe.train_prior.network
            tokens = torch.zeros(count, prior.text_context, dtype=torch.long)
            x = torch.zeros(count, prior.embedding_dim)
            return Prior(prior), {"x": x, "t": each, "tokens": tokens, "text_embedding": x}
        # The config: a video stage's is its image network's, with time.
        section, sizes, video = recipe.section_of(stage), recipe.cascade, stage in VIDEO_STAGES
        image, side, factor = {
            "decoder": (recipe.train_decoder, sizes.base_size, 1),
            "sr-low": (recipe.train_sr_low, sizes.low_size, sizes.low_size // sizes.base_size),
            "sr-high": (recipe.train_sr_high, sizes.high_size, sizes.high_size // sizes.low_size),
        }[stage.removeprefix("train-").removesuffix("-video").replace("interpolation", "decoder")]
        frames, masked = (section.frames or sizes.frames) if video else 0, stage == "train-interpolation"
        config = dataclasses.replace(image.network, max_frames=frames, masked_frames=masked)
        # The inputs that this config asks for.
        size = crop_side(side, factor, section.crop)
        x = torch.zeros(count, max(1, frames), config.in_channels, size, size)
        inputs = {"x": x, "t": each}
        if config.embedding_dim:
            inputs["embedding"] = torch.zeros(count, config.embedding_dim)
        if video:
            inputs["fps"] = each
        if config.low_resolution:
            inputs |= {"low": x, "low_noise": each}
        if config.masked_frames:
            inputs["known"] = torch.zeros(count, frames, MASK_CHANNELS, size, size)
        return UNet(config), inputs
