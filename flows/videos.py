"""Video data: unlabelled clips into shards. One deployable flow."""

from __future__ import annotations

import dataclasses

from flows.shard_map import shard_map
from flows.stage import Job, Outcome, stage


@stage("video-shards", sections=("video_shards",), version=2)
def video_shards(job: Job) -> Outcome:
    """Validates, cuts and re-encodes WebVid and HD-VILA clips into WebDataset tars; captions are left behind."""
    from mav.data.videos import VideoWork

    section = job.recipe.video_shards
    rule = dataclasses.replace(section, allow_addresses=job.allowed_addresses(section))
    work = VideoWork.of(job.recipe, job.inputs, job.out, rule)
    return shard_map(job, work, work.shard_names(), success_floor=section.success_floor, shard_floor=section.shard_floor)
