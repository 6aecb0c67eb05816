"""`make bench-download`: pictures a second from a loopback server into resized tars, beside img2dataset's own command
line.

Both get the same rows, sizes, quality and two processes, and write WebDataset tars of shorter side 256. Ours runs the
stage's pass over shards on Ray with every guard, the ledger, checksums and markers. A rate is pictures over the time
between the server's first and last request, so that neither pays for its start; the whole times stand beside.
img2dataset is given the best of several thread counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from harness import in_turn, rate, report

SIZES = (
    (400, 300, 30),
    (640, 480, 30),
    (800, 600, 20),
    (1024, 768, 12),
    (1600, 1200, 8),
)  # width, height, share in per cent
DISTINCT = 100  # pictures drawn; the addresses are all different
SIDE = 256
SHARD = 1000


def picture(number: int) -> bytes:
    """A JPEG with a photo's spread of detail: noise of every scale, in one of `SIZES`."""
    import cv2

    rng = np.random.default_rng(number)
    bounds = np.cumsum([share for *_, share in SIZES])
    width, height, _ = SIZES[int(np.searchsorted(bounds, (number * 37) % 100, side="right"))]
    canvas = np.zeros((height, width, 3), np.float32)
    for scale, weight in ((4, 80), (16, 40), (64, 16), (256, 6)):
        small = rng.standard_normal((min(height, scale * 3 // 4), min(width, scale), 3)).astype(np.float32)
        canvas += weight * cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return bytes(
        cv2.imencode(".jpg", np.clip(canvas + 128, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    )


def serve(ready: Any) -> None:
    """A small server of its own process: answers from memory, and tells how many it answered between which times."""
    bodies = [picture(number) for number in range(DISTINCT)]
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(b) + b
        for b in bodies
    ]
    seen: dict[str, Any] = {"count": 0, "first": 0.0, "last": 0.0}

    class Answer(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport, self.asked = transport, b""

        def data_received(self, data: bytes) -> None:
            self.asked += data
            if b"\r\n\r\n" not in self.asked:
                return
            name = self.asked.split(b" ", 2)[1].rpartition(b"/")[2]
            if name == b"times":
                body = json.dumps(seen).encode()
                self.transport.write(
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
                )
                seen.update(count=0, first=0.0, last=0.0)
            else:
                seen["last"] = time.monotonic()
                seen["first"] = seen["first"] or seen["last"]
                seen["count"] += 1
                self.transport.write(answers[int(name.partition(b".")[0]) % DISTINCT])
            self.transport.close()

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0, backlog=512)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def times(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/times") as answer:
        seen: dict[str, Any] = json.load(answer)
    return seen


def measured(port: int, count: int, run: Any, walls: dict[str, list[float]], name: str) -> float:
    """Pictures a second of one run."""
    times(port)
    began = time.monotonic()
    run()
    walls.setdefault(name, []).append(time.monotonic() - began)
    seen = times(port)
    if seen["count"] != count:
        raise SystemExit(f"{name} asked for {seen['count']} pictures instead of {count}")
    return count / (seen["last"] - seen["first"])


def theirs(folder: Path, table: Path, threads: int) -> None:
    """img2dataset's command line."""
    out = folder / "theirs"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", "from img2dataset import main; main()", f"--url_list={table}",
               "--input_format=parquet", "--url_col=url", "--caption_col=caption", "--output_format=webdataset",
               f"--output_folder={out}", "--processes_count=2", f"--thread_count={threads}",
               f"--image_size={SIDE}", "--resize_mode=keep_ratio", "--encode_quality=95",
               f"--number_sample_per_shard={SHARD}", "--enable_wandb=False", "--compute_hash=sha256"]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}, capture_output=True, text=True, check=False
    )
    kept = sum(json.loads(path.read_text())["successes"] for path in out.glob("*_stats.json"))
    if done.returncode or not kept:
        raise SystemExit(f"img2dataset failed: {done.stderr[-2000:]}")


def ours(folder: Path, metadata: Path, port: int, threads: int) -> None:
    """The shard walk of `image-download` on a Ray of its own, in a process of its own."""
    out = folder / "ours"
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run([sys.executable, __file__, "--stage", str(metadata), str(out), str(port), str(threads)], check=True)


def stage(metadata: str, out: str, port: str, threads: str) -> None:
    from contextlib import ExitStack

    from flows.engine.run import Job, Run
    from flows.engine.shard_map import shard_map
    from flows.engine.stage import Node
    from flows.engine.store import Store
    from flows.images import image_download
    from flows.services.environment import configure_environment
    from flows.services.terminal import Terminal
    from mav.data.images.download import DownloadWork
    from mav.recipes.reader import load_recipe
    from mav.storage import Folder

    configure_environment()
    sizes = [f"image_download.{key}" for key in (f"threads={threads}", f"image_size={SIDE}", f"per_host={threads}")]
    recipe = load_recipe("demo", ["cluster.cpus=2", "cluster.dashboard=false", *sizes])
    rule = recipe.image_download
    rule = type(rule)(**{**rule.__dict__, "allow_addresses": (f"127.0.0.1:{port}",)})
    with ExitStack() as services:
        run = Run(recipe, Store(out), Terminal(), services)
        job = Job(Node(image_download, (), {}, {}, "0" * 64), run, Folder(f"{out}/artifact"), Folder(f"{out}/work"))
        work = DownloadWork(Folder(metadata), rule, job.out)
        counts = shard_map(job, work, work.names(), success_floor=0.99).counts
    if counts["rows_out"] != counts["rows_in"]:
        raise SystemExit(f"lost rows: {counts}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=16, help="concurrent fetches a process, ours")
    parser.add_argument(
        "--their-threads",
        type=int,
        nargs="*",
        default=[8, 16, 32],
        help="tried on a tenth of the pictures; the best counts",
    )
    parser.add_argument("--stage", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        stage(*options.stage)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    from filters.screen import MetadataWork
    from mav.recipes import Screening
    from mav.storage import Folder

    context = multiprocessing.get_context("fork")
    ready, told = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(told,), daemon=True)
    server.start()
    port = ready.recv()
    with tempfile.TemporaryDirectory(prefix="bench-download-") as name:
        folder = Path(name)

        def tables(count: int) -> tuple[Path, Path]:
            rows = {
                "url": [f"http://127.0.0.1:{port}/{i}.jpg" for i in range(count)],
                "caption": [f"picture number {i}" for i in range(count)],
            }
            pq.write_table(pa.table(rows), folder / f"{count}.parquet")
            MetadataWork(
                (str(folder / f"{count}.parquet"),), Screening(), SHARD, Folder(str(folder / f"metadata-{count}"))
            )("00000")
            return folder / f"{count}.parquet", folder / f"metadata-{count}"

        walls: dict[str, list[float]] = {}
        few = max(options.images // 10, SHARD)
        tried = {
            t: measured(port, few, lambda t=t: theirs(folder, tables(few)[0], t), {}, "img2dataset")
            for t in options.their_threads
        }
        best = max(tried, key=lambda t: tried[t])
        table, metadata = tables(options.images)
        rates = in_turn(
            {
                "img2dataset": lambda: measured(
                    port, options.images, lambda: theirs(folder, table, best), walls, "img2dataset"
                ),
                "ours": lambda: measured(
                    port, options.images, lambda: ours(folder, metadata, port, options.threads), walls, "ours"
                ),
            },
            options.rounds,
        )
    server.terminate()
    report(
        "download",
        [rate("download", rates["ours"], rates["img2dataset"], "img2dataset", "images/s")],
        images=options.images,
        whole_seconds={name: [round(s, 1) for s in seconds] for name, seconds in walls.items()},
        their_threads={str(threads): round(value, 1) for threads, value in tried.items()},
    )


if __name__ == "__main__":
    main()
