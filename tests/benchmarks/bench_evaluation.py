"""Video metrics at work: files to features to moments, and the price of an interval.

The networks are I3D, and VideoMAE and DINOv2 of their published widths with a few of their blocks, so that this ends in
minutes. Ours takes the videos in chunks, a process of one thread for each core, as `mav evaluate` does on Ray. Peer of
the first: what people do, as the scripts that people copy do it (the whole set decoded into memory, one video at a time
through the network as published, a torch thread for each core, features in a list, covariance at the end), on the same
random weights. Peer of the second: a bootstrap whose every draw takes covariances and a `scipy.linalg.sqrtm` of their
product.
"""

from __future__ import annotations

import dataclasses
import functools
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
from harness import Row, cost, in_turn, rate, report
from torch import nn

from mav.evaluation import feature_store
from mav.evaluation.features import Networks
from mav.evaluation.networks.vit import MEAN, STD

FRAMES, SIZE, FPS = 16, 256, 25
DIMENSIONS, VIDEOS, DRAWS = 400, 2048, 200
PEER_DRAWS = 4  # sqrtm takes about a second: some draws tell the price of each
MEMORY = {"few": 100, "many": 1000}
CORES = min(2, os.cpu_count() or 1)
BLOCKS = {"videomae": 8, "dinov2": 6}  # of 40 and 24
CHUNKS = {"i3d": feature_store.CHUNK, "videomae": 4, "dinov2": 4}  # videos of a process


def make_videos(folder: Path, count: int, size: int = SIZE) -> None:
    """Noise that drifts: as costly to decode as film."""
    from mav.data.videos.video_io import encode_mp4

    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (size // 8 + 8, size // 8 + 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    for index in range(count):
        steps = rng.integers(0, 64, 2)
        frames = [ground[(i + steps[0]) % 64 :, (i + steps[1]) % 64 :][:size, :size] for i in range(FRAMES)]
        (folder / f"{index:05d}.mp4").write_bytes(encode_mp4(np.ascontiguousarray(np.stack(frames)), FPS, crf=18))


def make_network(name: str) -> nn.Module:
    """A network with random weights, a video's feature of which is 400, 1,408 or 16 times 1,024 numbers."""
    from mav.evaluation.networks.i3d import I3D
    from mav.evaluation.networks.vit import DINOV2, VIDEOMAE, VideoMae, VisionTransformer

    torch.manual_seed(0)
    if name == "i3d":
        return I3D()
    kind, sizes = (VideoMae, VIDEOMAE) if name == "videomae" else (VisionTransformer, DINOV2)
    return kind(dataclasses.replace(sizes, blocks=BLOCKS[name]))


def weights(folder: Path, name: str = "i3d") -> None:
    from safetensors.torch import save_file

    save_file(make_network(name).state_dict(), folder / f"{name}.safetensors")


def load(folder: str, name: str = "i3d") -> None:
    """In a worker, before any clock runs: the peer's loading is outside its clock too."""
    from mav.evaluation.features import Networks
    from mav.evaluation.networks import weights as published

    torch.set_num_threads(1)
    published.NETWORKS[name] = functools.partial(make_network, name)
    Networks((name,), folder)([np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)])


def ours(name: str, videos: Path, folder: Path, pool: ProcessPoolExecutor) -> float:
    """Videos a second from files to moments, through the same code as `mav evaluate`."""
    from mav.evaluation.metrics import Moments
    from mav.evaluation.protocols import Preparation
    from mav.evaluation.reading import find_videos
    from mav.evaluation.score import flat
    from mav.storage import Folder

    networks = Networks((name,), str(folder))
    names = sorted(videos.iterdir())
    entries, _ = find_videos(Folder(str(videos)), (), len(names))
    with tempfile.TemporaryDirectory() as keep:
        began = time.perf_counter()
        where = Folder(str(videos)), Preparation(FRAMES), networks, Folder(keep)
        features = feature_store.compute(entries, *where, run=lambda work, chunks: pool.map(work, chunks))
        parts = [Moments.of(flat(array)) for _, array in features.stream(name)]
        assert functools.reduce(Moments.merge, parts).count >= len(names)
        return len(names) / (time.perf_counter() - began)


