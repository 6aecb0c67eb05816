"""What each network trains on (Make-A-Video section 3.4): its parent, its data, its conditions, its objective.

    clip                  pairs                        contrastive; the demo's own CLIP
    train-prior           pairs, embedded              text -> CLIP image embedding; the others read no text
    train-decoder         images, embedded             CLIP image embedding -> pixels
    train-sr-low, -high   images                       low resolution -> high, on crops
    train-decoder-video   clips, D                     the first frame's CLIP embedding and fps -> a clip
    train-interpolation   clips, D^t                   the same, and some of the frames -> all of them
    train-sr-low-video    clips, SR_l                  a low-resolution clip -> high, on crops

Text never meets motion: a stage takes the inputs named for it and no other, and a video stage refuses any batch that
holds more than pixels and fps.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mav.diffusion.noise import Draws, generator
from mav.diffusion.objective import diffusion_loss, draw_noise
from mav.diffusion.pixels import downsample, to_unit
from mav.diffusion.schedule import make_schedule
from mav.models.checkpoints.unclip import start_from
from mav.models.clip import HEADS, ClipModel
from mav.models.heads import read_state
from mav.models.prior import Prior, to_scale
from mav.models.unet import UNet, add_masked_frames, inflate, known_frames
from mav.recipes import TRAINING_READS, Recipe, TrainVideo, digest, what
from mav.recipes.training import crop_side
from mav.storage import Folder
from mav.training.conditions import Prepared, draw_crop, only_motion, random_mask, with_low_resolution
from mav.training.export import export_network, write_curves
from mav.training.loop import Batch, BatchSource, Show, TrainingTask, division, train
from mav.training.monitoring.sheet import SHEET, Sheet
from mav.training.stage_setup import StageSetup
from mav.training.validation import Validation

INPUTS: dict[str, tuple[str, ...]] = {
    "clip": ("image-download",),
    "train-prior": ("image-embed", "image-select"),
    "train-decoder": ("image-download", "image-embed", "image-select"),
    "train-sr-low": ("image-download", "image-embed", "image-select"),
    "train-sr-high": ("image-download", "image-embed", "image-select"),
    "train-decoder-video": ("train-decoder", "video-shards", "video-select", "clip"),
    "train-interpolation": ("train-decoder-video", "video-shards", "video-select", "clip"),
    "train-sr-low-video": ("train-sr-low", "video-shards", "video-select"),
}
VIDEO_STAGES = ("train-decoder-video", "train-interpolation", "train-sr-low-video")
CLIP_BATCH = 256  # pictures that CLIP reads at once at the end of its training
BATCH_NORM_BATCHES = 16  # of them, that its batch norms are measured on
START = "start.json"  # which parameters came from open weights, which did not, and which of the weights are not used


def run_stage(
    stage: str, recipe: Recipe, inputs: dict[str, Folder], work: Folder, out: Folder, *, rank: int = 0,
    world_size: int = 1, device: str = "cpu", report: Callable[[dict[str, Any]], None] = lambda _: None,
    show: Show = lambda samples, picture: None, source: BatchSource | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains one stage, from the last checkpoint in `work`, and writes its artifact's files into `out` (rank 0).

    Returns its metrics. `show` gets samples of the network while it trains; `source` is that of `StageSetup`.
    """
    if extra := sorted(set(inputs) - set(INPUTS[stage])):
        raise ValueError(f"{stage} takes {', '.join(sorted(INPUTS[stage]))} and nothing else, not {', '.join(extra)}")
    # Build the network, whose new weights are a function of seed and stage.
    setup = StageSetup(stage, recipe, inputs, device, source, hollow=rank > 0 and recipe.cluster.sharding != "ddp")
    with seeded(recipe.seed, stage):
        task = TRAININGS[stage](setup)
    identity = digest([stage, what(recipe, TRAINING_READS[stage])])
    task = dataclasses.replace(task, identity=identity, validation=_validation(setup, task, rank, world_size))
    place: dict[str, Any] = {"rank": rank, "world_size": world_size, "device": device, "cluster": recipe.cluster}
    state = train(task, setup.section.optimisation, recipe.seed, work, report=report, show=show, **place)
    # The metrics: losses, what was read, and the average that was chosen.
    metrics: dict[str, Any] = {"samples": state.samples}
    if state.curves:
        metrics["loss"] = state.curves[-1]["loss"]
    if state.best_loss is not None:
        metrics |= {"validation": state.best_loss, "validation_samples": state.best_samples}
    metrics |= {"data_samples": len(task.source), "read": dict(getattr(task.source, "counts", {}))}
    if state.widths:
        metrics["average_width"] = min(state.widths, key=state.widths.__getitem__)
        metrics["validation_by_width"] = {str(width): loss for width, loss in state.widths.items()}
    if rank == 0:
        metrics |= task.finish(out)
        write_curves(out, state.curves)
    return metrics


