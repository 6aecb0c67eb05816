"""F^ between given frames: measured on held-out middle frames beside linear blending, and laid out so that others can be compared.

The stage's artifact holds `given/` (the frames a method may see), `truth/` and `videos/` (F^'s), one file a clip under the same number.
Another method run on `given/` gives a folder that `mav evaluate interpolation --videos THEIRS --real truth` measures alike, and that
`mav study freeze --system ours=videos --system film=THEIRS` shows to people. `photos/` holds what F^ makes between two unrelated pictures,
where there is no truth and only people can say.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from mav.data.videos.video_io import encode_mp4, fit, open_video
from mav.diffusion.pixels import to_pixels
from mav.errors import UserError
from mav.evaluation import protocols
from mav.evaluation.benchmarks import set_folder
from mav.evaluation.intervals import bootstrapped
from mav.evaluation.measure import RESULT, Report, flat
from mav.evaluation.metrics import psnr, ssim
from mav.evaluation.protocols import Preparation, Protocol
from mav.evaluation.reading import prepare, whole_video
from mav.evaluation.sets import VIDEO_ENDINGS, read_set
from mav.generation.cascade import Cascade, CascadeBatch
from mav.recipes import Evaluate, Recipe
from mav.storage import Folder

PHOTOS = 4  # pairs of unrelated first frames
NEAR_LOSSLESS = 1  # H.264's quantiser for frames that numbers are taken from; 0 is a profile that players lack


def evaluate_interpolation(
    recipe: Recipe,
    inputs: dict[str, Folder],
    out: Folder,
    report: Report = lambda _: None,
    cascade: Cascade | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """F^ between given frames of held-out clips, against linear blending: PSNR and SSIM of the frames between, at the decoder's size."""
    protocol = protocols.load_protocol("interpolation-demo")
    prep = protocol.preparation(recipe)
    skip, high = recipe.cascade.frame_skip, recipe.cascade.high_size
    folder = set_folder(recipe.evaluate.ucf101, "ucf101", inputs)
    paths = _spread(read_set(protocols.load_protocol("ucf101-demo"), folder, 0).real, protocol.samples)
    network = cascade or Cascade.load(recipe, inputs, device)
    measured = Middles(skip)
    firsts: list[np.ndarray] = []
    for number, path in enumerate(paths):
        try:
            native, fps = filmed(folder.read_bytes(path), dataclasses.replace(prep, size=0), skip)
        except FileNotFoundError:
            measured.failed["missing"] += 1
            continue
        except ValueError as error:
            measured.failed[str(error).split(":")[0]] += 1
            continue
        generate = dataclasses.replace(recipe.generate, fps=fps / skip)
        run = CascadeBatch(network, [3_000_000 + number], generate)
        made = to_pixels(run.fill(network.to_base(fit(native, high)[None, ::skip]), network.embed_images(native[:1])))
        video, truth = made[0].permute(0, 2, 3, 1).cpu().numpy(), fit(native, recipe.cascade.base_size)
        measured.add(video, truth)
        for name, frames, rate in (("videos", video, fps), ("truth", truth, fps), ("given", truth[::skip], fps / skip)):
            out.write_bytes(f"{name}/{number:05d}.mp4", encode_mp4(frames, rate, crf=NEAR_LOSSLESS))
        firsts = [*firsts, fit(native[:1], high)][: 2 * PHOTOS]
        report({"stage": "evaluate-interpolation", "samples": number + 1, "total": len(paths)})
    if not measured.ours:
        raise UserError(
            f"None of {len(paths)} clips under {folder.url} holds {skip + 1} readable frames: nothing can be interpolated."
        )
    for number in range(len(firsts) // 2):
        ends = np.stack(firsts[2 * number : 2 * number + 2], axis=1)
        run = CascadeBatch(network, [3_100_000 + number], recipe.generate)
        made = to_pixels(run.fill_between(ends, network.embed_images(ends[:, 0]), [0, recipe.cascade.frames - 1]))
        frames = made[0].permute(0, 2, 3, 1).cpu().numpy()
        out.write_bytes(f"photos/{number:05d}.mp4", encode_mp4(frames, recipe.generate.fps, crf=NEAR_LOSSLESS))
    return flat(measured.write(protocol, len(paths), recipe.evaluate, out))


def measure_interpolation(
    protocol: Protocol,
    videos: Folder,
    truth: Folder,
    skip: int,
    settings: Evaluate,
    out: Folder,
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """Any method's folder of interpolated clips against a folder of filmed ones under the same names; writes `result.json`.

    skip: every so many frames one was given. A clip missing on our side, or of another length or size, is counted and reported.
    Raises UserError when none can be compared.
    """
    prep = protocol.preparation(None) if protocol.name != "interpolation-demo" else Preparation(frames=0)
    names = [name for name in truth.names() if name.lower().endswith(VIDEO_ENDINGS)][: protocol.samples]
    theirs = {_stem(name): name for name in videos.names() if name.lower().endswith(VIDEO_ENDINGS)}
    measured = Middles(skip)
    for number, name in enumerate(names):
        try:
            real, _ = (
                filmed(truth.read_bytes(name), prep, skip)
                if prep.frames
                else (whole_video(truth.read_bytes(name)), 0.0)
            )
            made = prepare(whole_video(videos.read_bytes(theirs[_stem(name)])), prep)
            measured.add(made, real)
        except KeyError:
            measured.failed["missing"] += 1
        except ValueError as error:
            measured.failed[str(error).split(":")[0]] += 1
        report({"stage": "interpolation", "samples": number + 1, "total": len(names)})
    if not measured.ours:
        reasons = ", ".join(f"{count} {reason}" for reason, count in measured.failed.items()) or "the folder is empty"
        raise UserError(
            f"No clip of {truth.url} has its match in {videos.url} ({reasons}): give both the same names and lengths."
        )
    return measured.write(protocol, len(names), settings, out)


class Middles:
    """Figures of the frames between given ones, clip by clip."""

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self.ours: list[tuple[float, float]] = []  # (PSNR, SSIM) of a clip
        self.blends: list[tuple[float, float]] = []
        self.failed: Counter[str] = Counter()

    def add(self, video: np.ndarray, truth: np.ndarray) -> None:
        """uint8 (F, H, W, 3) both. Raises ValueError with a reason when they cannot be compared."""
        if len(video) != len(truth):
            raise ValueError("another number of frames")
        if video.shape != truth.shape:
            raise ValueError("another size")
        between = [i for i in range(len(truth)) if i % self.skip]
        mixed = blend(truth[:: self.skip], self.skip)
        self.ours.append((psnr(video[between], truth[between]), ssim(video[between], truth[between])))
        self.blends.append((psnr(mixed[between], truth[between]), ssim(mixed[between], truth[between])))

    def write(self, protocol: Protocol, expected: int, settings: Evaluate, out: Folder) -> dict[str, Any]:
        """The result, with intervals over clips."""
        ours, blends = np.array(self.ours), np.array(self.blends)
        columns = {
            "psnr": ours[:, 0], "psnr_blend": blends[:, 0], "psnr_gain": ours[:, 0] - blends[:, 0],
            "ssim": ours[:, 1], "ssim_blend": blends[:, 1],
        }  # fmt: skip

        def interval(values: np.ndarray) -> dict[str, Any]:
            return bootstrapped(
                lambda rows: float(values[rows].mean()), len(values), settings.bootstrap, settings.seed, "clips"
            )

        failed = dict(sorted(self.failed.items()))
        result = {
            "benchmark": protocol.benchmark,
            "protocol": dataclasses.asdict(protocol),
            "samples": expected,
            "readable": len(ours),
            "failed": failed,
            "real": len(ours),
            "real_failed": failed,
            "metrics": {name: interval(values) for name, values in columns.items()},
            "features": None,
            "comparable": True,
        }
        out.write_json(RESULT, result)
        return result


def blend(given: np.ndarray, skip: int) -> np.ndarray:
    """Linear blending: uint8 (K, ...) given frames to (K - 1) * skip + 1."""
    count = (len(given) - 1) * skip + 1
    place = np.arange(count) / skip
    left = np.minimum(place.astype(int), max(len(given) - 2, 0))
    share = (place - left).reshape(-1, *[1] * (given.ndim - 1))
    right = np.minimum(left + 1, len(given) - 1)
    return np.asarray((given[left] * (1 - share) + given[right] * share + 0.5).astype(np.uint8))


def filmed(video: bytes, prep: Preparation, skip: int) -> tuple[np.ndarray, float]:
    """The longest central run of frames with a whole number of gaps between at most `prep.frames` given ones, and its rate.

    At `prep.fps`, every so many frames of the clip are taken; 0 takes all. Raises ValueError when there is not one gap.
    """
    reader = open_video(video)
    native = float(reader.get_avg_fps())
    step = max(native / prep.fps, 1.0) if prep.fps else 1.0
    available = int((len(reader) - 1) / step) + 1
    gaps = min((available - 1) // skip, prep.frames - 1)
    if gaps < 1:
        raise ValueError("too few frames")
    count = gaps * skip + 1
    start = (len(reader) - 1 - step * (count - 1)) / 2
    indices = [min(int(start + step * i + 0.5), len(reader) - 1) for i in range(count)]
    return prepare(np.asarray(reader.get_batch(indices).asnumpy()), prep), native / step


def _spread(paths: Sequence[str], count: int) -> Sequence[str]:
    """Some of them, over the whole list: over the classes."""
    return paths[:: max(1, len(paths) // count)][:count]


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]
