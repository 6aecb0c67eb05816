"""image-screen and image-embed: what is kept and why, and that what is written fits together."""

import io
import json
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mav.data.images import embed
from mav.data.images.embed import EmbedWork, ScreenWork
from mav.data.shards import TarWriter, index_tar
from mav.errors import UserError
from mav.models.clip import ClipModel
from mav.models.heads import WatermarkClassifier
from mav.recipes import ClipConfig, Screening
from mav.storage import Folder
from mav.storage.counts import unbalanced
from mav.world.drawing import PALETTE, SHAPES, draw, random_scene

KNOWN = [(0.1, 0.2), (0.5, 0.1), (0.49, 0.5), (None, 0.1), (0.2, None), (None, 0.9), (None, None)]


@pytest.fixture
def world(tmp_path):
    """A shard of seven pictures of two sizes, an empty shard, and a CLIP whose heads call everything safe and clean."""
    rng = np.random.default_rng(0)
    images = Folder(str(tmp_path / "images"))
    with images.create("00000-00000.tar") as file, TarWriter(file) as tar:
        for row, (punsafe, pwatermark) in enumerate(KNOWN):
            scene = random_scene(rng, tuple(PALETTE), SHAPES)
            buffer = io.BytesIO()
            Image.fromarray(draw(scene, 48 if row % 2 else 32)).save(buffer, "JPEG", quality=95)
            metadata = {"key": f"{row:015d}", "punsafe": punsafe, "pwatermark": pwatermark}
            tar.add(
                f"{row:015d}",
                {"jpg": buffer.getvalue(), "txt": scene.caption(row).encode(), "json": json.dumps(metadata).encode()},
            )
    with images.create("00000-00001.tar") as file, TarWriter(file):
        pass
    torch.manual_seed(0)
    clip = ClipModel(ClipConfig(embedding_dim=16, vision_width=4, text_width=16, text_heads=2, text_layers=1))
    clip.fit_heads(torch.nn.functional.normalize(torch.randn(60, 16), dim=1), torch.zeros(60), torch.zeros(60))
    clip.save(Folder(str(tmp_path / "clip")))
    return tmp_path


def screen_work(world, out="screen", **screening):
    folders = [Folder(str(world / name)) for name in ("images", "clip", out)]
    return ScreenWork(*folders, Screening(**screening), batch_size=3)


def embed_work(world, out="embed"):
    return EmbedWork(*[Folder(str(world / name)) for name in ("images", "screen", "clip", out)], batch_size=2)


def table(folder, name):
    return pq.read_table(io.BytesIO(folder.read_bytes(f"{name}.parquet"))).to_pylist()


def test_unknown_scores_are_estimated_and_thresholds_drop_their_boundary(world):
    work = screen_work(world)
    output = work("00000-00000")
    rows = table(work.out, "00000-00000")
    assert [row["reason"] for row in rows] == [None, "nsfw", "watermark", None, None, "watermark", None]
    assert [row["scored"] for row in rows] == [False, False, False, True, True, True, True]
    assert rows[1]["punsafe"] == 0.5  # what the table says is never overwritten
    assert rows[3]["punsafe"] < 0.1
    expected = {"rows_in": 7, "rows_out": 4, "dropped": {"nsfw": 1, "watermark": 2}, "failed": {}, "scored": 4}
    assert output.counts == expected
    assert not list(unbalanced(output.counts))


@pytest.mark.parametrize(("choice", "kept"), [("keep", [0, 3, 4, 6]), ("drop", [0])])
def test_unknown_scores_can_be_kept_or_dropped(world, choice, kept):
    work = screen_work(world, unknown_scores=choice)
    output = work("00000-00000")
    rows = table(work.out, "00000-00000")
    assert [i for i, row in enumerate(rows) if row["kept"]] == kept
    assert output.counts["dropped"].get("unknown_score", 0) == (3 if choice == "drop" else 0)
    assert rows[3]["punsafe"] is None