@contextmanager
def seeded(seed: int, stage: str) -> Iterator[None]:
    """Seeds torch's global generator by seed and stage while the block runs, and restores it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, stage, "weights").initial_seed())
        yield


# --------------------------------------------------------------------------------------------------------------- images


def clip_training(setup: StageSetup) -> TrainingTask:
    """The demo's CLIP: contrastive training, then heads for the scores. A pretrained CLIP only gets missing heads."""
    clip, device = ClipModel.create(setup.recipe.clip), setup.device
    source = setup.captioned_images(clip)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return network(batch["pixels"], batch["tokens"])

    @torch.no_grad()
    def finish(out: Folder) -> dict[str, Any]:
        # One epoch: every row once.
        firsts = range(0, len(source), CLIP_BATCH)
        parts = [source.batch(first, min(CLIP_BATCH, len(source) - first)) for first in firsts]
        if not setup.section.pretrained:
            clip.measure_batch_norms(torch.cat([part["pixels"] for part in parts[:BATCH_NORM_BATCHES]]).to(device))
        embeddings = torch.cat([clip.encode_image(part["pixels"].to(device)).cpu() for part in parts])
        scores = {name: torch.cat([part[name] for part in parts]) for name in HEADS}
        statistics = clip.fit_heads(embeddings, **scores)
        clip.save(out)
        return {"heads": statistics}

    return TrainingTask(setup.stage, clip, source, loss, finish=finish)


def prior_training(setup: StageSetup) -> TrainingTask:
    """P: tokens and CLIP text embedding to CLIP image embedding."""

    def prepare(batch: Batch) -> Prepared:
        conditions = {name: batch[name] for name in ("tokens", "text_embedding")}
        return to_scale(batch["image_embedding"]), conditions

    network = setup.network(lambda: Prior(setup.section.network))
    return _diffusion(setup, network, setup.images(size=0), (network.config.embedding_dim,), prepare)


def decoder_training(setup: StageSetup) -> TrainingTask:
    """D: CLIP image embedding to an image of the base size."""

    def prepare(batch: Batch) -> Prepared:
        return to_unit(batch["pixels"])[:, None], {"embedding": batch["image_embedding"]}

    size = setup.cascade.base_size
    return _diffusion(setup, setup.unet(), setup.images(size), (1, 3, size, size), prepare)


