"""The sections of generation: the sizes of the cascade and how each of its networks is sampled."""

from dataclasses import field
from typing import Annotated, Literal

from annotated_types import Ge

from mav.recipes.sections import IF_GUIDED, Number, PositiveNumber, PositiveShare, Share, Small, Whole, section


@section
class CascadeSizes:
    """Sizes and frame counts of y = SR_h . SR_l^t . F^ . D^t . P (paper section 3)."""

    frames: Annotated[Small, Ge(2)] = 16
    base_size: Small = 64
    low_size: Small = 256
    high_size: Small = 768
    frame_skip: Small = 5  # F^ makes (frames - 1) * frame_skip + 1 frames

    @property
    def long_frames(self) -> int:
        """Frames after interpolation: (16 - 1) * 5 + 1 = 76 in the paper."""
        return (self.frames - 1) * self.frame_skip + 1


@section
class Sampling:
    """How one network of the cascade is sampled."""

    sampler: Literal["ddim", "ancestral", "dpm++2m"] = "ddim"
    steps: Small = 25


@section
class GuidedSampling(Sampling):
    """The same for a network that has an embedding of the prompt among its conditions."""

    guidance: Number = 1.0  # classifier-free guidance scale; 1 = none
    # Shares of the schedule between which guidance acts; outside of them a step costs half (Kynkäänniemi et al. 2024).
    guidance_interval: Annotated[tuple[Share, Share], IF_GUIDED] = (0.0, 1.0)
    guidance_rescale: Annotated[Share, IF_GUIDED] = 0.0


@section
class Generate:
    """`generate` samples a video for every prompt through the whole cascade."""

    prompts: str = ""  # path of a file with one prompt a line; empty: the prompts of the demo world
    count: Whole = 0  # number of prompts, from the first on; 0 = all
    batch_size: Small = 16
    fps: PositiveNumber = 8.0  # frame rate that conditions D^t
    prior: GuidedSampling = field(default_factory=lambda: GuidedSampling(steps=25, guidance=2.0))
    prior_candidates: Small = 2  # the draw closest to the text embedding is kept (unCLIP 2.2)
    decoder: GuidedSampling = field(default_factory=lambda: GuidedSampling(steps=25, guidance=2.0))
    interpolation: GuidedSampling = field(default_factory=lambda: GuidedSampling(steps=15))
    # Share of the noise that F^ begins with; below 1 over its neighbours, moved by optical flow.
    interpolation_start: PositiveShare = 1.0
    sr_low: Sampling = field(default_factory=lambda: Sampling(steps=10))
    sr_high: Sampling = field(default_factory=lambda: Sampling(steps=5))
    noise_augmentation: Share = 0.0  # noise level added to the input of the SR networks, and their condition
    frame_rates: tuple[PositiveNumber, ...] = ()  # also sample D^t alone at these rates, for the demo's check
    time_off_twin: bool = False  # also sample each prompt with the temporal layers off (for the demo's comparison)