def test_every_picture_is_embedded_once_and_survivors_keep_theirs(world):
    screen_work(world)("00000-00000")
    work = embed_work(world)
    output = work("00000-00000")
    every = np.load(world / "screen" / "00000-00000.image.npy")
    image, text, tokens = (np.load(world / "embed" / f"00000-00000.{kind}.npy") for kind in ("image", "text", "tokens"))
    assert every.shape == (7, 16)
    assert every.dtype == image.dtype == text.dtype == np.float16
    assert tokens.dtype == np.uint16
    assert tokens.shape == (4, 16)
    assert [row["key"] for row in table(work.out, "00000-00000")] == [f"{i:015d}" for i in (0, 3, 4, 6)]
    assert np.array_equal(image, every[[0, 3, 4, 6]])
    for array in (every, text):
        assert np.abs(np.linalg.norm(array.astype(np.float32), axis=1) - 1).max() < 2e-3
    clip = ClipModel.load(Folder(str(world / "clip")))
    assert np.abs(clip.encode_text(torch.from_numpy(tokens.astype(np.int64))).numpy() - text).max() < 2e-3
    assert output.counts == {"rows_in": 4, "rows_out": 4, "dropped": {}, "failed": {}, "native": 4}
    index = index_tar(Folder(str(world / "images")), "00000-00000.tar")
    assert [(row["offset"], row["size"]) for row in table(work.out, "00000-00000")] == [
        index[row["key"]]["jpg"] for row in table(work.out, "00000-00000")
    ]


def test_an_empty_shard_stays_empty(world):
    assert screen_work(world)("00000-00001").counts["rows_in"] == 0
    assert embed_work(world)("00000-00001").counts["rows_in"] == 0
    assert np.load(world / "embed" / "00000-00001.tokens.npy").shape == (0, 16)


@pytest.mark.parametrize(
    ("before", "native"), [((800, 900), True), ((768, 900), True), ((400, 500), False), (None, True)]
)
def test_a_picture_that_was_enlarged_is_told(before, native):
    sizes = {"width": 768, "height": 900}
    told = dict(zip(("original_width", "original_height"), before or (None, None), strict=True))
    assert embed._is_native(sizes | told) is native


def test_twice_the_same_bytes_even_through_pickle(world):
    first = screen_work(world)
    first("00000-00000")
    embed_work(world)("00000-00000")
    pickle.loads(pickle.dumps(screen_work(world, "screen2")))("00000-00000")
    pickle.loads(pickle.dumps(embed_work(world, "embed2")))("00000-00000")
    for stage in ("screen", "embed"):
        for name in Folder(str(world / stage)).names():
            assert (world / stage / name).read_bytes() == (world / f"{stage}2" / name).read_bytes()


def test_a_spoilt_picture_is_named(world):
    images = Folder(str(world / "images"))
    with images.create("00000-00002.tar") as file, TarWriter(file) as tar:
        tar.add("000000000000009", {"jpg": b"no picture", "txt": b"", "json": b"{}"})
    with pytest.raises(UserError, match=r"00000-00002\.tar: 000000000000009"):
        screen_work(world)("00000-00002")


def test_the_watermark_classifier_is_asked_for_rows_without_scores_only(world, monkeypatch):
    asked = []

    class Marked(WatermarkClassifier):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def forward(self, pixels):
            asked.append(len(pixels))
            return torch.full((len(pixels),), 0.9)

    clip = ClipModel.load(Folder(str(world / "clip")))
    clip.heads["pwatermark"] = Marked()
    monkeypatch.setattr(embed, "load_clip", lambda url, device: clip)
    work = screen_work(world)
    work("00000-00001")
    work("00000-00000")
    rows = table(work.out, "00000-00000")
    assert [row["reason"] for row in rows] == [None, "nsfw", "watermark", None, "watermark", "watermark", "watermark"]
    assert [round(row["pwatermark"], 3) for row in rows] == [0.2, 0.1, 0.5, 0.1, 0.9, 0.9, 0.9]
    assert sum(asked) == 4