def sr_training(setup: StageSetup) -> TrainingTask:
    """SR_l and SR_h on images."""
    sizes, low = setup.cascade, setup.stage == "train-sr-low"
    small, large = (sizes.base_size, sizes.low_size) if low else (sizes.low_size, sizes.high_size)
    images = setup.images(large, setup.section.enlarged)
    return _super_resolution(setup, setup.unet(), images, large // small)


# --------------------------------------------------------------------------------------------------------------- videos


def decoder_video_training(setup: StageSetup) -> TrainingTask:
    """D^t: D, inflated, on clips of any frame rate under the CLIP embedding of their first frame."""
    return _with_clip(setup, setup.network(lambda: inflate(setup.parent("train-decoder"), setup.cascade.frames)))


def interpolation_training(setup: StageSetup) -> TrainingTask:
    """F^: D^t that is given some of the frames."""
    return _with_clip(setup, setup.network(lambda: add_masked_frames(setup.parent("train-decoder-video"))))


def _with_clip(setup: StageSetup, network: UNet) -> TrainingTask:
    """What D^t and F^ share: the CLIP embedding of the first frame. F^ is the network that takes known frames."""
    source, cascade = setup.clips(), setup.cascade
    clip = ClipModel.load(setup.inputs["clip"], setup.device)
    masked, size = network.config.masked_frames, cascade.base_size
    frames = setup.section.frames or cascade.frames

    def draw(batch: Batch, draws: Draws) -> Batch:
        only_motion(setup.stage, batch)
        return {"given": random_mask(draws, frames, cascade.frame_skip)} if masked else {}

    def prepare(batch: Batch) -> Prepared:
        with torch.no_grad():
            embedding = clip.encode_image(batch["pixels"][:, 0])
        x0 = downsample(to_unit(batch["pixels"]), size)
        conditions = {"embedding": embedding, "fps": batch["fps"]}
        return x0, conditions | {"known": known_frames(x0, batch["given"])} if masked else conditions

    return _diffusion(setup, network, source, (frames, 3, size, size), prepare, draw)


def sr_low_video_training(setup: StageSetup) -> TrainingTask:
    """SR_l^t: SR_l, inflated, on crops of clips."""
    cascade = setup.cascade
    network = setup.network(lambda: inflate(setup.parent("train-sr-low"), cascade.frames))
    return _super_resolution(setup, network, setup.clips(), cascade.low_size // cascade.base_size)


TRAININGS: dict[str, Callable[[StageSetup], TrainingTask]] = {
    "clip": clip_training,
    "train-prior": prior_training,
    "train-decoder": decoder_training,
    "train-sr-low": sr_training,
    "train-sr-high": sr_training,
    "train-decoder-video": decoder_video_training,
    "train-interpolation": interpolation_training,
    "train-sr-low-video": sr_low_video_training,
}


# ------------------------------------------------------------------------------------------------ what the stages share


def _super_resolution(setup: StageSetup, network: UNet, source: BatchSource, factor: int) -> TrainingTask:
    """The task of a network that makes crops `factor` times larger."""
    section, cascade, video = setup.section, setup.cascade, network.config.max_frames > 0
    large = cascade.high_size if setup.stage == "train-sr-high" else cascade.low_size
    side = crop_side(large, factor, section.crop)

    def draw(batch: Batch, draws: Draws) -> Batch:
        pixels = only_motion(setup.stage, batch)["pixels"] if video else batch["pixels"][:, None]
        return draw_crop(pixels, factor, section, draws)

    def prepare(batch: Batch) -> Prepared:
        x0, conditions = with_low_resolution(batch, factor, section)
        return x0, conditions | {"fps": batch["fps"]} if video else conditions

    frames = (section.frames or cascade.frames) if video else 1
    return _diffusion(setup, network, source, (frames, 3, side, side), prepare, draw)


def _diffusion(
    setup: StageSetup, network: UNet | Prior, source: BatchSource, shape: tuple[int, ...],
    prepare: Callable[[Batch], Prepared], draw: Callable[[Batch, Draws], Batch] = lambda batch, draws: {},
) -> TrainingTask:  # fmt: skip
    """The task of a diffusion network on clean samples of a shape.

    `draw` adds to a batch what its conditions have of chance; `prepare` makes clean samples and conditions of the
    result, on the device. A video stage may train its new parameters first or alone; another stage may start from open
    weights.
    """
    stage, section, seed = setup.stage, setup.section, setup.recipe.seed
    objective = section.objective
    video = section if isinstance(section, TrainVideo) else None
    schedule, start = make_schedule(objective, setup.device), "" if video else section.start
    key = f"{setup.key}.start"
    carried = start_from(network, read_state(start, key), key) if start and not setup.hollow else None
    drops = isinstance(network, Prior) or network.config.embedding_dim > 0

    def draw_all(batch: Batch, draws: Draws, level: float | None = None) -> Batch:
        return batch | draw(batch, draws) | draw_noise(draws, shape, objective, drops=drops, level=level)

    def loss(wrapped: nn.Module, batch: Batch) -> Tensor:
        x0, conditions = prepare(batch)
        return diffusion_loss(wrapped, x0, conditions, batch, objective, schedule).mean()

    @torch.no_grad()
    def sheet(count: int) -> Sheet:
        batch = source.peek(count)
        batch |= draw(batch, Draws((seed, stage, "sheet", number) for number in range(count)))
        x0, conditions = prepare({name: value.to(setup.device) for name, value in batch.items()})
        return Sheet(objective, x0, conditions, seed)

    def finish(out: Folder) -> dict[str, Any]:
        export_network(out, network, objective, stage=stage, samples=section.optimisation.samples)
        if isinstance(network, UNet):
            out.write_bytes(SHEET, sheet(4 if video else 8)(network))
        metrics = {"parameters": sum(p.numel() for p in network.parameters())}
        if carried:
            out.write_json(START, vars(carried))
            metrics |= {"carried": len(carried.carried), "fresh": len(carried.fresh)}
        return metrics

    shown = (lambda: sheet(2 if video else 4)) if isinstance(network, UNet) else None
    task = TrainingTask(stage, network, source, loss, draw_all, finish, sheet=shown)
    if video is None or not isinstance(network, UNet):
        return task
    # A video stage: the parameters of the image network are frozen for the first samples, or throughout.
    new = {id(p) for p in network.temporal_parameters()}
    old = frozenset(name for name, p in network.named_parameters() if id(p) not in new)
    if video.trainable == "temporal":
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name not in old)
    return dataclasses.replace(task, frozen=old, frozen_samples=video.temporal_first_samples)


def _validation(setup: StageSetup, task: TrainingTask, rank: int, world_size: int) -> Validation | None:
    """The samples that the recipe holds out of the training, or None when it holds none out."""
    o = setup.section.optimisation
    if not o.held_out:
        return None
    chunk, *_ = division(o, setup.recipe.cluster.workers, world_size)
    rows, seeds = task.source.hold_out(o.held_out, o.samples), (setup.recipe.seed, task.stage)
    return Validation(rows, chunk, seeds, task.draw, task.loss, rank, world_size)
