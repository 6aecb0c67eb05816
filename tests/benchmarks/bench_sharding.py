"""Clips a second into shards, beside ffmpeg's command line doing the same cut, resize and encoding with the same
encoder settings.

Two processes each, one thread a process. Ours also hashes, checks, writes tars and the ledger. What the scores of clips
cost is measured in processor time, with them and without.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
from harness import BUILD, cost, in_turn, rate, report
from real_clips import clips

from mav.data.videos import transcode
from mav.data.videos.clip_list import split_lists
from mav.data.videos.scores import ClipScorer
from mav.data.videos.transcode import encoder_options
from mav.data.videos.video_shards import VideoWork
from mav.recipes import VideoShards
from mav.storage import Folder

START, SECONDS, SHARDS, CLIPS_A_SHARD = 1.0, 6.0, 2, 4
RULE = VideoShards(clips_per_shard=CLIPS_A_SHARD, files=str(BUILD / "bench" / "clips"))


def shard(work: VideoWork, name: str) -> int:
    """Clips of one shard that came through."""
    return int(work(name).counts["rows_out"])


class Unscored:
    """Stands in for the scorer: takes frames and knows nothing of them."""

    def __init__(self, shot_weights: str) -> None:
        pass

    def add(self, planes: np.ndarray) -> None:
        pass

    def scores(self, fps: float, times: Sequence[float]) -> dict[str, float]:
        return {}


def processor_time(work: VideoWork, name: str, scored: bool) -> float:
    """Seconds of processor time that a shard takes, with the scores of its clips or without."""
    with mock.patch.object(transcode, "ClipScorer", ClipScorer if scored else Unscored):
        began = time.process_time()
        through = shard(work, name)
        seconds = time.process_time() - began
    assert through == CLIPS_A_SHARD, f"{through} of {CLIPS_A_SHARD} clips came through"
    return seconds


def command(source: Path, target: Path) -> list[str]:
    """ffmpeg's command for one clip."""
    options = encoder_options(RULE)
    flags = options.pop("flags").removesuffix("+bitexact")
    encoder = [part for name, value in options.items() if name != "threads" for part in (f"-{name}", value)]
    cut = ["-threads", "1", "-ss", str(START), "-i", str(source), "-t", str(SECONDS), "-an"]
    return ["ffmpeg", "-v", "error", "-y", *cut, "-vf", f"scale=-2:{RULE.short_side}:flags=bilinear", "-c:v", "libx264",
            *encoder, "-flags", flags, "-threads", "1", str(target)]  # fmt: skip


def main() -> None:
    sources = [path for _ in range(SHARDS * CLIPS_A_SHARD) for path in clips()][: SHARDS * CLIPS_A_SHARD]
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ProcessPoolExecutor(SHARDS, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        rows = [f"{number},{path},{START},{START + SECONDS}" for number, path in enumerate(sources)]
        (Path(folder) / "list.csv").write_text("\n".join(["videoid,path,start,end", *rows]) + "\n")
        parts = tuple(split_lists([f"{folder}/list.csv"], CLIPS_A_SHARD))
        work = VideoWork(parts, RULE, 0, Folder(f"{folder}/shards"))

        def ours() -> float:
            began = time.perf_counter()
            done = sum(pool.map(shard, [work] * SHARDS, work.names()))
            assert done == len(sources)
            return done / (time.perf_counter() - began)

        def peer() -> float:
            began = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(SHARDS) as commands:
                jobs = [command(source, Path(folder) / f"{number}.mp4") for number, source in enumerate(sources)]
                for done in commands.map(lambda job: subprocess.run(job, check=True), jobs):
                    assert done.returncode == 0
            return len(sources) / (time.perf_counter() - began)

        def seconds(scored: bool) -> float:
            return pool.submit(processor_time, work, work.names()[0], scored).result() / CLIPS_A_SHARD

        ours()  # the processes import what they need
        spent = in_turn({"with": lambda: seconds(True), "without": lambda: seconds(False)})
        rows = [cost("processor time, with scores", spent["with"], spent["without"], "without scores", "s/clip")]
        bytes_out = {"ours": sum(work.out.size(f"{name}.tar") for name in work.names())}
        if shutil.which("ffmpeg") is None:
            print("The ffmpeg command, the peer, is not installed: only the cost of the scores is measured.")
        else:
            speeds = in_turn({"ours": ours, "peer": peer})
            size = sum((Path(folder) / f"{number}.mp4").stat().st_size for number in range(len(sources)))
            bytes_out |= {"peer": size}
            version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.split()[
                2
            ]
            name = f"ffmpeg {version} command line"
            rows.append(rate("cut, resize, encode", speeds["ours"], speeds["peer"], name, "clips/s"))
    report(
        "sharding",
        rows,
        clip=f"{SECONDS:g} s of 596x336 to a short side of {RULE.short_side}",
        bytes=bytes_out,
        rounds=3,
    )


if __name__ == "__main__":
    main()
