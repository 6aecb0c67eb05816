"""Clips of WebVid's size (596x336, 18 s, 24 frames a second) for the video benchmarks, made once under build/."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import av
import numpy as np
from harness import BUILD

WIDTH, HEIGHT, RATE, SECONDS = 596, 336, 24, 18
REAL = ("videos/real1.mp4", "videos/real2.mp4", "videos/real3.mp4")


def clips() -> list[Path]:
    """Paths of the clips: real ones of MAV_REAL_DATA, played again until 18 s are full, or drawn ones where it is not
    set.

    Encoded as libx264 does by itself (crf 23, key frames up to 250 frames apart), like the originals of stock footage.
    """
    real = os.environ.get("MAV_REAL_DATA", "")
    names = [Path(real) / name for name in REAL] if real else [Path(f"drawn{i}.mp4") for i in range(3)]
    made = []
    for name in names:
        path = BUILD / "bench" / "clips" / f"{name.stem}-{WIDTH}x{HEIGHT}.mp4"
        made.append(path)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _encode(_played(name) if real else _drawn(int(name.stem[-1])), path)
    return made


def _played(path: Path):
    for _ in itertools.count():
        with av.open(str(path)) as container:
            yield from container.decode(video=0)


def _drawn(seed: int):
    """A sharp texture that pans, over which another moves."""
    rng = np.random.default_rng(seed)
    ground = np.kron(rng.integers(0, 256, (HEIGHT // 4, WIDTH // 2, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
    for number in itertools.count():
        pixels = np.roll(ground, 2 * number, axis=1)[:HEIGHT, :WIDTH].copy()
        pixels[100:200, (5 * number) % 400 : (5 * number) % 400 + 100] = ground[:100, :100]
        yield av.VideoFrame.from_ndarray(pixels, format="rgb24")


def _encode(frames, path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"crf": "23"}
        for number, frame in zip(range(RATE * SECONDS), frames, strict=False):
            picture = av.VideoFrame.from_ndarray(
                frame.reformat(WIDTH, HEIGHT, "yuv420p").to_ndarray(), format="yuv420p"
            )
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
