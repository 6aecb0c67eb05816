"""`video-shards` whose workers and driver are killed with -9 again and again: the shards come out as if nothing had been.

The driver is a process of its own (this file as a script), with a local Ray of its own.
"""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from mav.artifact import TEMPORARY, Artifact, Folder, unbalanced
from mav.data.shards import read_tar
from mav.data.video_io import encode_mp4

VIDEOS, BROKEN, KILLS = 24, 4, ["worker"] * 4 + ["driver"]
PATIENCE = 200.0  # seconds for everything, on a slow machine


def descendants(parent: int) -> list[tuple[int, str]]:
    """(process, command line) of everything that a process started."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                above = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(above, []).append((int(entry.name), (entry / "cmdline").read_bytes().decode(errors="replace")))
            except (FileNotFoundError, ProcessLookupError):
                continue
    found, queue = [], [parent]
    while queue:
        below = parents.get(queue.pop(), [])
        found += below
        queue += [pid for pid, _ in below]
    return found


def start(list_of_clips: Path, runs: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, __file__, str(list_of_clips), str(runs)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
def test_kills_lose_nothing_double_nothing_and_leave_nothing(tmp_path: Path) -> None:
    rng, until = random.Random(8), time.monotonic() + PATIENCE
    files = tmp_path / "files"
    files.mkdir()
    for number in range(VIDEOS):
        ground = np.random.default_rng(number).integers(0, 255, (240, 400, 3), dtype=np.uint8)
        frames = np.stack([np.roll(ground, 3 * step, axis=1)[:, :320] for step in range(36)])
        data = encode_mp4(frames, 24, crf=30)
        (files / f"{number}.mp4").write_bytes(data if number % (VIDEOS // BROKEN) else data[:2000])
    (tmp_path / "list.csv").write_text("\n".join(["videoid,contentUrl,page_dir", *(f"{number},," for number in range(VIDEOS))]) + "\n")

    kills, done = rng.sample(KILLS, len(KILLS)), 0
    driver = start(tmp_path / "list.csv", tmp_path / "killed")
    try:
        while done < len(kills):
            assert time.monotonic() < until, f"only {done} kills until now"
            assert driver.poll() is None, f"the stage ended after {done} kills: {driver.communicate()[0].decode()}"
            time.sleep(rng.uniform(0.1, 0.5))
            workers = [pid for pid, command in descendants(driver.pid) if "ray::video-shards" in command]
            if not workers:
                continue
            if kills[done] == "worker":
                os.kill(rng.choice(workers), signal.SIGKILL)
            else:
                driver.kill()
                driver.communicate()
                time.sleep(2)  # its Ray notices and goes
                driver = start(tmp_path / "list.csv", tmp_path / "killed")
            done += 1
        output, _ = driver.communicate(timeout=max(until - time.monotonic(), 1))
        assert driver.returncode == 0, output.decode()
        driver = start(tmp_path / "list.csv", tmp_path / "calm")
        output, _ = driver.communicate(timeout=max(until - time.monotonic(), 1))
        assert driver.returncode == 0, output.decode()
    finally:
        driver.kill()

    killed, calm = (Artifact.open(Folder(str(next((tmp_path / name / "artifacts/video-shards").iterdir())))) for name in ("killed", "calm"))
    assert killed.manifest.content == calm.manifest.content, "every file's sha256"
    assert list(killed.problems()) == []
    assert not list(unbalanced(killed.manifest.counts))
    assert (killed.manifest.counts["rows_in"], killed.manifest.counts["failed"]) == (VIDEOS, {"truncated": BROKEN})
    keys = [key for name in killed.files(suffix=".tar") for key, _ in read_tar(killed.folder, name)]
    assert len(set(keys)) == len(keys) == VIDEOS - BROKEN
    assert not [path for path in calm.folder.fs.find(calm.folder.root) if TEMPORARY in path]


def drive(list_of_clips: str, runs: str) -> None:
    """The driver: builds the stage, or goes on with it."""
    from flows import videos
    from flows.build import build
    from flows.console import Screen
    from flows.runtime import configure_environment
    from flows.stage import Plan, Run, Store
    from mav.recipe import Cluster, VideoShards
    from mav.recipe_file import load_recipe

    configure_environment()
    recipe = dataclasses.replace(
        load_recipe("tiny"),
        world=None,
        video_shards=VideoShards(
            sources=(list_of_clips,), files=str(Path(list_of_clips).parent / "files"), clips_per_shard=2, short_side=192
        ),
        cluster=Cluster(cpus=2, dashboard=False, attempts=50),
    )
    plan = Plan(recipe)
    node = videos.video_shards(plan)
    with ExitStack() as services:
        build(node, Run(recipe, Store(runs), Screen(), services))


if __name__ == "__main__":
    drive(*sys.argv[1:])
