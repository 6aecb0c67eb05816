"""The benchmarks: sample what a protocol asks for, measure it, and write `result.json` with everything a reader needs to judge it.

Each is called with (recipe, inputs by stage name, out) and returns the flat metrics for the manifest. A cascade can be handed in; otherwise
it is loaded from the inputs. All generated videos are kept under `videos/`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mav.artifact import Folder
from mav.data.video_io import encode_mp4, read_frames
from mav.errors import UserError
from mav.evaluation import protocols
from mav.evaluation.features import DemoFeatures, load_features
from mav.evaluation.metrics import bootstrap, clipsim, frechet_features, inception_score, psnr
from mav.evaluation.oracle import oracle_verdict
from mav.evaluation.sets import allot, central_frames, read_msrvtt, read_ucf101, readable
from mav.recipe import Generate, Recipe

if TYPE_CHECKING:
    from mav.generation.cascade import Cascade

Report = Callable[[dict[str, Any]], None]
RESULT = "result.json"
TRAINING_CLIPS = 64  # whose motion the oracle measures: enough for a median
CRF = 8  # visually lossless: what is judged is the network, not the codec


class Sampler(Protocol):
    """The part of a cascade that the text benchmarks use."""

    def sample(self, prompts: list[str], seeds: Sequence[int], generate: Generate) -> np.ndarray: ...


def evaluate_ucf101(
    recipe: Recipe,
    inputs: dict[str, Folder],
    out: Folder,
    report: Report = lambda _: None,
    cascade: Sampler | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Zero-shot UCF-101: FVD between generated and training clips, and the inception score of the generated ones."""
    protocol, features = protocols.load_protocol("ucf101-demo"), load_features(recipe, inputs["clip"], device)
    folder = _set(recipe.evaluate.ucf101, "ucf101", inputs)
    classes = read_ucf101(folder)
    sentences = [c.sentence for c in classes]
    prompts = [sentences[index] for index in allot(classes, protocol.samples)]
    real, failed = _real(features, folder, [clip for c in classes for clip in c.clips], recipe)
    made = _generate(recipe, inputs, out, prompts, 1_000_000, "evaluate-ucf101", report, cascade, device)
    ours = np.concatenate([features.frames(video[None]) for video in made])
    clips, reference = features.clips(ours), features.clips(real)
    probabilities = features.classes(ours, sentences)
    metrics = {
        "fvd": _interval(recipe, lambda rows: frechet_features(clips[rows], reference), len(clips)),
        "is": _interval(recipe, lambda rows: inception_score(probabilities[rows], protocol.splits), len(clips)),
    }
    # How far apart two halves of the real clips are: what a perfect generator would score at this sample count.
    metrics["fvd"]["real_halves"] = frechet_features(reference[::2], reference[1::2])
    real_probabilities = features.classes(real, sentences)
    metrics["is"]["real"] = inception_score(real_probabilities, protocol.splits)
    return _write(out, protocol, features, metrics, len(prompts), len(real), failed)


