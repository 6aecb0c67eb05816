"""Video metrics at work: files to features to moments with I3D, and the price of an interval.

Ours takes the videos in chunks, a process of one thread for each core, as `mav evaluate` does on Ray. Peer of the
first: what people do, as the scripts that people copy do it (the whole set decoded into memory, one video at a time
through the network as published, a torch thread for each core, features in a list, covariance at the end), on the same
random weights. Peer of the second: a bootstrap whose every draw takes covariances and a `scipy.linalg.sqrtm` of their
product.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from harness import cost, in_turn, rate, report

from mav.evaluation.feature_store import CHUNK

FRAMES, SIZE, FPS = 16, 256, 25
DIMENSIONS, VIDEOS, DRAWS = 400, 2048, 200
PEER_DRAWS = 4  # sqrtm takes about a second: some draws tell the price of each
MEMORY = {"few": 100, "many": 1000}
CORES = min(2, os.cpu_count() or 1)


def make_videos(folder: Path, count: int, size: int = SIZE) -> None:
    """Noise that drifts: as costly to decode as film."""
    from mav.data.videos.video_io import encode_mp4

    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (size // 8 + 8, size // 8 + 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    for index in range(count):
        steps = rng.integers(0, 64, 2)
        frames = [ground[(i + steps[0]) % 64 :, (i + steps[1]) % 64 :][:size, :size] for i in range(FRAMES)]
        (folder / f"{index:05d}.mp4").write_bytes(encode_mp4(np.ascontiguousarray(np.stack(frames)), FPS, crf=18))


def weights(folder: Path) -> None:
    from safetensors.torch import save_file

    from mav.evaluation.networks.i3d import I3D

    torch.manual_seed(0)
    save_file(I3D().state_dict(), folder / "i3d.safetensors")


def load(folder: str) -> None:
    """In a worker, before any clock runs: the peer's loading is outside its clock too."""
    from mav.evaluation.features import Networks

    torch.set_num_threads(1)
    Networks(("i3d",), folder)([np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)])


def ours(videos: Path, folder: Path, pool: ProcessPoolExecutor) -> float:
    """Seconds from files to moments, through the same code as `mav evaluate`."""
    from mav.evaluation.feature_store import compute
    from mav.evaluation.features import Networks
    from mav.evaluation.metrics import Moments
    from mav.evaluation.protocols import Preparation
    from mav.evaluation.reading import find_videos
    from mav.storage import Folder

    networks = Networks(("i3d",), str(folder))
    names = sorted(videos.iterdir())
    entries, _ = find_videos(Folder(str(videos)), (), len(names))
    with tempfile.TemporaryDirectory() as keep:
        began = time.perf_counter()
        where = Folder(str(videos)), Preparation(FRAMES), networks, Folder(keep)
        features = compute(entries, *where, run=lambda work, chunks: pool.map(work, chunks))
        moments = Moments.of(np.zeros((0, DIMENSIONS)))
        for _, array in features.stream("i3d"):
            moments = moments.merge(Moments.of(array))
        assert moments.count == len(names)
        return time.perf_counter() - began


def common_practice(videos: Path, folder: Path) -> float:
    """The same numbers the usual way."""
    import decord
    import torch.nn.functional as F
    from safetensors.torch import load_file

    network = UsualI3D()
    network.load_state_dict(load_file(folder / "i3d.safetensors"))
    network.eval()
    began = time.perf_counter()
    loaded = [
        decord.VideoReader(str(path)).get_batch(list(range(FRAMES))).asnumpy() for path in sorted(videos.iterdir())
    ]
    features = []
    with torch.no_grad():
        for video in loaded:
            x = torch.from_numpy(video).float().permute(0, 3, 1, 2)
            x = F.interpolate(x, (224, 224), mode="bilinear", align_corners=False)
            features.append(network((2 * x / 255 - 1).permute(1, 0, 2, 3)[None])[0].numpy())
    array = np.stack(features)
    assert np.cov(array.T).shape == (DIMENSIONS, DIMENSIONS)
    return time.perf_counter() - began


def UsualI3D() -> torch.nn.Module:  # noqa: N802 - reads as a class
    """The network as its ports are written: padding, convolution, batch norm and ReLU one after the other, pools over
    three axes."""
    import torch.nn.functional as F

    from mav.evaluation.networks import i3d

    class Unit(i3d.Unit):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.bn(self.conv3d(i3d._same(x, self.kernel, self.stride))))

    class Pool(i3d.Pool):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.max_pool3d(i3d._same(x, self.kernel, self.stride), self.kernel, self.stride)

    network = i3d.I3D()
    for module in network.modules():
        if isinstance(module, i3d.Unit):
            module.__class__ = Unit
        elif isinstance(module, i3d.Pool):
            module.__class__ = Pool
    return network


