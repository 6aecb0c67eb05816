"""How long a training from a bucket takes to its first batch, and what it asks the bucket for, against reading headers.

A loopback S3 server answers each request after 20 ms. Its artifact has `--tars` tars of 250 clips, which the server
makes when they are asked for; `--ranks` processes open it at once, as the ranks of one machine do. The peer is what is
left without places in the ledger: the headers of every tar, which one process reads for a few tars.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import multiprocessing
import os
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from harness import cost, report

LATENCY = 0.02  # seconds a request waits
CLIPS, PEER_TARS = 250, 24
BATCH, BATCHES, STEP_SECONDS = 8, 6, 3.0  # of a rank; a step of the paper's D^t takes longer on a card


def videos() -> list[bytes]:
    """Some small clips of different sizes."""
    from mav.data.videos.video_io import encode_mp4
    from mav.world.drawing import PALETTE, SHAPES, draw_clip, random_scene

    scenes = [random_scene(np.random.default_rng(seed), tuple(PALETTE), SHAPES) for seed in range(16)]
    return [encode_mp4(draw_clip(scene, 64, 24, 24), 24) for scene in scenes]


class Bucket(ThreadingHTTPServer):
    """An S3 server that reads only: a tar is a function of its number; other files lie in a folder."""

    request_queue_size = 1024
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.videos, self.lock = folder, videos(), threading.Lock()
        self.metadata = json.dumps({"fps": 24.0, "frames": 24}).encode()
        self.sent: dict[str, int] = {}  # kind of request -> bytes
        self.requests: dict[str, int] = {}

    def drawn(self, name: str) -> np.ndarray:
        """Returns which videos a tar has."""
        return np.random.default_rng(int(name)).integers(0, len(self.videos), CLIPS)

    def starts(self, name: str) -> np.ndarray:
        """Returns where each clip of a tar begins, and where the last one ends. Files are padded, behind 512 bytes."""
        size = np.array([len(video) for video in self.videos])[self.drawn(name)]
        video, metadata = 512 + -(-size // 512) * 512, 512 + -(-len(self.metadata) // 512) * 512
        return np.concatenate([[0], np.cumsum(video + metadata)])

    def size(self, name: str) -> int:
        """Returns the bytes of a tar, which ends in zeros."""
        return -(-(int(self.starts(name)[-1]) + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

    def piece(self, name: str, first: int, last: int) -> bytes:
        """Returns bytes of a tar, of which only the clips are made that have some of them."""
        from mav.data.shards import TarWriter

        starts, drawn, file = self.starts(name), self.drawn(name), io.BytesIO()
        begin = min(int(np.searchsorted(starts, first, "right")) - 1, CLIPS)
        with TarWriter(file) as tar:
            for row in range(begin, int(np.searchsorted(starts[:CLIPS], last, "right"))):
                tar.add(f"{name}{row:05d}", {"mp4": self.videos[drawn[row]], "json": self.metadata})
        at = int(starts[begin])
        return file.getvalue()[first - at : last + 1 - at].ljust(last + 1 - first, b"\0")

    def places(self, name: str) -> bytes:
        """Returns the places in a tar without making it."""
        from mav.data.loading.places import PLACE

        starts, found = self.starts(name), np.zeros(CLIPS, PLACE)
        found["json"] = starts[:-1] + 512
        found["size"] = np.array([len(video) for video in self.videos])[self.drawn(name)]
        found["video"] = found["json"] + 512 + -(-len(self.metadata) // 512) * 512
        found["json_size"] = len(self.metadata)
        return found.tobytes()

    def ends(self, name: str) -> int | None:
        """Returns the bytes of a file of the bucket, None when there is none."""
        if name.endswith(".tar"):
            return self.size(name.removesuffix(".tar"))
        path = self.folder / name
        return path.stat().st_size if path.is_file() else None

    def body(self, name: str, first: int, last: int) -> bytes:
        """Returns bytes of a file of the bucket."""
        if name.endswith(".tar"):
            return self.piece(name.removesuffix(".tar"), first, last)
        return (self.folder / name).read_bytes()[first : last + 1]

    def count(self, kind: str, size: int) -> None:
        with self.lock:
            self.sent[kind] = self.sent.get(kind, 0) + size
            self.requests[kind] = self.requests.get(kind, 0) + 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        bucket: Any = self.server
        time.sleep(LATENCY)
        name = self.path.partition("?")[0].removeprefix("/mav/clips/")
        size = bucket.ends(name)
        kind = "tars" if name.endswith(".tar") else "ledger" if name.endswith(".parquet") else "other"
        if size is None:
            self.answer(404, b"", {})
            return
        first, last = 0, size - 1
        if asked := self.headers.get("Range"):
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        part = bucket.body(name, first, last) if self.command == "GET" else bytes(last + 1 - first)
        bucket.count(kind, len(part) if self.command == "GET" else 0)
        more = {"Content-Range": f"bytes {first}-{last}/{size}"} if asked else {}
        self.answer(206 if asked else 200, part, more)

    def answer(self, status: int, body: bytes, more: dict[str, str]) -> None:
        self.send_response(status)
        told = {"Content-Length": str(len(body)), "ETag": '"0"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        for name, value in (told | more).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def make(bucket: Bucket, tars: int) -> int:
    """Writes the artifact's ledger and manifest; returns the bytes of the ledger."""
    from mav.storage import Artifact, Folder
    from mav.storage.ledger import LEDGER, write_ledger

    folder = Folder(str(bucket.folder))

    def batches() -> Iterator[list[Any]]:
        for at in range(0, tars, 1000):
            markers = []
            for number in range(at, min(at + 1000, tars)):
                name = f"{number:05d}"
                places = base64.b64encode(bucket.places(name)).decode()
                counts = {"rows_in": CLIPS, "rows_out": CLIPS}
                entry = {f"{name}.tar": {"bytes": 0, "sha256": ""}}
                markers.append({"shard": name, "counts": counts, "files": entry, "places": places})
            yield markers

    write_ledger(folder, batches())
    Artifact.publish(folder, stage="video-shards", version=2, fingerprint="f", recipe="bench", config={}, inputs={})
    return folder.size(LEDGER)