def evaluate_msrvtt(
    recipe: Recipe,
    inputs: dict[str, Folder],
    out: Folder,
    report: Report = lambda _: None,
    cascade: Sampler | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Zero-shot MSR-VTT: FID over frames, and CLIPSIM of frames with their caption."""
    protocol, features = protocols.load_protocol("msrvtt-demo"), load_features(recipe, inputs["clip"], device)
    folder = _set(recipe.evaluate.msrvtt, "msrvtt", inputs)
    listed = read_msrvtt(folder)
    prompts = [clip.captions[0] for clip in listed[: protocol.samples]]
    if not prompts:
        raise UserError(f"{folder.path('captions.json')} lists no test clip with a caption.")
    real, failed = _real(features, folder, [clip.path for clip in listed], recipe)
    made = _generate(recipe, inputs, out, prompts, 2_000_000, "evaluate-msrvtt", report, cascade, device)
    ours = np.concatenate([features.frames(video[None]) for video in made])
    similarity = clipsim(ours, features.texts(prompts))
    reference = real.reshape(-1, real.shape[-1])
    metrics = {
        "fid": _interval(recipe, lambda rows: frechet_features(ours[rows].reshape(-1, ours.shape[-1]), reference), len(ours)),
        "clipsim": _interval(recipe, lambda rows: float(similarity[rows].mean()), len(ours)),
    }
    metrics["fid"]["real_halves"] = frechet_features(*(real[i::2].reshape(-1, real.shape[-1]) for i in (0, 1)))
    # The scale's two ends: real clips with their own captions, and ours with somebody else's.
    paired = real[: len(prompts)] if not failed else real[:0]
    metrics["clipsim"]["real"] = float(clipsim(paired, features.texts(prompts)).mean()) if len(paired) else None
    metrics["clipsim"]["shuffled"] = float(clipsim(ours, np.roll(features.texts(prompts), len(prompts) // 2, axis=0)).mean())
    return _write(out, protocol, features, metrics, len(prompts), len(real), failed)


def evaluate_interpolation(
    recipe: Recipe,
    inputs: dict[str, Folder],
    out: Folder,
    report: Report = lambda _: None,
    cascade: Cascade | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """F^ between given frames of held-out clips, against linear blending: PSNR of the frames between, at the decoder's size."""
    from mav.data.loaders import fit
    from mav.diffusion.pixels import to_pixels
    from mav.generation.cascade import Cascade as Trained
    from mav.generation.cascade import Run

    protocol = protocols.load_protocol("interpolation-demo")
    sizes, skip = recipe.cascade, recipe.cascade.frame_skip
    folder = _set(recipe.evaluate.ucf101, "ucf101", inputs)
    paths = [clip for c in read_ucf101(folder) for clip in c.clips]
    paths = paths[:: max(1, len(paths) // protocol.samples)][: protocol.samples]  # spread over the classes
    network = cascade or Trained.load(recipe, inputs, device)
    failed: Counter[str] = Counter()
    ours, blends = [], []
    for number, path in enumerate(paths):
        try:
            filmed, fps = _as_filmed(folder, path, sizes.frames, skip)
        except (FileNotFoundError, ValueError):
            failed["unreadable or too short"] += 1
            continue
        truth = fit(filmed, sizes.base_size)
        generate = dataclasses.replace(recipe.generate, fps=fps / skip)
        run = Run(network, [3_000_000 + number], generate)
        filled = to_pixels(run.fill(network.to_base(filmed[None, ::skip]), network.embed_images(filmed[:1])))
        video = filled[0].permute(0, 2, 3, 1).cpu().numpy()
        between = [i for i in range(len(truth)) if i % skip]
        ours.append(psnr(video[between], truth[between]))
        blends.append(psnr(blend(truth[::skip], skip)[between], truth[between]))
        out.write_bytes(f"videos/{number:05d}.mp4", encode_mp4(np.concatenate([truth, video], axis=2), fps, crf=CRF))
        report({"stage": "evaluate-interpolation", "samples": number + 1, "total": len(paths)})
    if not ours:
        raise UserError(
            f"None of {len(paths)} clips under {folder.url} holds {skip + 1} readable frames: interpolation cannot be measured."
        )
    gain = np.array(ours) - np.array(blends)
    metrics = {
        "psnr": _interval(recipe, lambda rows: float(np.mean(np.array(ours)[rows])), len(ours)),
        "psnr_blend": _interval(recipe, lambda rows: float(np.mean(np.array(blends)[rows])), len(ours)),
        "psnr_gain": _interval(recipe, lambda rows: float(gain[rows].mean()), len(ours)),
    }
    return _write(out, protocol, None, metrics, len(ours), len(ours), dict(failed))


def evaluate_oracle(recipe: Recipe, inputs: dict[str, Folder], out: Folder, report: Report = lambda _: None) -> dict[str, Any]:
    """The oracle's verdict on the generated videos of a demo world; inputs: generate, video-shards, demo-world.

    Motion is compared between the frames D^t made (every frame_skip-th) and training clips at the same frame rate.
    """
    from mav.data.shards import read_tar, tar_names

    rows = [row for row in inputs["generate"].read_json("videos.json") if "colour" in row and "shape" in row]
    if not rows:
        raise UserError("No generated prompt says which colour and shape it asks for: the oracle knows the demo world's prompts only.")
    skip, fps, frames = recipe.cascade.frame_skip, recipe.generate.fps, recipe.cascade.frames

    def read(name: str) -> np.ndarray:
        return read_frames(inputs["generate"].read_bytes(name))[::skip]

    training: list[np.ndarray] = []
    for shard in tar_names(inputs["video-shards"]):
        for _, files in read_tar(inputs["video-shards"], shard):
            if len(training) < TRAINING_CLIPS:
                with contextlib.suppress(ValueError):  # too short for a training sample, so it taught no motion either
                    training.append(central_frames(files["mp4"], frames, fps))
    twins = [read(row["twin"]) for row in rows if row.get("twin")]
    settings = recipe.evaluate
    videos, shapes = [read(row["file"]) for row in rows], tuple(inputs["demo-world"].read_json("truth.json")["shapes"])
    verdict = oracle_verdict(videos, rows, training, twins, settings.bootstrap, settings.seed, shapes)
    for row, seen in zip(rows, verdict["videos"], strict=True):
        seen |= {"file": row["file"], "prompt": row["prompt"]}
    out.write_json(RESULT, verdict)
    return {key: value for key, value in verdict.items() if key != "videos"}


# --------------------------------------------------------------------------------------------------------------- the parts


def blend(given: np.ndarray, skip: int) -> np.ndarray:
    """Linear blending: uint8 (K, ...) given frames to (K - 1) * skip + 1."""
    count = (len(given) - 1) * skip + 1
    place = np.arange(count) / skip
    left = np.minimum(place.astype(int), max(len(given) - 2, 0))
    share = (place - left).reshape(-1, *[1] * (given.ndim - 1))
    right = np.minimum(left + 1, len(given) - 1)
    return np.asarray((given[left] * (1 - share) + given[right] * share + 0.5).astype(np.uint8))


def _as_filmed(folder: Folder, path: str, frames: int, skip: int) -> tuple[np.ndarray, float]:
    """The longest central run of consecutive frames with a whole number of gaps between at most `frames` given ones, and its rate."""
    from mav.data.video_io import open_video

    reader = open_video(folder.read_bytes(path))
    gaps = min((len(reader) - 1) // skip, frames - 1)
    if gaps < 1:
        raise ValueError(f"{path} has {len(reader)} frames, not {skip + 1}")
    count = gaps * skip + 1
    start = (len(reader) - count) // 2
    return np.asarray(reader.get_batch(list(range(start, start + count))).asnumpy()), float(reader.get_avg_fps())


def _set(named: str, name: str, inputs: dict[str, Folder]) -> Folder:
    if named:
        return Folder(named)
    if "demo-world" in inputs:
        return inputs["demo-world"].child(name)
    raise UserError(f"There is no {name} set to evaluate on: name its folder in `evaluate.{name}`.")


def _real(features: DemoFeatures, folder: Folder, paths: Sequence[str], recipe: Recipe) -> tuple[np.ndarray, dict[str, int]]:
    """Frame embeddings (n, F, d) of the real clips, and those that could not be read, by reason."""
    failed: Counter[str] = Counter()
    videos = readable(folder, paths, recipe.cascade.frames, recipe.generate.fps, failed)
    embedded = [features.frames(video[None]) for video in videos]
    if len(embedded) < 4:
        raise UserError(f"Only {len(embedded)} of {len(paths)} real clips under {folder.url} can be read: at least 4 are needed.")
    return np.concatenate(embedded), dict(sorted(failed.items()))


def _generate(
    recipe: Recipe,
    inputs: dict[str, Folder],
    out: Folder,
    prompts: list[str],
    first_seed: int,
    stage: str,
    report: Report,
    cascade: Sampler | None,
    device: str,
) -> Iterator[np.ndarray]:
    """The frames D^t made of each prompt, through the whole cascade, one video at a time; the whole video goes to `videos/`."""
    if cascade is None:
        from mav.generation.cascade import Cascade

        cascade = Cascade.load(recipe, inputs, device)
    generate, skip = recipe.generate, recipe.cascade.frame_skip
    for start in range(0, len(prompts), generate.batch_size):
        batch = prompts[start : start + generate.batch_size]
        seeds = [first_seed + recipe.evaluate.seed + start + i for i in range(len(batch))]
        for number, video in enumerate(cascade.sample(batch, seeds, generate), start):
            out.write_bytes(f"videos/{number:05d}.mp4", encode_mp4(video, generate.fps * skip, crf=CRF))
            yield video[::skip]
        report({"stage": stage, "samples": start + len(batch), "total": len(prompts)})


def _interval(recipe: Recipe, statistic: Callable[[np.ndarray], float], count: int) -> dict[str, Any]:
    low, high = bootstrap(statistic, count, recipe.evaluate.bootstrap, recipe.evaluate.seed)
    return {"value": float(statistic(np.arange(count))), "low": low, "high": high}


def _write(
    out: Folder,
    protocol: protocols.Protocol,
    features: DemoFeatures | None,
    metrics: dict[str, dict[str, Any]],
    samples: int,
    real: int,
    failed: dict[str, int],
) -> dict[str, Any]:
    """Writes the result and returns its flat form."""
    result = {
        "benchmark": protocol.benchmark,
        "protocol": dataclasses.asdict(protocol),
        "samples": samples,
        "real": real,
        "real_failed": failed,
        "metrics": metrics,
        "features": {"name": features.name, "sha256": features.sha256, "note": features.note} if features else None,
        "comparable": features is None or features.comparable,
    }
    out.write_json(RESULT, result)
    flat: dict[str, Any] = {"protocol": protocol.label, "samples": samples}
    for name, facts in metrics.items():
        flat |= {name: facts["value"], f"{name}_low": facts["low"], f"{name}_high": facts["high"]}
    return flat
