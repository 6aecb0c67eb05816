"""What each network trains on (Make-A-Video section 3.4): its parent, its data, its conditions, its objective.

    clip                  pairs                        contrastive; the demo's own CLIP
    train-prior           pairs, embedded              text -> CLIP image embedding; the only network that reads text
    train-decoder         images, embedded             CLIP image embedding -> pixels
    train-sr-low, -high   images                       low resolution -> high, on crops
    train-decoder-video   clips, D                     the first frame's CLIP embedding and fps -> a clip
    train-interpolation   clips, D^t                   the same, and some of the frames -> all of them
    train-sr-low-video    clips, SR_l                  a low-resolution clip -> high, on crops

Text never meets motion: a stage takes the inputs named for it and no other, and a video stage refuses any batch that holds more than
pixels and fps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mav.diffusion.noise import Draws, generator
from mav.diffusion.objective import diffusion_loss
from mav.diffusion.pixels import augment, blur, crop, downsample, to_unit, upsample
from mav.diffusion.schedule import make_schedule
from mav.errors import UserError
from mav.models.checkpoints.unclip import start_from
from mav.models.clip import ClipModel
from mav.models.heads import read_state
from mav.models.prior import Prior, to_scale
from mav.models.unet import UNet, add_masked_frames, inflate, known_frames
from mav.recipes import Objective, Recipe, TrainImage, TrainVideo, digest
from mav.storage import Folder
from mav.training.export import export_network, load_network, write_curves
from mav.training.loop import Batch, BatchSource, Task, train
from mav.training.sheet import write_sheet
from mav.training.validation import Validation

INPUTS: dict[str, tuple[str, ...]] = {
    "clip": ("image-download",),
    "train-prior": ("image-embed",),
    "train-decoder": ("image-download", "image-embed"),
    "train-sr-low": ("image-download", "image-embed"),
    "train-sr-high": ("image-download", "image-embed"),
    "train-decoder-video": ("train-decoder", "video-shards", "clip"),
    "train-interpolation": ("train-decoder-video", "video-shards", "clip"),
    "train-sr-low-video": ("train-sr-low", "video-shards"),
}
VIDEO_STAGES = ("train-decoder-video", "train-interpolation", "train-sr-low-video")
SETTLING = 16  # batches of 256 pictures that CLIP's norms are measured over at the end
START = "start.json"  # what came from open weights, what did not, and what of them found no place
VIDEO_KEYS = {"pixels", "fps"}  # all that a video stage may see of a clip

Prepare = Callable[[Batch, Draws], tuple[Tensor, dict[str, Tensor]]]  # a batch to clean samples and their conditions


@dataclass(frozen=True)
class Training:
    """A stage, ready to train."""

    network: nn.Module
    source: BatchSource
    loss: Callable[[nn.Module, Batch, Draws], Tensor]
    finish: Callable[[Folder], dict[str, Any]]  # writes the artifact's network; returns metrics
    late: frozenset[str] = frozenset()
    late_samples: int = 0
    loss_at: Callable[[nn.Module, Batch, Draws, float], Tensor] | None = (
        None  # mean loss at a noise level, for held-out samples
    )


def run_stage(
    stage: str,
    recipe: Recipe,
    inputs: dict[str, Folder],
    work: Folder,
    out: Folder,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: str = "cpu",
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    source: BatchSource | None = None,
) -> dict[str, Any]:
    """Trains one stage, resuming from `work` by itself, and writes its artifact's files into `out` (rank 0). Returns its metrics.

    source: samples from elsewhere than the inputs, for tests and experiments.
    """
    allowed = set(INPUTS[stage])
    if extra := set(inputs) - allowed:
        raise ValueError(f"{stage} takes {', '.join(sorted(allowed))} and nothing else, not {', '.join(sorted(extra))}")
    with seeded(recipe.seed, stage):
        training = TRAININGS[stage](stage, recipe, inputs, device, source)
    section = recipe.section_of(stage)
    task = Task(
        stage=stage,
        network=training.network,
        source=training.source,
        loss=training.loss,
        identity=digest([stage, recipe.seed, section, recipe.cascade]),
        late=training.late,
        late_samples=training.late_samples,
        validation=_validation(stage, recipe, training, rank, world_size),
    )
    place: dict[str, Any] = {"rank": rank, "world_size": world_size, "device": device, "cluster": recipe.cluster}
    progress = train(task, section.optimisation, recipe.seed, work, report=report, **place)
    metrics: dict[str, Any] = {"samples": progress.samples}
    if progress.curves:
        metrics["loss"] = progress.curves[-1]["loss"]
    if progress.best_loss is not None:
        metrics |= {"validation": progress.best_loss, "validation_samples": progress.best_samples}
    metrics |= {
        "data_samples": len(training.source),
        "read": dict(getattr(training.source, "counts", {})),
    }  # and what became of those read
    if progress.widths:
        width = min(progress.widths, key=progress.widths.__getitem__)
        metrics |= {
            "average_width": width,
            "validation_by_width": {str(w): loss for w, loss in progress.widths.items()},
        }
    if rank == 0:
        metrics |= training.finish(out)
        write_curves(out, progress.curves)
    return metrics


@contextmanager
def seeded(seed: int, stage: str) -> Iterator[None]:
    """New weights are a function of seed and stage, and the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, stage, "weights").initial_seed())
        yield


