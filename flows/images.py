"""Image-text data: screened tables, downloaded shards, scores and embeddings. One deployable flow a stage."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flows.demo import allowed_addresses, picture_families
from flows.engine.run import Job
from flows.engine.shard_map import one_pass, shard_map
from flows.engine.stage import Outcome, Retry, stage
from mav.data.fetching.failed_rows import RetryWork
from mav.data.fetching.rules import is_transient
from mav.errors import UserError
from mav.storage import Folder

if TYPE_CHECKING:
    from filters.screen import MetadataWork
    from mav.data.images.download import DownloadWork


@stage("image-metadata", reads=("screening", "image_metadata"), version=4)
def image_metadata(job: Job) -> Outcome:
    """Screens LAION-style tables: NSFW, toxic words, watermarks, sizes; every dropped row with its reason."""
    from filters.screen import MetadataWork
    from mav.data.images.laion import source_parts

    section = job.recipe.image_metadata
    world = job.inputs.get("demo-world")
    sources = section.sources or ([world.child("laion/*.parquet").url] if world else [])
    work = MetadataWork(tuple(source_parts(sources, job.say)), job.recipe.screening, section.rows_per_shard, job.out)
    if work.screening.duplicates == "all":
        work = dataclasses.replace(work, repeats=_find_repeats(job, work))
    return shard_map(job, work, work.names())


def _find_repeats(job: Job, screening: MetadataWork) -> Folder:
    """Finds rows that occur in any table before: one pass over the tables for hashes, one over the hashes for repeats.

    Both are in the stage's work folder until it is done.
    """
    from filters.duplicates import HashWork, RepeatWork

    names = tuple(screening.names())
    hashes = one_pass(job, "hashes", lambda out: (HashWork(screening.kept_rows, out), names))
    return one_pass(job, "repeats", lambda out: (RepeatWork(names, hashes, out), RepeatWork.names()))


def download_work(job: Job) -> DownloadWork:
    """Returns what `image-download` does with a shard."""
    from mav.data.fetching.proxy import require_proxy
    from mav.data.images.download import DownloadWork

    section = job.recipe.image_download
    require_proxy("image_download.proxy", section.proxy)
    rules = dataclasses.replace(section, allow_addresses=allowed_addresses(job, section))
    return DownloadWork(job.inputs["image-metadata"], rules, job.out)


@stage("image-download", reads=("image_download",), version=5, retry=Retry(is_transient, download_work, RetryWork))
def image_download(job: Job) -> Outcome:
    """Fetches, checks and resizes the images of the screened rows into WebDataset tars."""
    work = download_work(job)
    rules = work.download
    return shard_map(job, work, work.names(), success_floor=rules.success_floor, shard_floor=rules.shard_floor)


@stage(
    "image-screen", gpu=True,
    reads=("screening.punsafe_threshold", "screening.pwatermark_threshold", "screening.unknown_scores", "image_embed"),
)  # fmt: skip
def image_screen(job: Job) -> Outcome:
    """Scores the rows nobody scored and screens them; keeps the CLIP image embeddings it needed for that."""
    from mav.data.images.embed import ScreenWork
    from mav.data.shards import shard_names

    images, recipe = job.inputs["image-download"], job.recipe
    batch, gpus = recipe.image_embed.batch_size, recipe.cluster.gpus_per_worker
    work = ScreenWork(images, job.inputs["clip"], job.out, recipe.screening, batch, job.device)
    outcome = shard_map(job, work, shard_names(images), gpus=gpus, actors=gpus > 0)
    rows = outcome.counts.get("rows_in", 0)
    if rows and outcome.counts["dropped"].get("unknown_score") == rows:
        raise UserError(
            f"None of the {rows:,} pictures has a score, of its table or of a scorer, so all were dropped: name "
            "`clip.nsfw_head` and `clip.watermark_head`, or say `screening.unknown_scores: keep`."
        )
    return outcome


@stage("image-embed", reads=("image_embed",), gpu=True, version=2)
def image_embed(job: Job) -> Outcome:
    """CLIP embeddings and text tokens of the kept rows, aligned with the tars."""
    from mav.data.images.embed import EmbedWork
    from mav.data.shards import shard_names

    images, gpus = job.inputs["image-download"], job.recipe.cluster.gpus_per_worker
    batch = job.recipe.image_embed.batch_size
    work = EmbedWork(images, job.inputs["image-screen"], job.inputs["clip"], job.out, batch, job.device)
    return shard_map(job, work, shard_names(images), gpus=gpus, actors=gpus > 0)


@stage("image-select", reads=("image_select",))
def image_select(job: Job) -> Outcome:
    """Keeps one of each group of near duplicates, and no picture of a low aesthetic score; off by default."""
    from filters.pictures import Pictures, SelectWork, agreement
    from mav.data.shards import read_table

    images, embeds = job.inputs["image-download"], job.inputs["image-embed"]
    pictures = Pictures.open(images, embeds, job.recipe.image_select)
    names = pictures.names()
    outcome = shard_map(job, SelectWork(pictures, pictures.groups(partial(one_pass, job)), job.out), names)
    if families := picture_families(job):
        kept: dict[str, bool] = {}
        for name in names:
            rows = read_table(images, f"{name}.parquet", ["key", "url"]).to_pylist()
            path = {row["key"]: urlsplit(row["url"]).path for row in rows}
            chosen = read_table(job.out, f"{name}.parquet", ["key", "kept"]).to_pylist()
            kept |= {path[row["key"]]: row["kept"] for row in chosen}
        outcome.metrics["filters"] = agreement(kept, families)
    return outcome
