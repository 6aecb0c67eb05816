"""Video data: unlabelled clips into shards, and the choice of those to train on. One deployable flow a stage."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

from flows.demo import allowed_addresses, planted_reasons
from flows.engine.run import Job
from flows.engine.shard_map import one_pass, shard_map
from flows.engine.stage import Outcome, Retry, stage
from mav.data.fetching.failed_rows import RetryWork
from mav.data.fetching.rules import is_transient
from mav.data.list_files import is_jsonl
from mav.recipes import Recipe

if TYPE_CHECKING:
    from mav.data.videos.video_shards import VideoWork


def video_work(job: Job) -> VideoWork:
    """Returns what `video-shards` does with a shard."""
    from mav.data.fetching.proxy import require_proxy
    from mav.data.videos.clip_list import split_lists
    from mav.data.videos.video_shards import VideoWork

    section, world = job.recipe.video_shards, job.inputs.get("demo-world")
    require_proxy("video_shards.proxy", section.proxy)
    if section.shot_weights:
        from mav.models.shots import read_shot_network

        read_shot_network(section.shot_weights)  # a wrong file is told before a shard is made
    rules = dataclasses.replace(section, allow_addresses=allowed_addresses(job, section))
    sources = rules.sources or ([world.child("webvid/clips.csv").url] if world else [])
    return VideoWork(tuple(split_lists(sources, rules.clips_per_shard, job.say)), rules, job.recipe.seed, job.out)


def video_reads(recipe: Recipe) -> tuple[str, ...]:
    """Returns what `video-shards` reads: the seed only with lists of whole videos, whose spans it draws."""
    drawn = any(is_jsonl(path) for path in recipe.video_shards.sources)
    return ("video_shards", "seed") if drawn else ("video_shards",)


@stage("video-shards", reads=video_reads, version=10, retry=Retry(is_transient, video_work, RetryWork))
def video_shards(job: Job) -> Outcome:
    """Validates, cuts and re-encodes WebVid and HD-VILA clips into WebDataset tars; captions are left behind."""
    work = video_work(job)
    rules = work.rule
    return shard_map(job, work, work.names(), success_floor=rules.success_floor, shard_floor=rules.shard_floor)


@stage("video-select", reads=("video_select",), version=2)
def video_select(job: Job) -> Outcome:
    """Drops clips with cuts, without motion, with too much of it, with overlays or borders, by their scores alone.

    Asked to, it splits clips at their cuts and crops borders away instead.
    """
    from filters.clips import Clips, SelectWork, agreement

    clips = Clips(job.inputs["video-shards"], job.recipe.video_select)
    outcome = shard_map(job, SelectWork(clips, clips.groups(partial(one_pass, job)), job.out), clips.names())
    if truth := planted_reasons(job):
        import pyarrow as pa

        scores = pa.concat_tables([clips.read(name) for name in clips.names()])
        ids = scores.column("videoid").to_pylist()
        # A filter is asked what it sees, also where the clip is split or cropped and not dropped.
        sees = dataclasses.replace(clips, rule=dataclasses.replace(clips.rule, shot_seconds=0.0, crop_borders=0.0))
        outcome.metrics["filters"] = agreement(ids, sees.failures(scores), truth)
    return outcome
