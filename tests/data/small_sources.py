"""Small artifacts of images, embeddings and clips for the tests of what training reads."""

import io

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from mav.data.loading.loaders import ClipSource
from mav.data.shards import TarWriter, write_table
from mav.recipes import FpsCurriculum
from mav.world.drawing import PALETTE, SHAPES, draw, random_scene

N, CLIPS = 7, 5


def scene(i):
    return random_scene(np.random.default_rng(i), tuple(PALETTE), SHAPES)


def write_tar(folder, name, samples):
    with folder.create(name) as file, TarWriter(file) as tar:
        for key, files in samples.items():
            tar.add(key, files)


def write_embeddings(folder, shard, keys, numbers, width):
    """Row i's embeddings are filled with its number, and so are its tokens."""
    write_table(folder, f"{shard}.parquet", pa.table({"key": keys}))
    for kind, dtype in (("image", np.float16), ("text", np.float16), ("tokens", np.uint16)):
        buffer = io.BytesIO()
        np.save(buffer, np.array([[number] * (width + (kind == "tokens")) for number in numbers], dtype))
        folder.write_bytes(f"{shard}.{kind}.npy", buffer.getvalue())


def jpeg(i):
    buffer = io.BytesIO()
    Image.fromarray(draw(scene(i), 24)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def clips(shards, **more):
    settings = {"frames": 8, "size": 16, "seed": 0, "fps": FpsCurriculum(low=4, high=24), "total_samples": 100}
    return ClipSource(shards, **(settings | more))


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a) and set(a) == set(b)
