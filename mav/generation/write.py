"""The `generate` stage: it writes the recipe's prompts as mp4 files, and a list of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mav.data import prompts as prompt_lists
from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.generation.cascade import Cascade
from mav.generation.prompts import end_not_seen
from mav.recipes import Recipe
from mav.storage import Folder

LIST = "videos.json"
CRF = 8  # visually lossless, because the network is judged later, not the codec


def generate_videos(
    recipe: Recipe, inputs: dict[str, Folder], out: Folder,
    report: Callable[[dict[str, Any]], None] = lambda _: None, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Writes `videos/NNNNN.mp4` for each prompt, and `videos.json`; returns metrics.

    When the recipe asks for them, a twin with time switched off is written under `time-off/`, and the frames of D^t
    alone, asked for at other frame rates, under `rates/`. An entry of `videos.json` has index, prompt, seed, file,
    twin, rates, fps, and what else is known of the prompt. Raises UserError when there is no prompt.
    """
    generate, sizes = recipe.generate, recipe.cascade
    prompts = read_prompts(recipe, inputs)
    cascade = Cascade.load(recipe, inputs, device)
    fps = generate.fps * sizes.frame_skip
    rows = [
        prompt | {"index": index, "seed": recipe.seed + index, "file": f"videos/{index:05d}.mp4", "fps": fps}
        | {"twin": f"time-off/{index:05d}.mp4" if generate.time_off_twin else None}
        | {"rates": {f"{rate:g}": f"rates/{rate:g}/{index:05d}.mp4" for rate in generate.frame_rates}}
        for index, prompt in enumerate(prompts)
    ]  # fmt: skip
    passes = [([row["file"] for row in rows], fps, functools.partial(cascade.sample, generate=generate))]
    if generate.time_off_twin:
        off = functools.partial(cascade.sample, generate=generate, time=False)
        passes.append(([row["twin"] for row in rows], fps, off))
    for rate in generate.frame_rates:
        asked = functools.partial(cascade.sample_decoded, generate=dataclasses.replace(generate, fps=rate))
        passes.append(([row["rates"][f"{rate:g}"] for row in rows], rate, asked))
    for place, (files, frame_rate, sample) in enumerate(passes):
        for done in write_videos(out, rows, files, frame_rate, generate.batch_size, sample):
            report({"stage": "generate", "samples": place * len(rows) + done, "total": len(passes) * len(rows)})
    out.write_json(LIST, rows)
    cut = sum(bool(end_not_seen(cascade.clip, row["prompt"])) for row in rows)
    beyond = {"prompts_beyond_context": cut} if cut else {}
    return beyond | {"videos": len(rows), "frames": sizes.long_frames, "size": sizes.high_size, "fps": fps}


def write_videos(
    out: Folder, rows: Sequence[dict[str, Any]], files: Sequence[str], fps: float, size: int,
    sample: Callable[[list[str], list[int]], np.ndarray],
) -> Iterator[int]:  # fmt: skip
    """Samples each row's prompt and seed, `size` at a time, and writes its file; yields rows done.

    A batch whose files exist (from a killed run) is skipped.
    """
    for first in range(0, len(rows), size):
        batch, names = rows[first : first + size], files[first : first + size]
        if not all(out.exists(name) for name in names):
            videos = sample([row["prompt"] for row in batch], [row["seed"] for row in batch])
            for name, video in zip(names, videos, strict=True):
                out.write_bytes(name, encode_mp4(video, fps, crf=CRF))
        yield first + len(batch)


def read_prompts(recipe: Recipe, inputs: dict[str, Folder]) -> list[dict[str, Any]]:
    """Reads the prompts of the file `generate.prompts`, or else the demo world's with the truth about each."""
    generate = recipe.generate
    if generate.prompts:
        listed = prompt_lists.read_prompts(Folder(generate.prompts))
        prompts: list[dict[str, Any]] = [
            {"prompt": text} | ({"category": kind} if kind else {}) for text, kind in listed
        ]
    elif "demo-world" in inputs:
        prompts = inputs["demo-world"].read_json("prompts.json")
    else:
        raise UserError("There is nothing to generate: name a file of prompts, one a line, in `generate.prompts`.")
    prompts = prompts[: generate.count or None]
    if not prompts:
        raise UserError(f"{generate.prompts} holds no prompt: write one a line.")
    return prompts
