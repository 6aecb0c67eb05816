"""How each metric is shown: its title, which way is better and its digits, for tables, pages and the validity card."""

from typing import Literal, NamedTuple


class Shown(NamedTuple):
    """How one metric is shown."""

    title: str
    better: Literal["lower", "higher", ""]  # '' = it is no metric of ours, but what ours is compared with
    digits: int


METRICS = {
    "fvd": Shown("FVD", "lower", 2),
    "kvd": Shown("KVD", "lower", 4),
    "is": Shown("IS", "higher", 2),
    "fid": Shown("FID", "lower", 2),
    "clipsim": Shown("CLIPSIM", "higher", 4),
    "fd": Shown("FD", "lower", 2),
    "kid": Shown("KID", "lower", 5),
    "jedi": Shown("JEDi", "lower", 3),
    "precision": Shown("Precision", "higher", 3),
    "recall": Shown("Recall", "higher", 3),
    "density": Shown("Density", "higher", 3),
    "coverage": Shown("Coverage", "higher", 3),
    "psnr": Shown("PSNR", "higher", 2),
    "psnr_blend": Shown("PSNR of blending", "", 2),
    "psnr_gain": Shown("PSNR over blending", "higher", 2),
    "psnr_flow": Shown("PSNR of optical flow", "", 2),
    "ssim": Shown("SSIM", "higher", 4),
    "ssim_blend": Shown("SSIM of blending", "", 4),
    "subject_consistency": Shown("Subject consistency", "higher", 4),
    "background_consistency": Shown("Background consistency", "higher", 4),
    "temporal_flickering": Shown("Temporal flickering", "higher", 4),
    "motion_smoothness": Shown("Motion smoothness", "higher", 4),
    "dynamic_degree": Shown("Dynamic degree", "higher", 3),
    "dynamic_degree_raft": Shown("Dynamic degree by RAFT", "higher", 3),
    "aesthetic_quality": Shown("Aesthetic quality", "higher", 4),
    "imaging_quality": Shown("Imaging quality", "higher", 4),
    "overall_consistency": Shown("Overall consistency", "higher", 4),
    "strobing": Shown("Strobing", "lower", 4),
}


def kind_of(name: str) -> str:
    """Returns the metric of which a protocol's metric is one: of `fid_clip`, a second FID, it is `fid`."""
    return name if name in METRICS else name.split("_")[0]


def shown(name: str) -> Shown:
    """Returns how a protocol's metric is shown. One that has no row above is shown by its name."""
    kind = kind_of(name)
    of_kind = METRICS.get(kind, Shown(kind.upper(), "higher", 4))
    second = name.removeprefix(kind).lstrip("_").replace("_", " ")
    return of_kind._replace(title=f"{of_kind.title} {second}".strip())


def digits_of(name: str, value: float, published: bool = False) -> int:
    """Returns the digits behind the point with which a value of a metric and the ends of its interval are shown.

    A value below 1, as the demo's features give, has three at least. A published one keeps all that it has.
    """
    own = len(str(value).partition(".")[2]) if published else 3 if abs(value) < 1 else 0
    return max(shown(name).digits, own)
