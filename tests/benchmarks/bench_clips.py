"""Training clips a second: our shards and sampler beside decord over the original file with full-size frames and a
torch resize.

The same clips, the same frames (16 at rates drawn from the curriculum), one thread each, nothing kept decoded.
"""

from __future__ import annotations

import io
import tempfile
import time

import decord
import numpy as np
import torch
from harness import in_turn, rate, report
from real_clips import clips

import mav.data.loading.loaders as loaders
from mav.data.loading.loaders import ClipSource
from mav.data.shards import TarWriter, json_bytes
from mav.data.videos.transcode import convert
from mav.recipes import FpsCurriculum, VideoShards
from mav.storage import Folder

FRAMES, SAMPLES, SIZES = 16, 24, (64, 256)


def peer_clip(data: bytes, indices: np.ndarray, size: int) -> np.ndarray:
    """uint8 (F, 3, size, size): decord's full-size frames, the central square, torch's bilinear resize with
    antialiasing."""
    reader = decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), num_threads=1)
    frames = torch.from_numpy(reader.get_batch(indices.tolist()).asnumpy()).permute(0, 3, 1, 2)
    side = min(frames.shape[2:])
    top, left = ((length - side) // 2 for length in frames.shape[2:])
    square = frames[:, :, top : top + side, left : left + side].float()
    small = torch.nn.functional.interpolate(
        square, size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return small.round().clamp(0, 255).byte().numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Decibels between two clips."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def main() -> None:
    torch.set_num_threads(1)
    loaders.IN_MEMORY = 0
    originals = [path.read_bytes() for path in clips()]
    with tempfile.TemporaryDirectory() as folder:
        shards = Folder(folder)
        with shards.create("00000.tar") as file, TarWriter(file) as tar:
            for number, data in enumerate(originals):
                clip = convert(data, VideoShards())
                tar.add(f"{number:010d}", {"mp4": clip.data, "json": json_bytes(clip.metadata)})
        stored = sum(size for _, size in (place["mp4"] for place in loaders.index_tar(shards, "00000.tar").values()))
        rows, fidelity = [], {}
        for size in SIZES:
            source = ClipSource(shards, FRAMES, size, 0, FpsCurriculum(), SAMPLES)
            drawn = [(source.index(*divmod(n, len(source))), n) for n in range(SAMPLES)]
            jobs = [
                (originals[index], source._draw(source._clips.metadata(index), number)[0]) for index, number in drawn
            ]

            def ours(source: ClipSource = source) -> float:
                began = time.perf_counter()
                for number in range(SAMPLES):
                    source.batch(number, 1)
                return SAMPLES / (time.perf_counter() - began)

            def peer(jobs: list = jobs, size: int = size) -> float:
                began = time.perf_counter()
                for data, indices in jobs:
                    peer_clip(data, indices, size)
                return SAMPLES / (time.perf_counter() - began)

            speeds = in_turn({"ours": ours, "peer": peer})
            rows.append(
                rate(
                    f"{size}x{size}",
                    speeds["ours"],
                    speeds["peer"],
                    "decord over the original + torch resize",
                    "clips/s",
                )
            )
            values = [psnr(source.batch(n, 1)["pixels"][0].numpy(), peer_clip(*jobs[n], size)) for n in range(SAMPLES)]
            by_clip = [
                round(float(np.mean([v for v, (i, _) in zip(values, drawn, strict=True) if i == c])), 1)
                for c in range(len(originals))
            ]
            fidelity[f"psnr {size}x{size}, dB"] = {
                "lowest": round(min(values), 1),
                "mean": round(float(np.mean(values)), 1),
                "by clip": by_clip,
            }
        report(
            "clips",
            rows,
            **fidelity,
            bytes={"originals": sum(map(len, originals)), "shards": stored},
            frames=FRAMES,
            rounds=3,
        )


if __name__ == "__main__":
    main()
