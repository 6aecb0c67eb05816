"""F^ between given frames: measured on held-out middle frames against blending and flow, and stored for comparisons.

Where the set says how its objects move (`truth.json`, as the demo world's does), only gaps count in which an object
moves at least a quarter of its width: where it hardly moves, no method can be better than blending.

The stage's artifact holds `given/` (the frames that a method may see), `truth/` and `videos/` (those of F^), with one
file for each clip under the same number. The output of another method on `given/` is measured in the same way by
`mav evaluate interpolation --videos THEIRS --real truth`, and is shown to people by
`mav study freeze --system ours=videos --system film=THEIRS`. `truth/gaps.json` lists the gaps that count.
`photos/` holds what F^ makes between two unrelated pictures, which only people can judge because there is no truth.
"""

import dataclasses
from collections import Counter
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from mav.data.videos import VIDEO_ENDINGS
from mav.data.videos.shown import ShownVideo
from mav.data.videos.video_io import encode_mp4, fit
from mav.diffusion.pixels import to_pixels
from mav.errors import UserError
from mav.evaluation import protocols
from mav.evaluation.benchmarks import set_folder
from mav.evaluation.intervals import mean_of
from mav.evaluation.measure import RESULT, Report, flat
from mav.evaluation.metrics import psnr, ssim
from mav.evaluation.protocols import Preparation, Protocol
from mav.evaluation.reading import TOO_FEW, prepare, whole_video
from mav.evaluation.sets import read_set
from mav.generation.between import blend, warp, wide_gaps
from mav.generation.cascade import Cascade, CascadeBatch
from mav.recipes import Recipe
from mav.storage import Folder
from mav.storage.patterns import visible

PHOTOS = 4  # pairs of unrelated first frames
TRUTH = "truth.json"  # of a set: for each clip, by its path, where the object is in every frame
GAPS = "gaps.json"  # beside the true frames: for each clip the gaps that count
NEAR_LOSSLESS = 1  # H.264's quantiser for frames that are measured; 0 is a profile that players lack


