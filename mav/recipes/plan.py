"""What a recipe's data will take: rows, shards, bytes, hours and days, by arithmetic on rates that are measured, given or assumed.

Nothing here measures; `mav plan` does, and says of every rate where it comes from. The training stages are not planned: their time
is samples over samples/s, which `mav run` shows from the first minute on.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from mav.recipes.recipe import Recipe

Origin = Literal["assumed", "measured", "given"]


@dataclass(frozen=True)
class Rate:
    """One number the plan rests on."""

    value: float
    unit: str
    about: str
    origin: Origin = "assumed"


RATES = {
    "screened": Rate(400_000, "rows/s/core", "tables read, screened and written"),
    "kept": Rate(0.82, "of rows", "pass the screening; LAION-2B-en loses most to watermarks"),
    "fetched": Rate(150, "images/s/core", "fetched, checked, resized and written by a core"),
    "reached": Rate(0.75, "of images", "are still on the web and are pictures"),
    "source_bytes": Rate(150_000, "bytes/image", "fetched"),
    "pixel_bytes": Rate(0.3, "bytes/pixel", "of a JPEG as kept (quality 95)"),
    "bandwidth": Rate(125_000_000, "bytes/s/worker", "from the web into a worker's machine"),
    "embedded": Rate(900, "images/s/GPU", "CLIP image embeddings (ViT-L/14 on an A100, half precision)"),
    "texts": Rate(4000, "captions/s/GPU", "CLIP text embeddings"),
    "unknown": Rate(0.05, "of images", "lack a score and need a scorer's word"),
    "clip_seconds": Rate(15, "s/clip", "length of a clip that is kept whole"),
    "encoded": Rate(2.0, "s of clip/s/core", "decoded, brought to size and encoded again"),
    "clip_reached": Rate(0.8, "of clips", "are still on the web and are whole"),
    "clip_bytes": Rate(250_000, "bytes/s of clip", "as kept"),
}


@dataclass(frozen=True)
class StagePlan:
    """One stage: rows, shards, what it leaves, and what it takes."""

    stage: str
    rows_in: int
    rows_out: int
    shards: int
    bytes: int
    cpu_hours: float
    gpu_hours: float
    days: float


def with_rates(given: dict[str, float], measured: dict[str, float]) -> dict[str, Rate]:
    """All rates: what was given before what was measured before what is assumed."""
    rates = dict(RATES)
    for values, origin in ((measured, "measured"), (given, "given")):
        for name, value in values.items():
            rates[name] = replace(rates[name], value=value, origin=origin)  # type: ignore[arg-type] # the two words above
    return rates


def plan_stages(recipe: Recipe, rates: dict[str, Rate], image_rows: int, clips: int) -> list[StagePlan]:
    """The data stages of a recipe for so many rows of its tables and clips of its lists."""
    rate = {name: rate.value for name, rate in rates.items()}
    cluster, size = recipe.cluster, recipe.image_download.image_size
    cpus = max(cluster.cpus, cluster.workers * cluster.cpus_per_worker, 1)
    gpus = cluster.workers * cluster.gpus_per_worker
    line = cluster.workers * rate["bandwidth"]
    dim = recipe.clip.network.embedding_dim if not recipe.clip.architecture else 768
    context = recipe.clip.network.text_context if not recipe.clip.architecture else 77

    def stage(
        name: str, rows: float, out: float, shards: int, size: float, cpu: float, gpu: float = 0.0, fetched: float = 0.0
    ) -> StagePlan:
        """cpu, gpu: seconds of one; fetched: bytes through the line."""
        days = max(cpu / cpus, gpu / gpus if gpus else 0.0, fetched / line) / 86_400
        return StagePlan(name, int(rows), int(out), shards, int(size), cpu / 3600, gpu / 3600, days)

    def network(seconds_of_gpu: float) -> tuple[float, float]:
        """(CPU, GPU) seconds of work for a GPU; where there is none a core does it at a thirtieth of the speed."""
        return (0.0, seconds_of_gpu) if gpus else (30 * seconds_of_gpu, 0.0)

    kept = image_rows * rate["kept"]
    images = kept * rate["reached"]
    shards = math.ceil(image_rows / recipe.image_metadata.rows_per_shard)
    picture = size * size * 4 / 3 * rate["pixel_bytes"]
    embedding_cpu, embedding_gpu = network(images / rate["embedded"])
    text_cpu, text_gpu = network(images / rate["texts"])
    useful = images * (1 - rate["unknown"] * 0.15)
    clips_out = clips * rate["clip_reached"]
    seconds = rate["clip_seconds"] if recipe.world is None else recipe.world.clip_frames / recipe.world.clip_fps
    return [
        stage("image-metadata", image_rows, kept, shards, image_rows * 190, image_rows / rate["screened"]),
        stage(
            "image-download",
            kept,
            images,
            shards,
            images * (picture + 1500),
            kept / rate["fetched"],
            0.0,
            images * rate["source_bytes"],
        ),
        stage("image-screen", images, useful, shards, images * (2 * dim + 30), embedding_cpu, embedding_gpu),
        stage("image-embed", useful, useful, shards, useful * (4 * dim + 2 * context), text_cpu, text_gpu),
        stage(
            "video-shards",
            clips,
            clips_out,
            math.ceil(clips / recipe.video_shards.clips_per_shard),
            clips_out * seconds * rate["clip_bytes"],
            clips_out * seconds / rate["encoded"],
            0.0,
            clips_out * seconds * rate["clip_bytes"] * 2,
        ),
    ]
