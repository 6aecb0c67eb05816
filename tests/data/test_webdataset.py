"""The project's shards are WebDatasets: the webdataset library reads them as written, and torch trains on them."""

import functools
import http.server
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from loopback import Quiet, served
from PIL import Image

from mav.data.images.download import DownloadWork
from mav.data.images.laion import TYPES
from mav.data.shards import read_tar
from mav.data.videos.clip_list import split_lists
from mav.data.videos.video_io import encode_mp4, fit, read_frames, read_squares
from mav.data.videos.video_shards import VideoWork
from mav.recipes import ImageDownload, VideoShards
from mav.storage import Folder

COUNT, SIDE = 6, 32
CAPTIONS = [f"a picture of number {i}, été" for i in range(COUNT)]


class Files(http.server.SimpleHTTPRequestHandler):
    log_message = Quiet.log_message


@pytest.fixture(scope="module")
def image_tar(tmp_path_factory):
    """The tar that `image-download` makes of pictures of several sizes on loopback."""
    root = tmp_path_factory.mktemp("images")
    for i in range(COUNT):
        pixels = np.full((40 + i, 60, 3), 40 * i, np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
    with served(functools.partial(Files, directory=root)) as address:
        urls = [f"http://{address}/{i}.png" for i in range(COUNT)]
        columns = {
            "key": [f"{i:015d}" for i in range(COUNT)],
            "url": urls,
            "caption": CAPTIONS,
            "punsafe": [0.25] * COUNT,
        }
        rest = {name: pa.nulls(COUNT, pa.type_for_alias(kind)) for name, kind in TYPES.items() if name not in columns}
        metadata, out = Folder(str(root / "metadata")), Folder(str(root / "out"))
        with metadata.create("shards/00000-00000.parquet") as file:
            pq.write_table(pa.table(columns | rest), file)
        rule = ImageDownload(image_size=SIDE, threads=4, allow_addresses=(address,))
        assert DownloadWork(metadata, rule, out)("00000-00000").counts["rows_out"] == COUNT
    return out, "00000-00000.tar"


@pytest.fixture(scope="module")
def clip_tar(tmp_path_factory):
    """The tar that `video-shards` makes of files, the frames of clip i being of level 30 i."""
    root = tmp_path_factory.mktemp("clips")
    for i in range(COUNT):
        (root / f"{i}.mp4").write_bytes(encode_mp4(np.full((12, SIDE, 48, 3), 30 * i, np.uint8), 24))
    (root / "clips.csv").write_text("path\n" + "".join(f"{i}.mp4\n" for i in range(COUNT)))
    parts = split_lists([str(root / "clips.csv")], COUNT)
    out = Folder(str(root / "out"))
    work = VideoWork(tuple(parts), VideoShards(files=str(root), short_side=SIDE), 0, out)
    assert work("00000").counts["rows_out"] == COUNT
    return out, "00000.tar"


def test_images_come_with_keys_captions_and_metadata_as_written(image_tar):
    out, name = image_tar
    written = dict(read_tar(out, name))
    found = list(webdataset.WebDataset(out.path(name), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in found] == sorted(written)
    for sample, caption in zip(found, CAPTIONS, strict=True):
        files = written[sample["__key__"]]
        assert sample["txt"] == files["txt"].decode() == caption
        assert sample["json"]["key"] == sample["__key__"]
        assert (sample["json"]["punsafe"], sample["json"]["pwatermark"]) == (0.25, None)
        assert sample["jpg"].shape == (sample["json"]["height"], sample["json"]["width"], 3)
        assert np.array_equal(sample["jpg"], np.asarray(Image.open(io.BytesIO(files["jpg"]))))


def test_clips_come_with_their_frames_and_without_captions(clip_tar):
    out, name = clip_tar
    written = dict(read_tar(out, name))
    found = list(
        webdataset.WebDataset(out.path(name), shardshuffle=False).decode(
            webdataset.handle_extension("mp4", read_frames)
        )
    )
    assert [sample["__key__"] for sample in found] == sorted(written)
    for number, sample in enumerate(found):
        assert {key for key in sample if not key.startswith("__")} == {"mp4", "json"}
        assert sample["mp4"].shape == (sample["json"]["frames"], sample["json"]["height"], sample["json"]["width"], 3)
        assert np.abs(sample["mp4"].mean() - 30 * number) < 8


def step(network, loader, target):
    """One step of gradient descent on every batch; returns the sizes of the batches."""
    optimiser, sizes = torch.optim.SGD(network.parameters(), lr=0.1), []
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for batch in loader:
        pixels = torch.as_tensor(batch[0]).float() / 127.5 - 1
        loss = (network(pixels) - target(*batch)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert loss.isfinite()
        sizes.append(len(pixels))
    assert any(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    return sizes


def test_a_network_trains_on_image_batches(image_tar):
    """Squares of one size and the lengths of the captions, shuffled, in batches."""
    out, name = image_tar
    data = (
        webdataset.WebDataset(out.path(name), shardshuffle=False)
        .shuffle(100)
        .decode("rgb8")
        .to_tuple("jpg", "txt")
        .map_tuple(lambda pixels: fit(pixels[None], SIDE)[0].transpose(2, 0, 1), len)
        .batched(4)
    )
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 1)
    )
    loader = torch.utils.data.DataLoader(data, batch_size=None)
    assert step(network, loader, lambda _, lengths: torch.as_tensor(lengths)[:, None] / 100) == [4, 2]


def test_a_network_trains_on_clip_batches(clip_tar):
    """Every third frame of each clip, read at its size, with the clip's frame rate."""
    out, name = clip_tar
    squares = functools.partial(read_squares, indices=range(0, 12, 3), size=16)
    data = (
        webdataset.WebDataset(out.path(name), shardshuffle=False)
        .decode(webdataset.handle_extension("mp4", squares))
        .to_tuple("mp4", "json")
        .map_tuple(lambda frames: frames.transpose(3, 0, 1, 2), lambda metadata: metadata["fps"] / 3)
        .batched(3)
    )
    network = torch.nn.Sequential(
        torch.nn.Conv3d(3, 4, 3), torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten(), torch.nn.Linear(4, 1)
    )
    loader = torch.utils.data.DataLoader(data, batch_size=None)
    assert step(network, loader, lambda _, fps: torch.as_tensor(fps)[:, None] / 24) == [3, 3]
