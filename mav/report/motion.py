"""The clips that the video networks learned from, and the frame rates at which training showed them."""

import json
from typing import Any

import numpy as np

from mav.data.loading.frame_rates import draw_fps, frame_indices, frame_times
from mav.data.shards import index_tar, read_at, read_table
from mav.recipes import FpsCurriculum
from mav.report.collect import data_url, light
from mav.storage import Artifact
from mav.storage.ledger import ledgers

CLIPS = 8
CLIP_BYTES = 1_500_000  # of all clips on the page
TABLES = 8  # tables of clips read for the rates; each has some hundred
DRAWS = 600

Rates = list[tuple[float, float, float]]  # (share of training, drawn rate, shown rate); shown 0: the clip is too short


def examples(shards: Artifact | None) -> list[dict[str, Any]]:
    """Returns a few clips of the first shard as they are stored, with their rate, length and size."""
    tars = shards.files(".tar") if shards else []
    if shards is None or not tars:
        return []
    index = index_tar(shards.folder, tars[0])
    found: list[dict[str, Any]] = []
    size = 0
    with shards.folder.open(tars[0]) as file:
        keys = [key for key, files in index.items() if "mp4" in files]
        for key in keys[:: max(1, len(keys) // CLIPS)][:CLIPS]:
            metadata = json.loads(read_at(file, index[key]["json"]))
            data = light(read_at(file, index[key]["mp4"]), metadata["fps"])
            if len(data) + size < CLIP_BYTES:
                found.append(metadata | {"video": data_url("video/mp4", data), "steady": "times" not in metadata})
                size += len(found[-1]["video"])
    return found


def simulate_rates(shards: Artifact | None, curriculum: FpsCurriculum, frames: int, seed: int) -> Rates:
    """Draws random clips and rates over the training and returns at which rates they would be shown."""
    if shards is None:
        return []
    clips: list[tuple[float, int]] = []
    for name in [name for name in shards.files(".parquet") if not ledgers([name])][:TABLES]:
        rows = read_table(shards.folder, name, ["status", "fps", "frames"]).to_pylist()
        clips += [(row["fps"], row["frames"]) for row in rows if row["status"] == "ok"]
    found = []
    for number in range(DRAWS) if clips else ():
        rng = np.random.default_rng([seed, number])
        fps, length = clips[int(rng.integers(len(clips)))]
        drawn = draw_fps(curriculum, number / DRAWS, rng)
        shown = frame_indices(frame_times(fps, length), frames, drawn, 0.0)[1] if length >= frames else 0.0
        found.append((number / DRAWS, drawn, shown))
    return found


def clamped(rates: Rates) -> dict[str, float]:
    """Returns the shares of draws that clips could not follow: too short, or filmed more slowly than the drawn rate."""
    count = max(len(rates), 1)
    short = sum(shown == 0 or shown > drawn + 1e-6 for _, drawn, shown in rates)
    return {"short": short / count, "slower": sum(0 < shown < drawn - 1e-6 for _, drawn, shown in rates) / count}
