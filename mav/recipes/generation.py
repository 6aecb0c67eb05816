"""TODO-DOC mav/recipes/generation.py"""

from dataclasses import field
from typing import Literal

from mav.recipes.sections import section


@section
class CascadeSizes:
    """Sizes and frame counts of y = SR_h . SR_l^t . F^ . D^t . P (paper section 3)."""

    frames: int = 16
    base_size: int = 64
    low_size: int = 256
    high_size: int = 768
    frame_skip: int = 5  # F^ makes (frames - 1) * frame_skip + 1 frames

    @property
    def long_frames(self) -> int:
        """Frames after interpolation: (16 - 1) * 5 + 1 = 76 in the paper."""
        return (self.frames - 1) * self.frame_skip + 1


# ---------------------------------------------------------------------------------------------- generation, evaluation


@section
class Sampling:
    """How one network of the cascade is sampled."""

    sampler: Literal["ddim", "ancestral", "dpm++2m"] = "ddim"
    steps: int = 25
    guidance: float = 1.0  # 1 = none
    guidance_rescale: float = 0.0


@section
class Generate:
    prompts: str = ""  # path of a file, one prompt a line; empty: the demo world's
    count: int = 0  # first so many prompts; 0 = all
    batch_size: int = 16
    fps: float = 8.0  # frame rate D^t is asked for
    prior: Sampling = field(default_factory=lambda: Sampling(steps=25, guidance=2.0))
    prior_candidates: int = 2  # keep the draw closest to the text embedding (unCLIP 2.2)
    decoder: Sampling = field(default_factory=lambda: Sampling(steps=25, guidance=2.0))
    interpolation: Sampling = field(default_factory=lambda: Sampling(steps=15))
    sr_low: Sampling = field(default_factory=lambda: Sampling(steps=10))
    sr_high: Sampling = field(default_factory=lambda: Sampling(steps=5))
    noise_augmentation: float = 0.0  # noise level the SR networks are told (and given) at sampling
    time_off_twin: bool = False  # also sample each prompt with the time layers off (the demo's comparison)


@section
class Evaluate:
    features: Literal["demo", "published"] = "demo"  # the run's own CLIP, or I3D / C3D / Inception from weights_dir
    weights_dir: str = ""
    ucf101: str = ""  # folder of UCF-101 as distributed; empty: the demo world's set
    msrvtt: str = ""
    bootstrap: int = 200  # draws for the 95 % intervals
    study_pairs: int = 24
    seed: int = 0
