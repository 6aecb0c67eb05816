import errno
import functools
import hashlib
import http.server
import io
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback import Quiet, served
from nasty_pictures import encoded, png
from PIL import Image

from filters.screen import MetadataWork
from flows.services.ports import reserve_port
from mav.data.fetching.rules import is_transient
from mav.data.images.download import DownloadWork
from mav.data.images.hashes import perceptual_hash
from mav.data.images.resize import guarded_resizer, look
from mav.data.shards import TarWriter, read_tar
from mav.recipes import ImageDownload, Screening, World
from mav.storage import Folder
from mav.storage.counts import add_counts, unbalanced
from mav.world.server import WorldServer
from mav.world.world import draw_world


def their_resizer(size):
    """Returns img2dataset's own. It is imported after the setting that keeps its resizing library offline."""
    from img2dataset.resizer import Resizer

    return Resizer(
        size,
        "keep_ratio",
        resize_only_if_bigger=False,
        encode_quality=ImageDownload().encode_quality,
        encode_format="jpg",
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small world, its screened metadata, and download settings that let its loopback address pass."""
    port = reserve_port()
    section = World(images=80, clips=1, clip_frames=8, evaluation_clips=1, port=port)
    root = Folder(str(tmp_path_factory.mktemp("download")))
    draw_world(section, 0, root.child("world"))
    tables = tuple(root.child("world").path(f"laion/{name}.parquet") for name in ("joined", "relaion"))
    metadata = root.child("metadata")
    work = MetadataWork(tables, Screening(), 40, metadata)
    [work(name) for name in work.names()]
    rule = ImageDownload(
        image_size=64, threads=8, timeout_seconds=2.5, deadline_seconds=2.5, allow_addresses=(f"127.0.0.1:{port}",)
    )
    with WorldServer(root.child("world/site"), port):
        yield root, metadata, rule


def run(metadata, rule, out, **more):
    work = pickle.loads(pickle.dumps(DownloadWork(metadata, rule, out, **more)))
    return work, [work(name) for name in work.names()]


def test_world_is_downloaded_and_every_row_accounted_for(world, tmp_path):
    _, metadata, rule = world
    work, outputs = run(metadata, rule, Folder(str(tmp_path / "one")))
    counts = add_counts([o.counts for o in outputs])
    assert not list(unbalanced(counts))
    tables = [pq.read_metadata(metadata.path(f"shards/{n}.parquet")) for n in work.names()]
    assert counts["rows_in"] == sum(table.num_rows for table in tables)
    assert set(counts["dropped"]) == {"opted_out"}
    faults = {
        "http_404",
        "http_429",
        "timeout",
        "truncated",
        "too_large",
        "not_an_image",
        "private_address",
        "redirect_loop",
    }
    assert set(counts["failed"]) == faults, counts
    assert counts["rows_out"] == counts["rows_in"] - sum(counts["failed"].values()) - sum(counts["dropped"].values())

    name = work.names()[0]
    ledger = {row["key"]: row for row in pq.read_table(work.out.path(f"{name}.parquet")).to_pylist()}
    rows = {row["key"]: row for row in pq.read_table(metadata.path(f"shards/{name}.parquet")).to_pylist()}
    assert list(ledger) == sorted(rows)
    samples = dict(read_tar(work.out, f"{name}.tar"))
    assert set(samples) == {key for key, row in ledger.items() if row["status"] == "ok"}
    for key, files in samples.items():
        written = json.loads(files["json"])
        assert written["key"] == key
        assert written["sha256"] == ledger[key]["sha256"]
        assert (written["punsafe"], written["pwatermark"]) == (rows[key]["punsafe"], rows[key]["pwatermark"])
        assert files["txt"].decode() == rows[key]["caption"]
        stored = perceptual_hash(cv2.imdecode(np.frombuffer(files["jpg"], np.uint8), cv2.IMREAD_COLOR))
        assert (stored ^ ledger[key]["hash"]).bit_count() <= 8, "the hash is of the picture, before it is encoded"
        picture = Image.open(io.BytesIO(files["jpg"]))
        assert min(picture.size) == 64
        assert picture.size == (written["width"], written["height"])
    assert all((row["hash"] is None) == (row["status"] != "ok") for row in ledger.values())
    redirected = [r for r in ledger.values() if r["status"] == "ok" and r["final_url"] != r["url"]]
    assert redirected
    assert all(r["final_url"].endswith("?direct") for r in redirected)

    again, _ = run(metadata, rule, Folder(str(tmp_path / "two")))
    assert [work.out.sha256(n) for n in work.out.names()] == [again.out.sha256(n) for n in again.out.names()]


def test_loopback_is_refused_unless_allowed(world, tmp_path):
    _, metadata, _ = world
    refusing = DownloadWork(metadata, ImageDownload(threads=4), Folder(str(tmp_path)))
    name = refusing.names()[-1]
    rows = pq.read_metadata(metadata.path(f"shards/{name}.parquet")).num_rows
    assert refusing(name).counts["failed"] == {"private_address": rows}
    assert list(read_tar(refusing.out, f"{name}.tar")) == []


def test_a_full_disk_ends_the_shard_and_leaves_nothing(world, tmp_path, monkeypatch):
    _, metadata, rule = world

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TarWriter, "add", full)
    work = DownloadWork(metadata, rule, Folder(str(tmp_path)))
    with pytest.raises(OSError, match="No space left"):
        work(work.names()[-1])
    assert os.listdir(tmp_path) == []


def test_looking_before_decoding():
    assert (look(encoded(), 10_000).problem, look(encoded(), 10_000).width) == ("", 40)
    assert look(encoded(), 1000).problem == "too_many_pixels"
    assert look(b"<html>", 1000).problem == "not_an_image"
    assert look(b"", 1000).problem == "not_an_image"
    for form in ("JPEG", "PNG", "WEBP"):
        assert look(encoded(form)[:-40], 10_000).problem in ("truncated", "undecodable"), form
    assert look(png(60_000, 60_000), 100_000_000).problem == "too_many_pixels"


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA"])
def test_odd_modes_become_plain_jpegs(mode):
    form = "JPEG" if mode == "CMYK" else "PNG"
    picture, width, height, *_, error = guarded_resizer(ImageDownload(image_size=16))(
        io.BytesIO(encoded(form, mode=mode))
    )
    assert error is None
    assert (width, height) == (21, 16)
    assert Image.open(io.BytesIO(picture)).convert("RGB").size == (21, 16)


def test_deep_and_turned_pictures():
    deep = io.BytesIO()
    Image.fromarray(np.full((30, 40), 32_768, np.uint16)).save(deep, "PNG")
    resizer = guarded_resizer(ImageDownload(image_size=16))
    picture = resizer(deep)[0]
    assert abs(int(np.asarray(Image.open(io.BytesIO(picture))).mean()) - 127) <= 2
    exif = Image.Exif()
    exif[0x0112] = 6
    for side in (40, 400):  # the larger is unpacked at a reduced size
        _, *sizes, problem = resizer(io.BytesIO(encoded(size=(side, side * 3 // 4), exif=exif.tobytes())))
        assert (sizes, problem) == ([16, 21, side * 3 // 4, side], None)


@pytest.mark.parametrize("size", [(33, 57), (64, 64), (200, 131), (31, 400)])
@pytest.mark.parametrize(("form", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGBA"), ("WEBP", "RGB")])
def test_resizes_as_img2dataset_does(size, form, mode):
    """Byte for byte, as long as nothing is unpacked at a reduced size."""
    rule = ImageDownload(image_size=max(32, min(size) // 2 + 1))
    theirs = their_resizer(rule.image_size)
    data = encoded(form, size=size, mode=mode)
    assert guarded_resizer(rule)(io.BytesIO(data)) == theirs(io.BytesIO(data))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_reduced_unpacking_keeps_the_picture(mode):
    across = np.linspace(0, 255, 1200, dtype=np.float32)[None, :] * np.ones((900, 1), np.float32)
    buffer = io.BytesIO()
    Image.fromarray(np.stack([across, across[:, ::-1], across], 2).astype(np.uint8)).convert(mode).save(
        buffer, "JPEG", quality=95
    )
    theirs = their_resizer(64)
    ours, plain = guarded_resizer(ImageDownload(image_size=64))(buffer), theirs(buffer)
    assert ours[1:] == plain[1:]
    pictures = [np.asarray(Image.open(io.BytesIO(p[0]))).astype(int) for p in (ours, plain)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 4


def test_many_threads_prepare_at_once():
    resizer = guarded_resizer(ImageDownload(image_size=16))
    pictures = [encoded(size=(40 + i, 30)) for i in range(64)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(resizer.ahead, pictures))
    assert [resizer(io.BytesIO(p)) for p in pictures] == [resizer.prepare(p) for p in pictures]
    assert not resizer._ready


class Files(http.server.SimpleHTTPRequestHandler):
    log_message = Quiet.log_message


def test_digests_of_tables_are_verified(tmp_path):
    """md5, sha256 or sha512, whichever a table has; null is not checked; what differs is not kept."""
    (tmp_path / "site").mkdir()
    body = encoded()
    md5, sha256, sha512 = (hashlib.new(kind, body).hexdigest() for kind in ("md5", "sha256", "sha512"))
    digests = [md5, None, "0" * 32, sha512.upper(), sha256, "f" * 64]
    for i in range(len(digests)):
        (tmp_path / f"site/{i}.jpg").write_bytes(body)
    with served(functools.partial(Files, directory=tmp_path / "site")) as base:
        pq.write_table(
            pa.table({"url": [f"http://{base}/{i}.jpg" for i in range(6)], "caption": ["x"] * 6, "md5": digests}),
            tmp_path / "a.parquet",
        )
        metadata = Folder(str(tmp_path / "metadata"))
        MetadataWork((str(tmp_path / "a.parquet"),), Screening(), 100, metadata)("00000")
        work, (output,) = run(
            metadata, ImageDownload(image_size=16, allow_addresses=(base,)), Folder(str(tmp_path / "out"))
        )
    assert output.counts["failed"] == {"hash_mismatch": 2}
    reasons = pq.read_table(work.out.path("00000-00000.parquet")).column("reason").to_pylist()
    assert reasons == ["", "", "hash_mismatch", "", "", "hash_mismatch"]
    assert len(list(read_tar(work.out, "00000-00000.tar"))) == 4


def test_rows_of_one_address_have_an_outcome_each_with_a_reason_that_is_tried_again(tmp_path):
    """The first answer is a picture, and the second asks for an hour of patience; odd spellings are addresses too."""
    asked = []

    class Once(Quiet):
        def get(self):
            asked.append(self.path)
            if asked.count("/twice.jpg") > 1:
                self.answer(429, b"", Retry_After="3600")
            else:
                self.answer(body=encoded())

    with served(Once) as base:
        urls = [f"http://{base}/{name}" for name in ("twice.jpg", "once.jpg#", "twice.jpg", "twice.jpg")]
        urls += [f"<http://{base}/x.jpg>", f"URL:http://{base}/y.jpg", "nonsense"]
        metadata = Folder(str(tmp_path / "metadata"))
        pq.write_table(pa.table({"url": urls, "caption": [str(i) for i in range(7)]}), tmp_path / "a.parquet")
        MetadataWork((str(tmp_path / "a.parquet"),), Screening(), 100, metadata)("00000")
        rule = ImageDownload(image_size=16, threads=1, deadline_seconds=1.0, allow_addresses=(base,))
        work, (output,) = run(metadata, rule, Folder(str(tmp_path / "out")))
    ledger = pq.read_table(work.out.path("00000-00000.parquet")).to_pylist()
    assert [row["reason"] for row in ledger] == [
        "",
        "",
        "http_429",
        "http_429",
        "bad_scheme",
        "bad_scheme",
        "bad_scheme",
    ]
    assert [is_transient(row["reason"]) for row in ledger] == [False] * 2 + [True] * 2 + [False] * 3
    assert output.counts["rows_out"] == 2
    samples = [files for _, files in read_tar(work.out, "00000-00000.tar")]
    assert [json.loads(files["json"])["url"] for files in samples] == urls[:2]


def test_undecodable_behind_a_good_header():
    data = bytearray(encoded("PNG"))
    data[60:-20] = bytes(len(data) - 80)
    assert guarded_resizer(ImageDownload())(io.BytesIO(bytes(data)))[-1] == "undecodable"


# ----------------------------------------------------------------------------------------------------------- real input


def test_real_photos_over_loopback(real_data, tmp_path):
    photos = real_data / "images"
    names = sorted(p.name for p in photos.iterdir())
    with served(functools.partial(Files, directory=photos)) as base:
        table = pa.table(
            {
                "URL": [f"http://{base}/{n}" for n in [*names, "none.jpg"]],
                "TEXT": [f"a real photo {n}" for n in [*names, "none"]],
            }
        )
        pq.write_table(table, tmp_path / "real.parquet")
        metadata = Folder(str(tmp_path / "metadata"))
        MetadataWork((str(tmp_path / "real.parquet"),), Screening(), 100, metadata)("00000")
        work, (output,) = run(
            metadata, ImageDownload(image_size=256, allow_addresses=(base,)), Folder(str(tmp_path / "out"))
        )
    assert output.counts["rows_out"] == len(names)
    assert output.counts["failed"] == {"http_404": 1}
    for _, files in read_tar(work.out, "00000-00000.tar"):
        assert min(Image.open(io.BytesIO(files["jpg"])).size) == 256
