"""Training samples a second, beside plain webdataset on the same shards with the same decoding.

Ours: random access in a global order, exact resume, every sample accounted for, embeddings beside the pictures. The
peer: a stream with its usual shuffle buffer of 1,000. Nothing is kept decoded.
"""

from __future__ import annotations

import io
import itertools
import json
import tempfile
import time

import cv2
import numpy as np
import pyarrow as pa
import torch
import webdataset
from harness import Row, in_turn, rate, report
from real_clips import clips

import mav.data.loading.loaders as loaders
from mav.data.loading.frame_rates import draw_fps, frame_indices, frame_times
from mav.data.loading.loaders import ClipSource, ImageSource, decode_image
from mav.data.shards import TarWriter, json_bytes, tar_names, write_table
from mav.data.videos.transcode import convert
from mav.data.videos.video_io import read_frames, read_squares
from mav.recipes import FpsCurriculum, VideoShards
from mav.storage import Folder

IMAGES, SHARDS, SIZE, BATCH = 4000, 8, 64, 64
PREFETCHED = 2  # batches each of its processes keeps ready
CLIPS, FRAMES, CLIP_BATCH, TOTAL = 60, 16, 4, 1000


def make_images(folder: Folder) -> Folder:
    """Shards of 256-pixel JPEGs, frames of the clips, with embeddings beside."""
    frames = np.concatenate([read_frames(path.read_bytes(), range(0, 400, 4)) for path in clips()])
    pictures = [
        cv2.imencode(".jpg", cv2.resize(frame[:, 130:466], (256, 256))[..., ::-1])[1].tobytes() for frame in frames
    ]
    embeds = folder.child("embeds")
    per = IMAGES // SHARDS
    for shard in range(SHARDS):
        name, keys = f"00000-{shard:05d}", [f"{shard:010d}{row:05d}" for row in range(per)]
        with folder.create(f"{name}.tar") as file, TarWriter(file) as tar:
            for row, key in enumerate(keys):
                tar.add(key, {"jpg": pictures[(shard * per + row) % len(pictures)], "json": b"{}", "txt": b"a caption"})
        write_table(embeds, f"{name}.parquet", pa.table({"key": keys}))
        for kind, dtype, width in (("image", np.float16, 512), ("text", np.float16, 512), ("tokens", np.uint16, 77)):
            buffer = io.BytesIO()
            np.save(buffer, np.zeros((per, width), dtype))
            embeds.write_bytes(f"{name}.{kind}.npy", buffer.getvalue())
    return embeds


def make_clips(folder: Folder) -> None:
    """Four shards of re-encoded clips."""
    converted = [convert(path.read_bytes(), VideoShards(max_seconds=10.0)) for path in clips()]
    for shard in range(4):
        with folder.create(f"{shard:05d}.tar") as file, TarWriter(file) as tar:
            for row in range(CLIPS // 4):
                clip = converted[row % len(converted)]
                tar.add(f"{shard:05d}{row:05d}", {"mp4": clip.data, "json": json_bytes(clip.metadata)})


def stream(folder: Folder, decode, batch: int, workers: int):
    """Plain webdataset: shards in a shuffled order, a shuffle buffer, batches; worker processes through its own
    loader."""
    urls = [folder.path(name) for name in tar_names(folder)]
    split = {"nodesplitter": webdataset.split_by_node, "workersplitter": webdataset.split_by_worker}
    data = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0, **split)
        .repeat()
        .shuffle(1000 if batch > 8 else 20)
        .map(decode)
    )
    loader = webdataset.WebLoader(data.batched(batch, partial=False), batch_size=None, num_workers=workers)
    return iter(loader)


def decode_picture(sample: dict) -> tuple:
    return (decode_image(sample["jpg"], SIZE),)


class DecodeClip:
    """The same drawing and decoding of frames as ours, in the order samples come."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, sample: dict) -> tuple:
        facts = json.loads(sample["json"])
        rng = np.random.default_rng([0, 2, self.number])
        wanted = draw_fps(FpsCurriculum(), self.number / TOTAL, rng)
        self.number += 1
        indices, shown = frame_indices(frame_times(facts["fps"], facts["frames"]), FRAMES, wanted, float(rng.uniform()))
        return np.ascontiguousarray(read_squares(sample["mp4"], indices, SIZE).transpose(0, 3, 1, 2)), np.float32(shown)


def compare(name: str, source, folder: Folder, decode, batch: int, batches: int, workers: int) -> Row:
    theirs = stream(folder, decode, batch, workers if workers > 1 else 0)
    next(theirs)  # workers start, buffers fill
    firsts = itertools.count(0, batch)

    def ours() -> float:
        time.sleep(2 * (workers > 1))  # until the peer's processes have filled their queues and rest
        began = time.perf_counter()
        for _, first in zip(range(batches), firsts, strict=False):
            source.batch(first, batch)
        return batch * batches / (time.perf_counter() - began)

    def peer() -> float:
        for _ in range(PREFETCHED * workers):  # made while ours had its turn
            next(theirs)
        began = time.perf_counter()
        for _ in range(batches):
            next(theirs)
        return batch * batches / (time.perf_counter() - began)

    speeds = in_turn({"ours": ours, "peer": peer})
    return rate(name, speeds["ours"], speeds["peer"], f"webdataset {webdataset.__version__}", "samples/s")


def main() -> None:
    loaders.IN_MEMORY = 0
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as root:
        images, videos = Folder(f"{root}/images"), Folder(f"{root}/videos")
        embeds = make_images(images)
        make_clips(videos)
        rows = []
        for workers in (1, 2):
            torch.set_num_threads(workers)
            label = "one thread" if workers == 1 else "two threads, two processes"
            source = ImageSource(images, embeds, SIZE, 0)
            rows.append(compare(f"images, {label}", source, images, decode_picture, BATCH, 80, workers))
            moving = ClipSource(videos, FRAMES, SIZE, 0, FpsCurriculum(), TOTAL)
            rows.append(compare(f"clips, {label}", moving, videos, DecodeClip(), CLIP_BATCH, 48, workers))
            assert not source.unreadable
        report(
            "loader",
            rows,
            images=f"{IMAGES} JPEGs of 256 pixels to {SIZE}",
            clips=f"{FRAMES} frames of 454x256 to {SIZE}",
            rounds=3,
        )


if __name__ == "__main__":
    main()