def peak_memory(count: int) -> float:
    """MB at most in a process of its own that takes `count` small videos through decode, the demo's sizes and
    moments."""
    out = subprocess.run([sys.executable, __file__, "--memory", str(count)], capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


def memory_child(count: int) -> None:
    """Decode, C-order features of a small fake network and moments; prints the peak. I3D's own memory does not depend
    on the count."""
    import mav.evaluation.feature_store as store
    from mav.evaluation.features import Networks
    from mav.evaluation.metrics import Moments
    from mav.evaluation.protocols import Preparation
    from mav.evaluation.reading import find_videos
    from mav.storage import Folder

    class Projection(Networks):
        """Keeps 400 pixels of each video: what is measured is everything around the network."""

        def facts(self) -> dict[str, dict[str, str]]:
            return {"pixels": {"sha256": "0"}}

        def __call__(self, videos):  # type: ignore[no-untyped-def]
            return {
                "pixels": [
                    video.reshape(-1)[:: video.size // DIMENSIONS][:DIMENSIONS].astype(np.float32) for video in videos
                ]
            }

    with tempfile.TemporaryDirectory() as root:
        videos, keep = Path(root) / "videos", Path(root) / "keep"
        videos.mkdir()
        make_videos(videos, 20, 128)
        originals = sorted(videos.iterdir())
        for index in range(20, count):
            os.link(originals[index % 20], videos / f"{index:05d}.mp4")
        entries, _ = find_videos(Folder(str(videos)), (), count)
        features = store.compute(
            entries, Folder(str(videos)), Preparation(FRAMES), Projection(("pixels",)), Folder(str(keep))
        )
        moments = Moments.of(np.zeros((0, DIMENSIONS)))
        for _, array in features.stream("pixels"):
            moments = moments.merge(Moments.of(array))
        assert moments.count == count
    # Not getrusage's figure, which a child inherits from its parent.
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def interval_ours(x: np.ndarray, y: np.ndarray) -> float:
    from mav.evaluation.intervals import FrechetTo
    from mav.evaluation.metrics import Moments

    began = time.perf_counter()
    FrechetTo(x, Moments.of(y)).interval(DRAWS)
    return time.perf_counter() - began


def interval_sqrtm(x: np.ndarray, y: np.ndarray) -> float:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    mean, covariance = y.mean(0), np.cov(y.T)
    began = time.perf_counter()
    for _ in range(PEER_DRAWS):
        drawn = x[rng.integers(0, len(x), len(x))]
        own = np.cov(drawn.T)
        gap = drawn.mean(0) - mean
        assert gap @ gap + np.trace(own) + np.trace(covariance) - 2 * np.trace(sqrtm(own @ covariance).real) > 0
    return (time.perf_counter() - began) / PEER_DRAWS * DRAWS


def main() -> None:
    torch.set_num_threads(CORES)
    count = CHUNK * CORES
    with tempfile.TemporaryDirectory() as root:
        videos, folder = Path(root) / "videos", Path(root) / "weights"
        videos.mkdir()
        folder.mkdir()
        make_videos(videos, count)
        weights(folder)
        with ProcessPoolExecutor(CORES, get_context("spawn"), initializer=load, initargs=(str(folder),)) as pool:
            list(pool.map(time.sleep, [1.0] * CORES))
            speed = in_turn(
                {
                    "ours": lambda: count / ours(videos, folder, pool),
                    "peer": lambda: count / common_practice(videos, folder),
                }
            )
    rng = np.random.default_rng(0)
    x, y = (
        rng.normal(shift, 1, (VIDEOS, DIMENSIONS)) @ rng.normal(0, 0.1, (DIMENSIONS, DIMENSIONS)) for shift in (0, 0.1)
    )
    interval = in_turn({"ours": lambda: interval_ours(x, y), "peer": lambda: interval_sqrtm(x, y)})
    memory = {name: peak_memory(number) for name, number in MEMORY.items()}
    report(
        "evaluation",
        [
            rate(
                "decode, I3D, moments",
                speed["ours"],
                speed["peer"],
                "whole set in memory, one video at a time",
                "videos/s",
            ),
            cost(
                f"Frechet and {DRAWS} draws, d {DIMENSIONS}, n {VIDEOS}",
                interval["ours"],
                interval["peer"],
                "a sqrtm a draw",
                "s",
            ),
            cost("peak memory, 1,000 videos (peer: 100)", memory["many"], memory["few"], "ourselves on a tenth", "MB"),
        ],
        cores=CORES,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        memory_child(int(sys.argv[2]))
    else:
        main()