# --------------------------------------------------------------------------------------------------------------- images


def clip_training(
    stage: str, recipe: Recipe, inputs: dict[str, Folder], device: str, source: BatchSource | None
) -> Training:
    """The demo's CLIP: contrastive training, then score heads on the rows of known score. A pretrained one only gets the heads it lacks."""
    clip = ClipModel.create(recipe.clip)
    if source is None:
        from mav.data.loading.loaders import CaptionedImages

        share = recipe.clip.optimisation.corrupted_share
        source = CaptionedImages(inputs["image-download"], clip.image_size, recipe.seed, clip.tokenize, share)
    rows = source

    def loss(network: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        output: Tensor = network(batch["pixels"], batch["tokens"])
        return output

    @torch.no_grad()
    def finish(out: Folder) -> dict[str, Any]:
        parts = [
            rows.batch(first, min(256, len(rows) - first)) for first in range(0, len(rows), 256)
        ]  # one epoch: every row once
        if not recipe.clip.pretrained:
            clip.settle(torch.cat([part["pixels"] for part in parts[:SETTLING]]).to(device))
        embeddings = torch.cat([clip.encode_image(part["pixels"].to(device)).cpu() for part in parts])
        scores = {name: torch.cat([part[name] for part in parts]) for name in ("punsafe", "pwatermark")}
        facts = clip.fit_heads(embeddings, **scores)
        clip.save(out)
        return {"heads": facts}

    return Training(clip, rows, loss, finish)


def prior_training(
    stage: str, recipe: Recipe, inputs: dict[str, Folder], device: str, source: BatchSource | None
) -> Training:
    """P: tokens and CLIP text embedding to CLIP image embedding."""
    source = source or _images(stage, recipe, inputs, size=0)

    def prepare(batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        return to_scale(batch["image_embedding"]), {
            "tokens": batch["tokens"],
            "text_embedding": batch["text_embedding"],
        }

    return _diffusion(stage, recipe, device, Prior(recipe.train_prior.network), source, prepare)


def decoder_training(
    stage: str, recipe: Recipe, inputs: dict[str, Folder], device: str, source: BatchSource | None
) -> Training:
    """D: CLIP image embedding to an image of the base size."""
    source = source or _images(stage, recipe, inputs, size=recipe.cascade.base_size)

    def prepare(batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        return to_unit(batch["pixels"])[:, None], {"embedding": batch["image_embedding"]}

    return _diffusion(stage, recipe, device, UNet(recipe.train_decoder.network), source, prepare)


def sr_training(
    stage: str, recipe: Recipe, inputs: dict[str, Folder], device: str, source: BatchSource | None
) -> Training:
    """SR_l and SR_h on images."""
    section, sizes = recipe.section_of(stage), recipe.cascade
    small, large = (sizes.base_size, sizes.low_size) if stage == "train-sr-low" else (sizes.low_size, sizes.high_size)
    source = source or _images(stage, recipe, inputs, size=large)

    def prepare(batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        return with_low_resolution(to_unit(batch["pixels"])[:, None], large // small, section, draws)

    return _diffusion(stage, recipe, device, UNet(section.network), source, prepare)


# --------------------------------------------------------------------------------------------------------------- videos


def decoder_video_training(
    stage: str, recipe: Recipe, inputs: dict[str, Folder], device: str, source: BatchSource | None
) -> Training:
    """D^t: D, inflated, on clips of any frame rate under the CLIP embedding of their first frame."""
    network = inflate(_parent(inputs["train-decoder"]), recipe.cascade.frames)
    return _with_clip(stage, recipe, inputs, device, source, network)


def interpolation_training(
    stage: str, recipe: Recipe, inputs: dict[str, Folder], device: str, source: BatchSource | None
) -> Training:
    """F^: D^t, told some of the frames."""
    network = add_masked_frames(_parent(inputs["train-decoder-video"]))
    return _with_clip(stage, recipe, inputs, device, source, network)


def _with_clip(
    stage: str, recipe: Recipe, inputs: dict[str, Folder], device: str, source: BatchSource | None, network: UNet
) -> Training:
    """What D^t and F^ share: the CLIP embedding of the first frame; F^ is the network that takes known frames."""
    source = source or _clips(stage, recipe, inputs)
    clip = ClipModel.load(inputs["clip"], device)

    def prepare(batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = only_motion(stage, batch)["pixels"]
        with torch.no_grad():
            embedding = clip.encode_image(pixels[:, 0])
        x0 = downsample(to_unit(pixels), recipe.cascade.base_size)
        conditions = {"embedding": embedding, "fps": batch["fps"]}
        if network.config.masked_frames:
            conditions["known"] = known_frames(x0, random_mask(draws, x0.shape[1]).to(x0.device))
        return x0, conditions

    return _diffusion(stage, recipe, device, network, source, prepare)


def sr_low_video_training(
    stage: str, recipe: Recipe, inputs: dict[str, Folder], device: str, source: BatchSource | None
) -> Training:
    """SR_l^t: SR_l, inflated, on crops of clips."""
    section, cascade = recipe.train_sr_low_video, recipe.cascade
    network = inflate(_parent(inputs["train-sr-low"]), cascade.frames)
    source = source or _clips(stage, recipe, inputs)

    def prepare(batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = to_unit(only_motion(stage, batch)["pixels"])
        x0, conditions = with_low_resolution(x0, cascade.low_size // cascade.base_size, section, draws)
        return x0, conditions | {"fps": batch["fps"]}

    return _diffusion(stage, recipe, device, network, source, prepare)


TRAININGS: dict[str, Callable[[str, Recipe, dict[str, Folder], str, BatchSource | None], Training]] = {
    "clip": clip_training,
    "train-prior": prior_training,
    "train-decoder": decoder_training,
    "train-sr-low": sr_training,
    "train-sr-high": sr_training,
    "train-decoder-video": decoder_video_training,
    "train-interpolation": interpolation_training,
    "train-sr-low-video": sr_low_video_training,
}


# ------------------------------------------------------------------------------------------------- what they are made of


def only_motion(stage: str, batch: Batch) -> Batch:
    """The batch, if it holds pixels and fps and nothing else; raises ValueError when text (or anything) came along."""
    if set(batch) != VIDEO_KEYS:
        raise ValueError(
            f"{stage} trains on pixels and fps alone, as text never meets motion, but its batch holds {', '.join(sorted(batch))}"
        )
    return batch


def with_low_resolution(
    x0: Tensor, factor: int, section: TrainImage | TrainVideo, draws: Draws
) -> tuple[Tensor, dict[str, Tensor]]:
    """A crop of each clip (B, T, 3, S, S) and, as conditions, its low-resolution copy: blurred, noised to a random known level."""
    small = max(1, round(x0.shape[-1] * section.crop / factor))  # crops lie on the low-resolution grid
    places = x0.shape[-1] // factor - small + 1
    x0 = crop(x0, draws.integers(places, 2) * factor, small * factor)
    low = upsample(blur(downsample(x0, small), section.blur_sigma), factor)
    level = (draws.uniform() * section.noise_augmentation).to(x0.device)
    noise = draws.normal(*low.shape[1:]).to(low)
    return x0, {"low": augment(low, level, noise), "low_noise": level}


def random_mask(draws: Draws, frames: int) -> Tensor:
    """Which frames F^ is given (B, frames), True = given: every k-th one from a random start (k from 2), both ends, or the first
    (Make-A-Video 3.3: interpolation with variable frame skips, and extrapolation). At least one is given and one is not."""
    kind, skip, start = draws.uniform(), draws.uniform(), draws.uniform()
    rows = []
    for i in range(len(kind)):
        mask = torch.zeros(frames, dtype=torch.bool)
        if kind[i] < 0.6:
            k = 2 + int(skip[i] * max(1, frames - 2))
            mask[int(start[i] * min(k, frames)) :: k] = True
            # Windows over a long video know their first frame, made by the window before, wherever the others fall.
            mask[0] |= bool(kind[i] < 0.3)
        else:
            mask[0] = True
            mask[-1] = bool(kind[i] < 0.8)
        if mask.all():
            mask[1:] = False
        rows.append(mask)
    return torch.stack(rows)


def _diffusion(
    stage: str, recipe: Recipe, device: str, network: UNet | Prior, source: BatchSource, prepare: Prepare
) -> Training:
    """A diffusion network: prepare, lose, export. For a video stage, which parameters move, and when; for another, its `start`."""
    section, seed = recipe.section_of(stage), recipe.seed
    objective: Objective = section.objective
    video = section if isinstance(section, TrainVideo) else None
    schedule, start = make_schedule(objective), "" if video else section.start
    carried = start_from(network, read_state(start, key := f"{stage.replace('-', '_')}.start"), key) if start else None

    def loss(wrapped: nn.Module, batch: Batch, draws: Draws, level: float | None = None) -> Tensor:
        x0, conditions = prepare(batch, draws)
        return diffusion_loss(wrapped, x0, conditions, objective, schedule, draws, level).mean()

    def finish(out: Folder) -> dict[str, Any]:
        export_network(out, network, objective, stage=stage, samples=section.optimisation.samples)
        if isinstance(network, UNet):
            count = 4 if video else 8
            batch = {name: value.to(device) for name, value in source.batch(0, count).items()}
            with torch.no_grad():
                x0, conditions = prepare(batch, Draws((seed, stage, "sheet", number) for number in range(count)))
            write_sheet(out, network, objective, x0, conditions, seed)
        if carried:
            out.write_json(START, vars(carried))
        begun = {"carried": len(carried.carried), "fresh": len(carried.fresh)} if carried else {}
        return {"parameters": sum(p.numel() for p in network.parameters()), **begun}

    late: frozenset[str] = frozenset()
    if video is not None and isinstance(network, UNet):
        new = {id(p) for p in network.temporal_parameters()}
        late = frozenset(name for name, p in network.named_parameters() if id(p) not in new)
        if video.trainable == "temporal":
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name not in late)
    return Training(network, source, loss, finish, late, video.temporal_first_samples if video else 0, loss)


def _validation(stage: str, recipe: Recipe, training: Training, rank: int, world_size: int) -> Validation | None:
    """This rank's part of the samples that the recipe holds out of the training, if it does."""
    o, key = recipe.section_of(stage).optimisation, f"{stage.replace('-', '_')}.optimisation"
    if not o.held_out:
        if o.export != "last":
            raise UserError(
                f"`{key}.export: {o.export}` is decided on held-out samples: say how many in `{key}.held_out`."
            )
        return None
    if training.loss_at is None:
        raise UserError(f"{stage} has no loss by noise level: leave its `optimisation.held_out` at 0.")
    if o.held_out % world_size:
        raise UserError(f"`{key}.held_out` must be a multiple of the {world_size} workers.")
    rows, part = training.source.hold_out(o.held_out, o.samples), o.held_out // world_size
    own = {name: value[rank * part : (rank + 1) * part] for name, value in rows.items()}
    return Validation(
        own, rank * part, o.batch_size // (o.accumulation * world_size), (recipe.seed, stage), training.loss_at
    )


def _parent(folder: Folder) -> UNet:
    """The network a video stage starts from, ready to train on."""
    network = load_network(folder).network
    if not isinstance(network, UNet):
        raise ValueError(f"{folder.url} holds a prior, not a U-Net")
    return network.requires_grad_(True)


def _images(stage: str, recipe: Recipe, inputs: dict[str, Folder], size: int) -> BatchSource:
    """Images with their embeddings; size 0 leaves the pixels out."""
    from mav.data.loading.loaders import ImageSource

    embeds, share = inputs["image-embed"], recipe.section_of(stage).optimisation.corrupted_share
    return ImageSource(inputs.get("image-download", embeds), embeds, size, recipe.seed, size > 0, share)


def _clips(stage: str, recipe: Recipe, inputs: dict[str, Folder]) -> BatchSource:
    """Clips at SR_l's resolution, which CLIP sees; the base size is averaged from it."""
    from mav.data.loading.loaders import ClipSource

    section, size = recipe.section_of(stage), recipe.cascade.low_size
    frames, o = section.frames or recipe.cascade.frames, section.optimisation
    return ClipSource(inputs["video-shards"], frames, size, recipe.seed, section.fps, o.samples, o.corrupted_share)