def rank(number: int, together: Any, answers: Any) -> None:
    """Opens the artifact, then trains in name only: it waits for a batch, and takes a step's time."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from mav.data.loading.loaders import ClipSource
    from mav.recipes import FpsCurriculum
    from mav.storage import Folder

    torch.set_num_threads(4)
    together.wait()
    began = time.monotonic()
    source = ClipSource(Folder("s3://mav/clips"), 16, 64, 0, FpsCurriculum(low=4, high=24), 10**6)
    opened = time.monotonic() - began
    waited = first = 0.0
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(source.batch, number * BATCH, BATCH)
        for batch in range(BATCHES):
            asked = time.monotonic()
            upcoming.result()
            waited += time.monotonic() - asked if batch else 0.0
            first = first or time.monotonic() - began
            upcoming = pool.submit(source.batch, (number + 8 * (batch + 1)) * BATCH, BATCH)
            time.sleep(STEP_SECONDS)
    answers.put((opened, first, waited / (STEP_SECONDS * (BATCHES - 1) + waited)))


def headers(tars: int) -> float:
    """Seconds in which one process reads the headers of this many tars, as many at a time as the source does."""
    from concurrent.futures import ThreadPoolExecutor

    from mav.data.loading.places import INDEXING
    from mav.data.shards import index_tar
    from mav.storage import Folder

    folder, began = Folder("s3://mav/clips"), time.monotonic()
    with ThreadPoolExecutor(INDEXING) as pool:
        list(pool.map(lambda number: index_tar(folder, f"{number:05d}.tar"), range(tars)))
    return time.monotonic() - began


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tars", type=int, default=10_000)
    options.add_argument("--ranks", type=int, default=8)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bucket = Bucket(Path(folder, "clips"))
        index = make(bucket, chosen.tars)
        threading.Thread(target=bucket.serve_forever, daemon=True).start()
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{bucket.server_port}", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1", "TMPDIR": folder,
        }  # fmt: skip
        context = multiprocessing.get_context("spawn")
        answers = context.Queue()
        together = context.Barrier(chosen.ranks)  # without the time in which Python imports torch
        ranks = [context.Process(target=rank, args=(number, together, answers)) for number in range(chosen.ranks)]
        for process in ranks:
            process.start()
        told = [answers.get() for _ in ranks]
        for process in ranks:
            process.join()
        asked, sent = dict(bucket.requests), dict(bucket.sent)
        opened, first, waiting = (max(column) for column in zip(*told, strict=True))
        bucket.sent.clear()
        more = chosen.tars / PEER_TARS
        peer = headers(PEER_TARS) * more
        rows = [cost("open the clips of a bucket", opened, peer, "headers of every tar, one rank", "s")]
        theirs = bucket.sent["tars"] * more * chosen.ranks
        rows.append(cost("bytes read for it, all ranks", sent["ledger"], theirs, "headers of every tar", "bytes"))
        report(
            "start", rows, index_bytes=index, bytes_over_index=sent["ledger"] / index, first_batch_seconds=first,
            share_of_steps_waiting=waiting, requests=asked, tars=chosen.tars, ranks=chosen.ranks,
        )  # fmt: skip
        bucket.shutdown()


if __name__ == "__main__":
    main()
