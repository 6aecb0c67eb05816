"""The benchmark stages: they sample what a protocol asks for, measure it and write `result.json`.

Each takes (recipe, inputs by stage name, out) and returns the flat metrics for the manifest. A cascade that is not
given is loaded from the inputs. All generated videos are kept under `videos/`.
"""

import dataclasses
from typing import Any

import numpy as np

from mav.errors import UserError
from mav.evaluation import protocols
from mav.evaluation.card import NoCardError, blind_to, make_card
from mav.evaluation.features import Networks
from mav.evaluation.measure import RESULT, Report, Settings, flat, measure
from mav.evaluation.reading import Entry, evenly
from mav.evaluation.sets import read_set
from mav.generation.cascade import Cascade
from mav.generation.write import write_videos
from mav.recipes import Recipe
from mav.storage import Folder

FIRST_SEED = {"ucf101": 1_000_000, "msrvtt": 2_000_000}  # no two benchmarks share a sample


def evaluate_text_to_video(
    benchmark: str, recipe: Recipe, inputs: dict[str, Folder], out: Folder, report: Report = lambda _: None,
    cascade: Cascade | None = None, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Generates the videos that a zero-shot protocol asks for and measures them like those of any other system.

    The benchmark is `ucf101` (FVD, inception score) or `msrvtt` (FID over frames, CLIPSIM).
    """
    settings = recipe.evaluate
    # Missing weights are reported before anything is generated.
    protocol, networks, folder = _benchmark(benchmark, recipe, inputs, device)
    asked = read_set(protocol, folder, protocol.samples)
    seed = FIRST_SEED[benchmark] + settings.seed
    rows = [{"prompt": p, "seed": seed + i, "file": f"videos/{i:05d}.mp4"} for i, p in enumerate(asked.prompts)]

    def sample(prompts: list[str], seeds: list[int]) -> np.ndarray:
        nonlocal cascade
        cascade = cascade or Cascade.load(recipe, inputs, device)
        return cascade.sample(prompts, seeds, recipe.generate)

    fps = recipe.generate.fps * recipe.cascade.frame_skip
    files = [str(row["file"]) for row in rows]
    for done in write_videos(out, rows, files, fps, recipe.generate.batch_size, sample):
        report({"stage": f"evaluate-{benchmark}", "samples": done, "total": len(rows)})
    measured = Settings(protocol.preparation(recipe), len(asked.prompts), settings.bootstrap, settings.seed)
    work = out.child("work")
    result = measure(protocol, measured, out.child("videos"), asked, folder, networks, work, work)
    out.write_json(RESULT, result)
    work.remove()
    return flat(result)


def judge_metrics(
    recipe: Recipe, inputs: dict[str, Folder], out: Folder, report: Report = lambda _: None, device: str = "cpu"
) -> dict[str, Any]:
    """Writes `BENCHMARK.json`, the validity card of its protocol, from `evaluate.card_clips` of its real clips, evenly.

    Inception scores are not judged, because the classes of the clips are not asked for. A set whose readable clips are
    too few gets no card: the file then says why under `skipped`, and the run goes on.
    """
    settings, seen = recipe.evaluate, dict[str, int]()
    for benchmark in FIRST_SEED:
        protocol, networks, folder = _benchmark(benchmark, recipe, inputs, device)
        real = read_set(protocol, folder, protocol.samples)
        texts = real.real_texts if benchmark == "msrvtt" else ("",) * len(real.real)
        clips = evenly(list(zip(real.real, texts, strict=True)), settings.card_clips)
        entries = [Entry(number, *clip) for number, clip in enumerate(clips)]
        work = out.child(f"work-{benchmark}")
        judged = (protocol, protocol.preparation(recipe), folder, entries, networks, work)
        try:
            card = make_card(*judged, draws=settings.bootstrap, seed=settings.seed, report=report)
            blind = blind_to("strobing", card)
            seen |= {f"{benchmark}_metrics": len(card["real"]), f"{benchmark}_blind_to_strobing": len(blind)}
        except NoCardError as error:
            card = {"protocol": dataclasses.asdict(protocol), "skipped": str(error)}
            seen[f"{benchmark}_metrics"] = 0
        out.write_json(f"{benchmark}.json", card)
        work.remove()
    return seen


def _benchmark(
    benchmark: str, recipe: Recipe, inputs: dict[str, Folder], device: str
) -> tuple[protocols.Protocol, Networks, Folder]:
    """Returns a benchmark's protocol, networks and set. Raises UserError when its weights or its set are missing."""
    settings = recipe.evaluate
    protocol = protocols.load_protocol(f"{benchmark}-{'demo' if settings.features == 'demo' else 'paper'}")
    networks = Networks(protocol.networks, settings.weights_dir, inputs["clip"], device)
    networks.describe()
    return protocol, networks, set_folder(getattr(settings, benchmark), benchmark, inputs)


def set_folder(named: str, name: str, inputs: dict[str, Folder]) -> Folder:
    """Returns an evaluation set: the recipe's folder, or the demo world's. Raises UserError when there is neither."""
    if named:
        return Folder(named)
    if "demo-world" in inputs:
        return inputs["demo-world"].child(name)
    raise UserError(f"There is no {name} set to evaluate on: name its folder in `evaluate.{name}`.")
