"""The section of the benchmarks and of the human study."""

from typing import Literal

from mav.recipes.sections import Positive, Seed, Whole, section

# Of 4 clips in each half: of fewer, all damaged ones being worse than all others is chance once in twenty times.
LEAST_CARD_CLIPS = 8


@section
class Evaluate:
    """Which features, evaluation sets and numbers of draws the evaluation stages use."""

    features: Literal["demo", "published"] = "demo"  # the run's own CLIP, or I3D / C3D / Inception from weights_dir
    weights_dir: str = ""
    ucf101: str = ""  # folder of UCF-101 as distributed; empty: the demo world's set
    msrvtt: str = ""  # folder of MSR-VTT; empty: the demo world's set
    card_clips: Whole = 0  # real clips of each set for `evaluate-card`, half of them damaged; 8 at least, 0 = no card
    bootstrap: Positive = 200  # draws of the 95 % intervals
    study_pairs: Positive = 24  # of the human study
    seed: Seed = 0
