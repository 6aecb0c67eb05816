"""Video data: unlabelled clips into shards. One deployable flow."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from flows.engine.run import Job
from flows.engine.shard_map import shard_map
from flows.engine.stage import Outcome, stage

if TYPE_CHECKING:
    from mav.data.videos.video_shards import VideoWork


@stage("video-shards", sections=("video_shards",), version=2)
def video_shards(job: Job) -> Outcome:
    """Validates, cuts and re-encodes WebVid and HD-VILA clips into WebDataset tars; captions are left behind."""
    work = video_work(job)
    return shard_map(job, work, work.names(), success_floor=work.rule.success_floor, shard_floor=work.rule.shard_floor)


def video_work(job: Job) -> VideoWork:
    """What `video-shards` does with a shard; the demo world is served from now on, where it is the web."""
    from mav.data.videos.clip_list import split_lists
    from mav.data.videos.video_shards import VideoWork

    section, world = job.recipe.video_shards, job.inputs.get("demo-world")
    rule = dataclasses.replace(section, allow_addresses=job.allowed_addresses(section))
    sources = rule.sources or ([world.child("webvid/clips.csv").url] if world else [])
    return VideoWork(tuple(split_lists(sources, rule.clips_per_shard)), rule, job.recipe.seed, job.out)
