"""The sections of the training stages: objective, optimisation, and one section for each kind of network."""

from dataclasses import field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from mav.recipes.networks import ClipConfig, PriorConfig, UNetConfig
from mav.recipes.sections import (
    OPERATIONAL,
    Decay,
    Number,
    Operational,
    Positive,
    PositiveNumber,
    PositiveShare,
    Share,
    Small,
    SmallOrNone,
    Whole,
    section,
)

# Of a training's checkpoints one may become what is exported: then it counts when they are made.
UNLESS_CHOSEN = Operational(counts_if=lambda optimisation: optimisation.export != "last")
# An average whose width is chosen afterwards takes the place of this one.
UNLESS_POST_HOC = Operational(counts_if=lambda optimisation: optimisation.export != "post_hoc")

# What of a recipe each training reads (`mav.recipes.identity`), besides its own section and the seed.
_SIZES = ("cascade.base_size", "cascade.low_size", "cascade.frames")
_BESIDE = {
    "clip": (),
    "train-prior": (),
    "train-decoder": ("cascade.base_size",),
    "train-sr-low": ("cascade.base_size", "cascade.low_size"),
    "train-sr-high": ("cascade.low_size", "cascade.high_size"),
    "train-decoder-video": _SIZES,
    "train-interpolation": (*_SIZES, "cascade.frame_skip"),
    "train-sr-low-video": _SIZES,
}
TRAINING_READS = {stage: (stage.replace("-", "_"), *beside, "seed") for stage, beside in _BESIDE.items()}


@section
class Objective:
    """What a diffusion network predicts and how its loss is weighted."""

    schedule: Literal["cosine", "linear"] = "cosine"
    steps: Annotated[Small, Ge(2)] = 1000
    zero_terminal_snr: bool = False
    shift: PositiveNumber = 1.0  # above 1 the schedule has more noise (for larger images and more frames)
    prediction: Literal["x0", "eps", "v", "eps_learned_sigma"] = "v"
    min_snr_gamma: Number = 5.0  # 0 = unweighted
    condition_dropout: Share = 0.1
    # Share of the noise variance that all frames of a clip have in common (PYoCo's mixed noise; not in the paper).
    shared_noise: Share = 0.0
    # Weight of the squared change of the error from frame to frame, beside the squared error (not in the paper).
    motion_weight: Number = 0.0


@section
class Optimisation:
    """The values of the training loop. Every interval and length is counted in samples, not in steps."""

    samples: Whole
    batch_size: Positive  # summed over all workers and accumulation steps
    learning_rate: Annotated[float, Gt(0), Le(1e38)] = 1.2e-4  # after the warm-up
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: PositiveNumber = 1e-8
    weight_decay: Number = 0.0
    warmup_samples: Whole = 0
    cooldown_samples: Whole = 0  # length of the linear decay to zero at the end
    gradient_clip: PositiveNumber = 1.0
    accumulation: Small = 1
    ema_decay: Annotated[Decay, UNLESS_POST_HOC] = 0.9999
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: Whole = 0  # of a worker without a GPU, which may change last bits; 0 = `cluster.cpus_per_worker`
    log_every: Annotated[Positive, OPERATIONAL] = 1024
    checkpoint_every: Annotated[Positive, UNLESS_CHOSEN] = 16384
    # Samples between two pictures of what the average makes, for TensorBoard and the report; 0 = none.
    sample_every: Annotated[Whole, OPERATIONAL] = 0
    corrupted_share: Annotated[Share, OPERATIONAL] = 0.01  # share of unreadable samples above which the stage stops
    held_out: Whole = 0  # samples kept out of the training, on which every checkpoint measures the loss; 0 = none
    # The exported weights: the last moving average, the one with the lowest loss on the held-out samples, or the best
    # width of a power-function average, which is rebuilt after the training and needs two more copies of the network.
    export: Literal["last", "best", "post_hoc"] = "last"


@section
class ClipSection:
    """`clip` loads pretrained weights, or trains a tiny CLIP on the captions where `pretrained` is empty."""

    pretrained: str = ""  # path of an open_clip state dict
    architecture: str = ""  # its open_clip model name, for example ViT-L-14
    nsfw_head: str = ""  # path of LAION's NSFW head
    watermark_head: str = ""  # path of a linear head on the embeddings, or of LAION's classifier
    network: ClipConfig = field(default_factory=ClipConfig)
    optimisation: Optimisation = field(default_factory=lambda: Optimisation(samples=0, batch_size=64))


@section
class FpsCurriculum:
    """Frame rates drawn from a Beta distribution that moves from high to low (paper 3.2; the parameters are ours)."""

    low: PositiveNumber = 1.0
    high: PositiveNumber = 30.0
    start: tuple[PositiveNumber, PositiveNumber] = (4.0, 1.5)  # Beta(a, b) over [low, high] at the first sample
    end: tuple[PositiveNumber, PositiveNumber] = (1.5, 4.0)  # Beta(a, b) at the last sample
    # A clip that is too short for the drawn rate is used at the slowest rate that it allows, or skipped.
    short_clips: Literal["clamp", "skip"] = "clamp"


@section
class TrainPrior:
    """P on pairs of text and CLIP image embedding."""

    network: PriorConfig
    objective: Objective = field(default_factory=lambda: Objective(prediction="x0", min_snr_gamma=0.0))
    optimisation: Optimisation
    start: str = ""  # path of unCLIP weights (Karlo's, or in the format of diffusers) to start from


@section
class TrainImage:
    """D, SR_l or SR_h on images."""

    network: UNetConfig
    objective: Objective = field(default_factory=Objective)
    optimisation: Optimisation
    start: str = ""  # as in `train_prior`, for D
    crop: PositiveShare = 1.0  # side of the training crop over the side of the image (unCLIP: 0.25 for upsamplers)
    enlarged: bool = True  # train on pictures that `image-download` had to enlarge too, which have no detail to learn
    noise_augmentation: Share = 0.0  # strongest noise added to the low-resolution input (share of the schedule)
    blur_sigma: Number = 0.0  # Gaussian blur of the low-resolution input (unCLIP: 0.6)


def crop_side(size: int, factor: int, share: float) -> int:
    """Returns the pixels of a training crop's side: a share of the picture's, in whole low-resolution pixels.

    factor: the pixels that a low-resolution one becomes.
    """
    return factor * max(1, round(size * share / factor))


@section
class TrainVideo:
    """D^t, SR_l^t or F^: the image network gets temporal layers and is trained on clips without text."""

    objective: Objective = field(default_factory=Objective)
    optimisation: Optimisation
    trainable: Literal["all", "temporal"] = "all"  # the paper says both (sections 3.2.2 and 3.4)
    temporal_first_samples: Whole = 0  # samples for which only the new layers are trained, before `trainable` applies
    fps: FpsCurriculum = field(default_factory=FpsCurriculum)
    frames: SmallOrNone = 0  # frames of a training clip; 0 = cascade.frames
    crop: PositiveShare = 1.0
    noise_augmentation: Share = 0.0
    blur_sigma: Number = 0.0
