"""Clips a second into shards, beside ffmpeg's command line doing the same cut, resize and encoding with the same
encoder settings.

Two processes each, one thread a process. Ours also hashes, checks, writes tars and the ledger.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import in_turn, rate, report
from real_clips import clips

from mav.data.videos.clip_list import split_lists
from mav.data.videos.transcode import encoder_options
from mav.data.videos.video_shards import VideoWork
from mav.recipes import VideoShards
from mav.storage import Folder

START, SECONDS, SHARDS, CLIPS_A_SHARD = 1.0, 6.0, 2, 4
RULE = VideoShards(clips_per_shard=CLIPS_A_SHARD)


def shard(work: VideoWork, name: str) -> int:
    """Clips of one shard that came through."""
    return int(work(name).counts["rows_out"])


def command(source: Path, target: Path) -> list[str]:
    """ffmpeg's command for one clip."""
    options = encoder_options(RULE)
    flags = options.pop("flags").removesuffix("+bitexact")
    encoder = [part for name, value in options.items() if name != "threads" for part in (f"-{name}", value)]
    cut = ["-threads", "1", "-ss", str(START), "-i", str(source), "-t", str(SECONDS), "-an"]
    return ["ffmpeg", "-v", "error", "-y", *cut, "-vf", f"scale=-2:{RULE.short_side}:flags=bilinear", "-c:v", "libx264",
            *encoder, "-flags", flags, "-threads", "1", str(target)]  # fmt: skip


def main() -> None:
    if shutil.which("ffmpeg") is None:
        sys.exit("bench-sharding compares with the ffmpeg command: install it first.")
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

        ours()  # the processes import what they need
        speeds = in_turn({"ours": ours, "peer": peer})
        bytes_out = {
            "ours": sum(work.out.size(f"{name}.tar") for name in work.names()),
            "peer": sum((Path(folder) / f"{number}.mp4").stat().st_size for number in range(len(sources))),
        }
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
    row = rate("cut, resize, encode", speeds["ours"], speeds["peer"], f"ffmpeg {version} command line", "clips/s")
    report(
        "sharding",
        [row],
        clip=f"{SECONDS:g} s of 596x336 to a short side of {RULE.short_side}",
        bytes=bytes_out,
        rounds=3,
    )


if __name__ == "__main__":
    main()