def common_practice(name: str, videos: Path, folder: Path) -> float:
    """The same numbers the usual way."""
    import decord
    import torch.nn.functional as F
    from safetensors.torch import load_file

    network = usual(make_network(name))
    network.load_state_dict(load_file(folder / f"{name}.safetensors"))
    network.eval()
    mode = "bicubic" if name == "dinov2" else "bilinear"
    mean, deviation = (torch.tensor(three).view(3, 1, 1) for three in (MEAN, STD))
    began = time.perf_counter()
    loaded = [
        decord.VideoReader(str(path)).get_batch(list(range(FRAMES))).asnumpy() for path in sorted(videos.iterdir())
    ]
    features = []
    with torch.no_grad():
        for video in loaded:
            x = torch.from_numpy(video).float().permute(0, 3, 1, 2)
            x = F.interpolate(x, (224, 224), mode=mode, align_corners=False, antialias=name == "dinov2") / 255
            if name == "dinov2":  # a picture of its own is each frame
                features.append(network((x - mean) / deviation).numpy())
            else:
                features.append(network((2 * x - 1 if name == "i3d" else x).transpose(0, 1)[None]).numpy())
    array = np.concatenate(features)
    assert len(np.cov(array.T)) == array.shape[1]
    return len(loaded) / (time.perf_counter() - began)


def usual(network: nn.Module) -> nn.Module:
    """The network as its ports are written: padding, convolution, batch norm and ReLU one after the other, pools over
    three axes; attention by two products with a softmax between them."""
    import torch.nn.functional as F

    from mav.evaluation.networks import i3d, vit

    class Unit(i3d.Unit):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.bn(self.conv3d(i3d._same(x, self.kernel, self.stride))))

    class Pool(i3d.Pool):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.max_pool3d(i3d._same(x, self.kernel, self.stride), self.kernel, self.stride)

    class Attention(vit.Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            found = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
            return self.proj(found.transpose(1, 2).flatten(2))

    for module in network.modules():
        if type(module) in (i3d.Unit, i3d.Pool, vit.Attention):
            module.__class__ = {i3d.Unit: Unit, i3d.Pool: Pool, vit.Attention: Attention}[type(module)]
    return network


def speed(name: str) -> Row:
    """Measures the way from files to moments with one network."""
    feature_store.CHUNK = CHUNKS[name]
    count = CHUNKS[name] * CORES
    with tempfile.TemporaryDirectory() as root:
        videos, folder = Path(root) / "videos", Path(root) / "weights"
        videos.mkdir()
        folder.mkdir()
        make_videos(videos, count)
        weights(folder, name)
        with ProcessPoolExecutor(CORES, get_context("spawn"), initializer=load, initargs=(str(folder), name)) as pool:
            list(pool.map(time.sleep, [1.0] * CORES))
            print(f"{name}, {count} videos:", file=sys.stderr)
            found = in_turn({"ours": functools.partial(ours, name, videos, folder, pool),
                             "peer": functools.partial(common_practice, name, videos, folder)})  # fmt: skip
    title = f"decode, {name}, moments" if name == "i3d" else f"decode, {name} of {BLOCKS[name]} blocks, moments"
    return rate(title, found["ours"], found["peer"], "whole set in memory, one video at a time", "videos/s")


def peak_memory(count: int) -> float:
    """MB at most in a process of its own that takes `count` small videos through decode, the demo's sizes and
    moments."""
    out = subprocess.run([sys.executable, __file__, "--memory", str(count)], capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


def memory_child(count: int) -> None:
    """Decode, C-order features of a small fake network and moments; prints the peak. I3D's own memory does not depend
    on the count."""
    from mav.evaluation.metrics import Moments
    from mav.evaluation.protocols import Preparation
    from mav.evaluation.reading import find_videos
    from mav.storage import Folder

    class Projection(Networks):
        """Keeps 400 pixels of each video: what is measured is everything around the network."""

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
        features = feature_store.compute(
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
    speeds = [speed(name) for name in CHUNKS]
    rng = np.random.default_rng(0)
    x, y = (
        rng.normal(shift, 1, (VIDEOS, DIMENSIONS)) @ rng.normal(0, 0.1, (DIMENSIONS, DIMENSIONS)) for shift in (0, 0.1)
    )
    interval = in_turn({"ours": lambda: interval_ours(x, y), "peer": lambda: interval_sqrtm(x, y)})
    memory = {name: peak_memory(number) for name, number in MEMORY.items()}
    report(
        "evaluation",
        [
            *speeds,
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
