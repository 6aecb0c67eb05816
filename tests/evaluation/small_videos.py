"""Small videos of drawn scenes, in memory and on disk."""

import base64
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from mav.data.loading.places import BOX, PART
from mav.data.videos.video_io import encode_mp4
from mav.storage import Artifact, Folder
from mav.storage.ledger import write_ledger
from mav.world.drawing import PALETTE, SHAPES, draw_clip, random_scene

FRAMES = 4


def frames(seed: int, count: int = FRAMES, size: int = 32) -> np.ndarray:
    scene = random_scene(np.random.default_rng(seed), tuple(PALETTE), SHAPES)
    return draw_clip(scene, size, count, 8)


def write(folder: Folder, numbers: Iterable[int], offset: int = 0) -> None:
    for number in numbers:
        folder.write_bytes(f"{number:05d}.mp4", encode_mp4(frames(offset + number), 8))


def save(array: np.ndarray, path: Path, ending: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending == "npy":
        np.save(path, array)
    else:
        torch.save(torch.from_numpy(array), path)


def keep_all(selection: Folder, count: int, length: int) -> None:
    """Makes an artifact of `video-select` that keeps all clips of the shard 00000, each of so many frames."""
    parts = np.array([(number, 0, length - 1, BOX) for number in range(count)], PART)
    every = base64.b64encode(parts.tobytes()).decode()
    write_ledger(selection, [[{"shard": "00000", "counts": {}, "files": {}, "places": every}]])
    about = {"stage": "video-select", "version": 1, "fingerprint": "f", "recipe": "r", "config": {}, "inputs": {}}
    Artifact.publish(selection, **about)
