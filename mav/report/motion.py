"""What the video networks learned from: some of the clips, and the frame rates that training showed of them."""

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
LEDGERS = 8  # read for the rates: each says what some hundred clips can show
DRAWS = 600


def examples(shards: Artifact | None) -> list[dict[str, Any]]:
    """A few clips of the first shard as they were stored, with their rate, length and size."""
    tars = shards.files(".tar") if shards else []
    if shards is None or not tars:
        return []
    index = index_tar(shards.folder, tars[0])
    found: list[dict[str, Any]] = []
    with shards.folder.open(tars[0]) as file:
        keys = [key for key, files in index.items() if "mp4" in files]
        for key in keys[:: max(1, len(keys) // CLIPS)][:CLIPS]:
            facts = json.loads(read_at(file, index[key]["json"]))
            data = light(read_at(file, index[key]["mp4"]), facts["fps"])
            if len(data) + sum(len(clip["video"]) for clip in found) < CLIP_BYTES:
                found.append(facts | {"video": data_url("video/mp4", data), "steady": "times" not in facts})
    return found


def shown_rates(
    shards: Artifact | None, curriculum: FpsCurriculum, frames: int, seed: int
) -> list[tuple[float, float, float]]:
    """(share of training, rate drawn, rate shown) of clips taken at random; shown 0: the clip is too short."""
    clips: list[tuple[float, int]] = []
    if shards is None:
        return []
    for name in [name for name in shards.files(".parquet") if not ledgers([name])][:LEDGERS]:
        ledger = read_table(shards.folder, name, ["status", "fps", "frames"])
        clips += [(row["fps"], row["frames"]) for row in ledger.to_pylist() if row["status"] == "ok"]
    found = []
    for number in range(DRAWS) if clips else ():
        rng = np.random.default_rng([seed, number])
        fps, length = clips[int(rng.integers(len(clips)))]
        drawn = draw_fps(curriculum, number / DRAWS, rng)
        shown = frame_indices(frame_times(fps, length), frames, drawn, 0.0)[1] if length >= frames else 0.0
        found.append((number / DRAWS, drawn, shown))
    return found


def clamped(rates: list[tuple[float, float, float]]) -> dict[str, float]:
    """Shares of the draws that clips could not follow: too short, and filmed more slowly than the rate drawn."""
    count = max(len(rates), 1)
    short = sum(shown == 0 or shown > drawn + 1e-6 for _, drawn, shown in rates)
    return {"short": short / count, "slower": sum(0 < shown < drawn - 1e-6 for _, drawn, shown in rates) / count}
