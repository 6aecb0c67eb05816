"""An estimate of what a recipe's data needs: rows, shards, bytes, hours and days.

It is arithmetic on rates that `mav plan` measures, that the user gives, or that are assumed. The training stages are
not part of it: their time is samples over samples/s, which `mav run` shows from its first minute on.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from mav.recipes.cluster import Cluster
from mav.recipes.recipe import Recipe

Origin = Literal["assumed", "measured", "given"]


@dataclass(frozen=True)
class Rate:
    """One number that the estimate depends on."""

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
    "distinct": Rate(0.7, "of images", "remain of near duplicates; LAION-2B has 0.7 billion (Webster et al. 2023)"),
    "compared": Rate(3000, "images/s/core", "embeddings compared with those of their cells"),
    "clip_seconds": Rate(15, "s/clip", "length of a clip that is kept whole"),
    "encoded": Rate(2.0, "s of clip/s/core", "decoded, brought to size and encoded again"),
    "clip_reached": Rate(0.8, "of clips", "are still on the web and are whole"),
    "clip_bytes": Rate(250_000, "bytes/s of clip", "as kept"),
    "chosen": Rate(0.7, "of clips", "have no cuts, overlays or borders and move as they should"),
}


KEY_BYTES = 8  # of a row of a selection: a key, whether it is kept and why not, as parquet packs them
BESIDE_BYTES = 3200  # of an image: its caption and facts, three headers of a tar and their padding, its row


@dataclass(frozen=True)
class StagePlan:
    """The estimate of one stage: its rows, its shards, the bytes it stores and the time it takes."""

    stage: str
    rows_in: int
    rows_out: int
    shards: int
    bytes: int
    cpu_hours: float
    gpu_hours: float
    days: float


def processors(cluster: Cluster) -> tuple[int, float]:
    """Returns the CPUs and the GPUs that a cluster works with."""
    return max(cluster.cpus, cluster.workers * cluster.cpus_per_worker, 1), cluster.workers * cluster.gpus_per_worker


def with_rates(given: dict[str, float], measured: dict[str, float]) -> dict[str, Rate]:
    """Returns all rates. A given value replaces a measured one, and a measured value replaces an assumed one."""
    rates = {name: replace(RATES[name], value=value, origin="measured") for name, value in measured.items()}
    rates |= {name: replace(RATES[name], value=value, origin="given") for name, value in given.items()}
    return RATES | rates


def plan_stages(recipe: Recipe, rates: dict[str, Rate], image_rows: int, clips: int) -> list[StagePlan]:
    """Returns the estimate of every data stage for this number of table rows and of listed clips."""
    rate = {name: rate.value for name, rate in rates.items()}
    cluster, size, clip = recipe.cluster, recipe.image_download.image_size, recipe.clip
    cpus, gpus = processors(cluster)
    dim, context = (768, 77) if clip.architecture else (clip.network.embedding_dim, clip.network.text_context)

    def stage(
        name: str, rows: float, out: float, shards: int, stored: float, cpu: float, gpu: float = 0, web: float = 0
    ) -> StagePlan:
        """Makes one estimate from seconds of one CPU, seconds of one GPU, and bytes fetched from the web."""
        fetching = web / (cluster.workers * rate["bandwidth"])
        days = max(cpu / cpus, gpu / gpus if gpus else 0.0, fetching) / 86_400
        return StagePlan(name, int(rows), int(out), shards, int(stored), cpu / 3600, gpu / 3600, days)

    def network(seconds: float) -> tuple[float, float]:
        """Returns (CPU, GPU) seconds of work for a GPU. Without GPUs, a core does it at a thirtieth of the speed."""
        return (0.0, seconds) if gpus else (30 * seconds, 0.0)

    # Images: what screening keeps, what the web still has, and what the scorers keep.
    kept = image_rows * rate["kept"]
    images = kept * rate["reached"]
    useful = images * (1 - rate["unknown"] * 0.15)
    parts = math.ceil(image_rows / recipe.image_metadata.rows_per_shard)
    stored = images * (size * size * 4 / 3 * rate["pixel_bytes"] + BESIDE_BYTES)
    embedding, text = network(images / rate["embedded"]), network(images / rate["texts"])
    # Videos: the seconds of the clips that the web still has.
    found = clips * rate["clip_reached"]
    seconds = found * (recipe.world.clip_frames / recipe.world.clip_fps if recipe.world else rate["clip_seconds"])
    bytes_, shards = seconds * rate["clip_bytes"], math.ceil(clips / recipe.video_shards.clips_per_shard)
    fetched = kept / rate["fetched"]
    # Selections read scores, hashes or embeddings, and leave a key a row.
    searched = recipe.image_select.hash_bits or recipe.image_select.near_duplicate
    distinct = useful * (rate["distinct"] if searched else 1)
    comparing = useful / rate["compared"] if recipe.image_select.near_duplicate else useful / rate["screened"]
    return [
        stage("image-metadata", image_rows, kept, parts, image_rows * 190, image_rows / rate["screened"]),
        stage("image-download", kept, images, parts, stored, fetched, web=images * rate["source_bytes"]),
        stage("image-screen", images, useful, parts, images * (2 * dim + 30), *embedding),
        stage("image-embed", useful, useful, parts, useful * (4 * dim + 2 * context), *text),
        stage("image-select", useful, distinct, parts, useful * KEY_BYTES, comparing),
        stage("video-shards", clips, found, shards, bytes_, seconds / rate["encoded"], web=bytes_ * 2),
        stage("video-select", found, found * rate["chosen"], shards, found * KEY_BYTES, found / rate["screened"]),
    ]
