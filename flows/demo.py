"""The stages that only the demo has: drawing its world, serving it, and the oracle, which knows the truth about it."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from flows.engine.function import ProgressFile, run_on_ray
from flows.engine.run import Job
from flows.engine.stage import Outcome, stage
from flows.evaluation import INTERVALS, evaluate
from flows.services.ports import port_is_free
from mav.recipes import ImageDownload, VideoShards, World
from mav.storage import Folder


@stage("demo-world", reads=("world", "seed"), version=5)
def demo_world(job: Job) -> Outcome:
    """Draws the demo world: pictures, clips, tables and their faults, with known truth."""
    from mav.world.world import draw_world

    return Outcome(metrics=run_on_ray(job, _draw, draw_world, job.recipe.world, job.recipe.seed, job.out))


def _draw(draw: Callable[..., dict[str, Any]], world: World, seed: int, out: Folder, _: ProgressFile) -> dict[str, Any]:
    """Runs on Ray; drawing reports no progress."""
    return draw(world, seed, out)


@stage(
    "oracle",
    reads=("cascade.frames", "cascade.frame_skip", "generate.fps", "generate.frame_rates", *INTERVALS),
    version=5,
)
def oracle(job: Job) -> Outcome:
    """Reads colour, shape or digit, and motion back from generated pixels: was the text obeyed, was motion learned?"""
    from mav.world.verdict import evaluate_oracle

    return evaluate(job, evaluate_oracle)


def drawn_clips(world: World, count: int) -> list[np.ndarray]:
    """Draws clips of shapes like those of the demo world, uint8 (F, S, S, 3), to measure with; they need no files."""
    from mav.world.drawing import draw_clip, world_scene

    rng = np.random.default_rng(0)
    scenes = [world_scene(world, rng) for _ in range(count)]
    return [draw_clip(scene, world.size, world.clip_frames, world.clip_fps) for scene in scenes]


def planted_reasons(job: Job) -> dict[str, list[str]]:
    """Returns why each clip of the demo world should be dropped, by videoid; nothing where there is no demo world."""
    world = job.inputs.get("demo-world")
    if world is None:
        return {}
    truth = world.read_json("truth.json")
    return {clip["videoid"]: [] for clip in truth["clips"]} | {
        clip["videoid"]: clip["reasons"] for clip in truth["planted"]
    }


def picture_families(job: Job) -> dict[str, str]:
    """Returns for each of the demo world's pictures the one it was made from, or itself; the paths of their addresses.

    There is nothing where there is no demo world.
    """
    world = job.inputs.get("demo-world")
    truth = world.read_json("truth.json")["images"] if world else {}
    return {f"/{name}": f"/{facts.get('copy_of', name)}" for name, facts in truth.items()}


def allowed_addresses(job: Job, section: ImageDownload | VideoShards) -> tuple[str, ...]:
    """Returns the private `host:port` addresses that may be fetched: the recipe's, and the demo world's.

    The demo world is served on loopback from now on until the run ends. Jobs of one cluster take turns, since each ends
    its server when it ends.
    """
    world, run = job.inputs.get("demo-world"), job.run
    if world is None or job.recipe.world is None:
        return section.allow_addresses
    from mav.world.server import WorldServer

    port = job.recipe.world.port
    while not (run.alone or "demo-world" in run.services or port_is_free(port)):
        job.require_running()
        time.sleep(1.0)
    run.service("demo-world", lambda: WorldServer(world.child("site"), port))
    return (*section.allow_addresses, f"127.0.0.1:{port}")
