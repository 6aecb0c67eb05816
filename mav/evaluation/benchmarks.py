"""The benchmarks: sample what a protocol asks for, measure it, and write `result.json` with everything a reader needs to judge it.

Each is called with (recipe, inputs by stage name, out) and returns the flat metrics for the manifest. A cascade can be handed in; otherwise
it is loaded from the inputs. All generated videos are kept under `videos/`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from mav.artifact import Folder
from mav.data.video_io import encode_mp4, read_frames
from mav.errors import UserError
from mav.evaluation import protocols
from mav.evaluation.features import Networks
from mav.evaluation.measure import RESULT, Report, Settings, flat, measure
from mav.evaluation.oracle import oracle_verdict
from mav.evaluation.reading import central_frames
from mav.evaluation.sets import read_set
from mav.recipe import Generate, Recipe

TRAINING_CLIPS = 64  # whose motion the oracle measures: enough for a median
CRF = 8  # visually lossless: what is judged is the network, not the codec
FIRST_SEED = {"ucf101": 1_000_000, "msrvtt": 2_000_000}  # samples of one benchmark are not another's


class Sampler(Protocol):
    """The part of a cascade that the text benchmarks use."""

    def sample(self, prompts: list[str], seeds: Sequence[int], generate: Generate) -> np.ndarray: ...


def evaluate_text_to_video(
    benchmark: str,
    recipe: Recipe,
    inputs: dict[str, Folder],
    out: Folder,
    report: Report = lambda _: None,
    cascade: Sampler | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Zero-shot `ucf101` (FVD, inception score) or `msrvtt` (FID over frames, CLIPSIM): generates what the protocol asks for, then
    measures the videos as anybody's."""
    settings = recipe.evaluate
    protocol = protocols.load_protocol(f"{benchmark}-{'demo' if settings.features == 'demo' else 'paper'}")
    networks = Networks(protocol.networks, settings.weights_dir, inputs["clip"], device)
    networks.facts()  # weights that are missing are told before anything is generated
    folder = set_folder(getattr(settings, benchmark), benchmark, inputs)
    asked = read_set(protocol, folder, protocol.samples)
    first_seed = FIRST_SEED[benchmark] + settings.seed
    _generate(recipe, inputs, out, list(asked.prompts), first_seed, f"evaluate-{benchmark}", report, cascade, device)
    measured = Settings(protocol.preparation(recipe), len(asked.prompts), settings.bootstrap, settings.seed)
    work = out.child("work")
    result = measure(protocol, measured, out.child("videos"), asked, folder, networks, work, work)
    out.write_json(RESULT, result)
    work.remove()
    return flat(result)


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


def set_folder(named: str, name: str, inputs: dict[str, Folder]) -> Folder:
    """The folder of an evaluation set: the one the recipe names, else the demo world's. Raises UserError when there is neither."""
    if named:
        return Folder(named)
    if "demo-world" in inputs:
        return inputs["demo-world"].child(name)
    raise UserError(f"There is no {name} set to evaluate on: name its folder in `evaluate.{name}`.")


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
) -> None:
    """Each prompt through the whole cascade into `videos/NNNNN.mp4`; a batch that a killed run left whole is not made again."""
    generate, skip = recipe.generate, recipe.cascade.frame_skip
    for start in range(0, len(prompts), generate.batch_size):
        batch = prompts[start : start + generate.batch_size]
        names = [f"videos/{start + i:05d}.mp4" for i in range(len(batch))]
        if not all(out.exists(name) for name in names):
            if cascade is None:
                from mav.generation.cascade import Cascade

                cascade = Cascade.load(recipe, inputs, device)
            seeds = [first_seed + start + i for i in range(len(batch))]
            for name, video in zip(names, cascade.sample(batch, seeds, generate), strict=True):
                out.write_bytes(name, encode_mp4(video, generate.fps * skip, crf=CRF))
        report({"stage": stage, "samples": start + len(batch), "total": len(prompts)})