def evaluate_interpolation(
    recipe: Recipe, inputs: dict[str, Folder], out: Folder, report: Report = lambda _: None,
    cascade: Cascade | None = None, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Compares F^ with linear blending and optical flow on held-out clips, at the size of the decoder.

    The metrics are PSNR and SSIM of the frames between given ones, in wide gaps where the set tells which they are.
    Raises UserError when no clip can be read.
    """
    protocol = protocols.load_protocol("interpolation-demo")
    prep = dataclasses.replace(protocol.preparation(recipe), size=0)
    skip, base, high = recipe.cascade.frame_skip, recipe.cascade.base_size, recipe.cascade.high_size
    # Clips from the whole list, so that they are of many classes.
    folder = set_folder(recipe.evaluate.ucf101, "ucf101", inputs)
    listed = read_set(protocols.load_protocol("ucf101-demo"), folder, 0).real
    stride = max(1, len(listed) // protocol.samples)
    paths = [path for first in range(stride) for path in listed[first::stride]]
    known = folder.read_json(TRUTH) if folder.exists(TRUTH) else {}
    network, measured = cascade or Cascade.load(recipe, inputs, device), Middles(skip)
    counted: dict[str, list[int]] = {}
    firsts: list[np.ndarray] = []
    for path in paths:
        number = measured.clips
        if number == protocol.samples:
            break
        try:
            native, fps, indices = longest_run(folder.read_bytes(path), prep, skip)
        except (FileNotFoundError, ValueError) as error:
            measured.fail(error)
            continue
        gaps = wide_gaps(known[path], indices, skip) if path in known else list(range((len(indices) - 1) // skip))
        if not gaps:
            continue
        # F^ gets every skip-th frame, and the numbers are those of the frames between.
        run = CascadeBatch(network, [3_000_000 + number], dataclasses.replace(recipe.generate, fps=fps / skip))
        made = to_pixels(run.fill(network.to_base(fit(native, high)[None, ::skip]), network.embed_images(native[:1])))
        video, truth = made[0].permute(0, 2, 3, 1).cpu().numpy(), fit(native, base)
        measured.add(video, truth, gaps)
        counted[f"{number:05d}"] = gaps
        for name, frames, rate in (("videos", video, fps), ("truth", truth, fps), ("given", truth[::skip], fps / skip)):
            out.write_bytes(f"{name}/{number:05d}.mp4", encode_mp4(frames, rate, crf=NEAR_LOSSLESS))
        firsts = [*firsts, fit(native[:1], high)][: 2 * PHOTOS]
        report({"stage": "evaluate-interpolation", "samples": number + 1, "total": protocol.samples})
    if not measured.ours:
        problem = f"None of {len(paths)} clips under {folder.url} holds {skip + 1} readable frames"
        raise UserError(f"{problem}{', and a wide gap' * bool(known)}: nothing can be interpolated.")
    out.write_json(f"truth/{GAPS}", counted)
    # Pairs of unrelated pictures, at the two ends of a clip.
    for number in range(len(firsts) // 2):
        ends = np.stack(firsts[2 * number : 2 * number + 2], axis=1)
        run = CascadeBatch(network, [3_100_000 + number], recipe.generate)
        made = to_pixels(run.fill_between(ends, network.embed_images(ends[:, 0]), [0, recipe.cascade.frames - 1]))
        frames = made[0].permute(0, 2, 3, 1).cpu().numpy()
        out.write_bytes(f"photos/{number:05d}.mp4", encode_mp4(frames, recipe.generate.fps, crf=NEAR_LOSSLESS))
    return flat(measured.write(protocol, measured.clips, out))


def measure_interpolation(
    protocol: Protocol, videos: Folder, truth: Folder, skip: int, out: Folder, report: Report = lambda _: None
) -> dict[str, Any]:
    """Compares a folder of interpolated clips with a folder of filmed ones of the same names; writes `result.json`.

    Every skip-th frame was given. Where `gaps.json` lies beside the filmed clips, only its gaps count. A clip that is
    missing among `videos`, or has another length or size, is counted and reported. Raises UserError when no
    clip can be compared.
    """
    prep = protocol.preparation(None) if protocol.name != "interpolation-demo" else Preparation(frames=0)
    names = [name for name in visible(truth.names()) if name.lower().endswith(VIDEO_ENDINGS)][: protocol.samples]
    theirs = {
        PurePosixPath(name).stem: name for name in visible(videos.names()) if name.lower().endswith(VIDEO_ENDINGS)
    }
    measured, counted = Middles(skip), truth.read_json(GAPS) if truth.exists(GAPS) else {}
    for number, name in enumerate(names):
        try:
            data = truth.read_bytes(name)
            real = longest_run(data, prep, skip)[0] if prep.frames else whole_video(data)
            made = whole_video(videos.read_bytes(theirs[PurePosixPath(name).stem]))
            measured.add(prepare(made, prep), real, counted.get(PurePosixPath(name).stem))
        except (KeyError, ValueError) as error:
            measured.fail(error)
        report({"stage": "interpolation", "samples": number + 1, "total": len(names)})
    if not measured.ours:
        reasons = ", ".join(f"{count} {reason}" for reason, count in measured.failed.items()) or "the folder is empty"
        problem = f"No clip of {truth.url} has its match in {videos.url} ({reasons})"
        raise UserError(f"{problem}: give both the same names and lengths.")
    return measured.write(protocol, len(names), out)


class Middles:
    """The metrics of the frames between given ones, clip by clip, of the method and of those that learn nothing."""

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self.ours: list[tuple[float, float]] = []  # (PSNR, SSIM) of each clip
        self.blends: list[tuple[float, float]] = []  # the same for linear blending
        self.flows: list[float] = []  # PSNR of optical flow
        self.failed: Counter[str] = Counter()

    @property
    def clips(self) -> int:
        """The number of clips so far, with those that failed."""
        return len(self.ours) + sum(self.failed.values())

    def add(self, video: np.ndarray, truth: np.ndarray, gaps: list[int] | None = None) -> None:
        """Compares a clip with the truth, both uint8 (F, H, W, 3). Raises ValueError when they cannot be compared.

        gaps: the numbers of the gaps between given frames that count; None = all.
        """
        if len(video) != len(truth):
            raise ValueError("another number of frames")
        if video.shape != truth.shape:
            raise ValueError("another size")
        between = [i for i in range(len(truth)) if i % self.skip and (gaps is None or i // self.skip in gaps)]
        given, real = truth[:: self.skip], truth[between]
        mixed, moved = blend(given, self.skip)[between], warp(given, self.skip)
        self.ours.append((psnr(video[between], real), ssim(video[between], real)))
        self.blends.append((psnr(mixed, real), ssim(mixed, real)))
        if moved is not None:
            self.flows.append(psnr(moved[between], real))

    def fail(self, error: Exception) -> None:
        """Counts a clip that cannot be used; an error that is no ValueError means that it is missing."""
        self.failed[str(error).split(":")[0] if isinstance(error, ValueError) else "missing"] += 1

    def write(self, protocol: Protocol, expected: int, out: Folder) -> dict[str, Any]:
        """Writes the result, with intervals over clips, and returns it."""
        (ours, ours_ssim), (blends, blends_ssim) = np.array(self.ours).T, np.array(self.blends).T
        columns = {"psnr": ours, "psnr_blend": blends, "psnr_gain": ours - blends, "ssim": ours_ssim,
                   "ssim_blend": blends_ssim}  # fmt: skip
        if self.flows:
            columns["psnr_flow"] = np.array(self.flows)

        failed = dict(sorted(self.failed.items()))
        result = {
            "benchmark": protocol.benchmark,
            "protocol": dataclasses.asdict(protocol),
            "samples": expected,
            "readable": len(ours),
            "failed": failed,
            "real": len(ours),
            "real_failed": failed,
            "metrics": {name: mean_of(values, "clips") for name, values in columns.items()},
            "features": None,
            "comparable": True,
        }
        out.write_json(RESULT, result)
        return result


def longest_run(video: bytes, prep: Preparation, skip: int) -> tuple[np.ndarray, float, list[int]]:
    """Returns the longest central run of frames with whole gaps between given ones, its rate and the frames' indices.

    There are at most `prep.frames` given frames. The run has the rate `prep.fps`; 0 takes all frames. Raises ValueError
    when there is not one gap.
    """
    shown = ShownVideo(video)
    step = max(shown.fps / prep.fps, 1.0) if prep.fps else 1.0
    available = int((len(shown) - 1) / step) + 1
    gaps = min((available - 1) // skip, prep.frames - 1)
    if gaps < 1:
        raise ValueError(TOO_FEW)
    count = gaps * skip + 1
    start = (len(shown) - 1 - step * (count - 1)) / 2
    indices = shown.nearest([start + step * i for i in range(count)])
    return prepare(shown.frames(indices), prep), shown.fps / step, indices
