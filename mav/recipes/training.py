"""TODO-DOC mav/recipes/training.py"""

from dataclasses import field
from typing import Literal

from mav.recipes.networks import ClipConfig, PriorConfig, UNetConfig
from mav.recipes.sections import section


@section
class Objective:
    """What a diffusion network predicts and how the loss is weighted."""

    schedule: Literal["cosine", "linear"] = "cosine"
    steps: int = 1000
    zero_terminal_snr: bool = False
    shift: float = 1.0  # > 1 moves the schedule towards noise (larger images, more frames)
    prediction: Literal["x0", "eps", "v", "eps_learned_sigma"] = "v"
    min_snr_gamma: float = 5.0  # 0 = unweighted
    condition_dropout: float = 0.1
    shared_noise: float = 0.0  # share of the noise's variance that all frames of a clip have in common (PYoCo's mixed noise; paper: silent)


@section
class Optimisation:
    """The training loop's values. Samples seen is the one counter: everything else is in samples."""

    samples: int
    batch_size: int  # over all workers and accumulation steps
    learning_rate: float = 1.2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_samples: int = 0
    cooldown_samples: int = 0  # linear to zero over the last so many samples
    gradient_clip: float = 1.0
    accumulation: int = 1
    ema_decay: float = 0.9999
    precision: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 1024
    checkpoint_every: int = 16384
    compile: bool = False
    corrupted_share: float = 0.01  # of the stage's samples: more unreadable ones stop it
    held_out: int = 0  # samples kept out of the training to measure the loss on, at every checkpoint; 0 = none
    # What is handed on: the last moving average, that of the lowest loss on held-out samples, or of all widths of a power-function average
    # the one of the lowest (rebuilt when the training is over; takes two more copies of the network).
    export: Literal["last", "best", "post_hoc"] = "last"


@section
class ClipSection:
    """`clip`: pretrained weights from paths, or (when `pretrained` is empty) a tiny CLIP trained on the demo's captions."""

    pretrained: str = ""  # path of an open_clip state dict
    architecture: str = ""  # its open_clip model name, e.g. ViT-L-14
    nsfw_head: str = ""  # path of LAION's head
    watermark_head: str = ""  # path of a linear head on the embeddings, or LAION's classifier
    network: ClipConfig = field(default_factory=ClipConfig)
    optimisation: Optimisation = field(default_factory=lambda: Optimisation(samples=0, batch_size=64))


@section
class FpsCurriculum:
    """Frame rates drawn through a Beta distribution that slides from high to low fps (paper 3.2; parameters: our choice)."""

    low: float = 1.0
    high: float = 30.0
    start: tuple[float, float] = (4.0, 1.5)  # Beta(a, b) over [low, high] at the first sample
    end: tuple[float, float] = (1.5, 4.0)  # and at the last
    short_clips: Literal["clamp", "skip"] = (
        "clamp"  # too short for the rate drawn: shown at the slowest rate they allow, or passed over
    )


@section
class TrainPrior:
    network: PriorConfig
    objective: Objective = field(default_factory=lambda: Objective(prediction="x0", min_snr_gamma=0.0))
    optimisation: Optimisation
    start: str = ""  # path of open unCLIP weights (Karlo's, or as diffusers stores them) to begin from


@section
class TrainImage:
    """D, SR_l or SR_h on images."""

    network: UNetConfig
    objective: Objective = field(default_factory=Objective)
    optimisation: Optimisation
    start: str = ""  # as `train_prior`'s, for D
    crop: float = 1.0  # side of the training crop over the side of the image (unCLIP: 0.25 for upsamplers)
    noise_augmentation: float = 0.0  # strongest noise put on the low-resolution input (share of the schedule)
    blur_sigma: float = 0.0  # Gaussian blur of the low-resolution input (unCLIP: 0.6)


@section
class TrainVideo:
    """D^t, SR_l^t or F^: the image network inflated, then trained on clips without text."""

    objective: Objective = field(default_factory=Objective)
    optimisation: Optimisation
    trainable: Literal["all", "temporal"] = "all"  # the paper says both (3.2.2, 3.4); default jointly
    temporal_first_samples: int = 0  # train only the new layers for so many samples, then as `trainable` says
    fps: FpsCurriculum = field(default_factory=FpsCurriculum)
    frames: int = 0  # frames a training clip; 0 = cascade.frames
    crop: float = 1.0
    noise_augmentation: float = 0.0
    blur_sigma: float = 0.0
