"""Image-text data: screened tables, downloaded shards, scores and embeddings. One deployable flow a stage."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from flows.engine.remote import on_ray
from flows.engine.run import Job
from flows.engine.shard_map import shard_map
from flows.engine.stage import Outcome, stage
from mav.storage import Folder

if TYPE_CHECKING:
    from filters.screen import MetadataWork
    from mav.data.images.download import DownloadWork


@stage("demo-world", sections=("world",))
def demo_world(job: Job) -> Outcome:
    """Draws the demo world: pictures, clips, tables and their faults, with known truth."""
    from mav.world.world import draw_world

    facts = on_ray(job, _draw_world, draw_world, job.recipe.world, job.recipe.seed, job.out)
    return Outcome(metrics=facts)


def _draw_world(draw, world, seed, out, report):  # type: ignore[no-untyped-def]
    return draw(world, seed, out)


@stage("image-metadata", sections=("screening", "image_metadata"), version=3)
def image_metadata(job: Job) -> Outcome:
    """Screens LAION-style tables: NSFW, toxic words, watermarks, sizes; every dropped row with its reason."""
    from filters.screen import MetadataWork
    from mav.data.images.laion import source_parts

    section = job.recipe.image_metadata
    world = job.inputs.get("demo-world")
    sources = section.sources or ([world.child("laion/*.parquet").url] if world else [])
    work = MetadataWork(tuple(source_parts(sources)), job.recipe.screening, section.rows_per_shard, job.out)
    if work.screening.duplicates == "all":
        work = dataclasses.replace(work, repeats=_repeats(job, work))
    return shard_map(job, work, work.names())


def _repeats(job: Job, screening: MetadataWork) -> Folder:
    """Walks the tables once for their hashes and the hashes once for repeats; both lie in the stage's work folder until it is done."""
    from filters.duplicates import HashWork, RepeatWork

    walks = {
        name: dataclasses.replace(job, out=job.work.child(name), work=job.work.child(f"{name}-walk"))
        for name in ("hashes", "repeats")
    }
    shard_map(walks["hashes"], HashWork(screening.kept_rows, walks["hashes"].out), screening.names())
    repeats = RepeatWork(tuple(screening.names()), walks["hashes"].out, walks["repeats"].out)
    shard_map(walks["repeats"], repeats, repeats.names())
    return walks["repeats"].out


@stage("image-download", sections=("image_download",), version=2)
def image_download(job: Job) -> Outcome:
    """Fetches, checks and resizes the images of the screened rows into WebDataset tars."""
    work = download_work(job)
    return shard_map(
        job, work, work.names(), success_floor=work.download.success_floor, shard_floor=work.download.shard_floor
    )


def download_work(job: Job) -> DownloadWork:
    """What `image-download` does with a shard; the demo world is served from now on, where it is the web."""
    from mav.data.images.download import DownloadWork

    section = dataclasses.replace(
        job.recipe.image_download, allow_addresses=job.allowed_addresses(job.recipe.image_download)
    )
    return DownloadWork(job.inputs["image-metadata"], section, job.out)


@stage("image-screen", sections=("screening", "image_embed"), gpu=True)
def image_screen(job: Job) -> Outcome:
    """Scores the rows nobody scored and screens them; keeps the CLIP image embeddings it needed for that."""
    from mav.data.images.embed import ScreenWork, shard_names

    images, recipe = job.inputs["image-download"], job.recipe
    work = ScreenWork(images, job.inputs["clip"], job.out, recipe.screening, recipe.image_embed.batch_size, job.device)
    return shard_map(
        job, work, shard_names(images), gpus=recipe.cluster.gpus_per_worker, actors=recipe.cluster.gpus_per_worker > 0
    )


@stage("image-embed", sections=("image_embed",), gpu=True)
def image_embed(job: Job) -> Outcome:
    """CLIP embeddings and text tokens of the kept rows, aligned with the tars."""
    from mav.data.images.embed import EmbedWork, shard_names

    images, recipe = job.inputs["image-download"], job.recipe
    work = EmbedWork(
        images, job.inputs["image-screen"], job.inputs["clip"], job.out, recipe.image_embed.batch_size, job.device
    )
    return shard_map(
        job, work, shard_names(images), gpus=recipe.cluster.gpus_per_worker, actors=recipe.cluster.gpus_per_worker > 0
    )
