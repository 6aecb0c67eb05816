"""The `generate` stage: the recipe's prompts through the cascade, as mp4 files and their list."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mav.data import prompts as prompt_lists
from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.generation.cascade import Cascade
from mav.recipes import Recipe
from mav.storage import Folder

LIST = "videos.json"
CRF = 8  # visually lossless: what is judged later is the network, not the codec


def generate_videos(
    recipe: Recipe,
    inputs: dict[str, Folder],
    out: Folder,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Writes `videos/NNNNN.mp4` for each prompt, its twin with time switched off under `time-off/` when the recipe asks for one, and
    `videos.json`: [{"index", "prompt", "seed", "file", "twin", "fps", ...what is known of the prompt}].

    Returns metrics. Raises UserError when there is no prompt.
    """
    generate = recipe.generate
    prompts = read_prompts(recipe, inputs)
    cascade = Cascade.load(recipe, inputs, device)
    fps = generate.fps * recipe.cascade.frame_skip
    rows = [
        {
            **prompt,
            "index": index,
            "seed": recipe.seed + index,
            "file": f"videos/{index:05d}.mp4",
            "twin": f"time-off/{index:05d}.mp4" if generate.time_off_twin else None,
            "fps": fps,
        }
        for index, prompt in enumerate(prompts)
    ]
    kinds = {"file": True} | ({"twin": False} if generate.time_off_twin else {})  # with time layers, and without
    for place, (kind, time) in enumerate(kinds.items()):
        sample = functools.partial(cascade.sample, generate=generate, time=time)
        for done in write_videos(out, rows, kind, recipe, sample):
            report({"stage": "generate", "samples": place * len(rows) + done, "total": len(kinds) * len(rows)})
    out.write_json(LIST, rows)
    sizes = recipe.cascade
    return {"videos": len(rows), "frames": sizes.long_frames, "size": sizes.high_size, "fps": fps}


def write_videos(
    out: Folder,
    rows: Sequence[dict[str, Any]],
    kind: str,
    recipe: Recipe,
    sample: Callable[[list[str], list[int]], np.ndarray],
) -> Iterator[int]:
    """Makes the file that each row names as `kind` of its prompt and seed, a batch at a time; yields how many are done.

    A batch whose files are there already (a killed run's) is not made again.
    """
    size, fps = recipe.generate.batch_size, recipe.generate.fps * recipe.cascade.frame_skip
    for first in range(0, len(rows), size):
        batch = rows[first : first + size]
        if not all(out.exists(row[kind]) for row in batch):
            videos = sample([row["prompt"] for row in batch], [row["seed"] for row in batch])
            for row, video in zip(batch, videos, strict=True):
                out.write_bytes(row[kind], encode_mp4(video, fps, crf=CRF))
        yield first + len(batch)


def read_prompts(recipe: Recipe, inputs: dict[str, Folder]) -> list[dict[str, Any]]:
    """The prompts of the file `generate.prompts`, else the demo world's with the truth about each."""
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
