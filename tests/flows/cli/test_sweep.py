"""`mav sweep`: what other thresholds would keep and drop is what the stages do with them."""

import base64
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from filters.clips import Clips
from filters.clips import SelectWork as ClipWork
from filters.pictures import Pictures
from filters.pictures import SelectWork as PictureWork
from filters.selection import in_threads
from flows.engine.store import Store
from flows.make_a_video import make_a_video
from mav.data.shards import IMAGE_ROWS, VIDEO_ROWS, TarWriter, json_bytes, write_array, write_rows, write_table
from mav.data.videos.scores import SCORES
from mav.data.videos.video_io import encode_mp4
from mav.recipes.reader import load_recipe
from mav.storage import Artifact, Folder
from mav.storage.counts import add_counts

GOOD = {"cut": 0.0, "cut_before": [], "cut_after": [], "cut_scores": [], "motion_global": 0.1, "motion_local": 0.4,
        "shake": 0.01, "box": [0.0, 0.0, 1.0, 1.0],
        "repeated": 0.0, "overlay": 0.1, "border": 0.0, "blank": 0.0, "fps": 24.0, "frames": 48}  # fmt: skip
DIM = 16


def stored(root: Path) -> dict[str, Folder]:
    """Writes what the selections of the tiny recipe read, as finished artifacts: two shards of 20 rows each."""
    graph, draws = make_a_video(load_recipe("tiny")), np.random.default_rng(0)
    folders = {}
    for name in ("video-shards", "image-download", "image-embed"):
        node = graph.node(name)
        folders[name] = folder = Store(str(root)).artifact(node)
        for shard in ("00000", "00001") if name == "video-shards" else ("00000-00000", "00000-00001"):
            keys = [f"{shard.replace('-', '')}{row:05d}" for row in range(20)]
            if name != "image-embed":
                with folder.create(f"{shard}.tar") as file, TarWriter(file):
                    pass
            hashes = draws.integers(1, 1 << 62, 20).tolist()
            hashes[5], hashes[7] = hashes[4], hashes[6] ^ 1
            if name == "video-shards":
                rows = [GOOD | {"cut": row / 4, "blank": 0.2 * (row > 16), "hash": hashes[row]} for row in range(20)]
                rows = [{"key": k, "status": "ok", **row} for k, row in zip(keys, rows, strict=True)]
                write_rows(folder, f"{shard}.parquet", VIDEO_ROWS | SCORES, rows)
            elif name == "image-download":
                rows = [{"key": k, "status": "ok", "hash": h} for k, h in zip(keys, hashes, strict=True)]
                write_rows(folder, f"{shard}.parquet", IMAGE_ROWS, rows)
            else:
                image = draws.normal(size=(20, DIM))
                image[9] = image[8] + 0.1 * draws.normal(size=DIM)
                for kind in ("image", "text"):
                    write_array(folder, f"{shard}.{kind}.npy", image.astype(np.float16))
                write_table(folder, f"{shard}.parquet", pa.table({"key": keys, "native": [True] * 20}))
        facts: dict[str, Any] = {"version": 1, "recipe": "tiny", "config": {}, "inputs": {}}
        Artifact.publish(folder, stage=name, fingerprint=node.fingerprint, **facts)
    return folders


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("video_select.cut", ("2.7", "3.25")),
        ("video_select.hash_bits", ("0", "1", "2")),
        ("image_select.hash_bits", ("0", "1", "2")),
        ("image_select.near_duplicate", ("0", "0.9")),
    ],
)
def test_sweep_says_what_the_stage_would_keep_and_drop(key: str, values: tuple[str, ...], tmp_path: Path, mav) -> None:
    folders = stored(tmp_path / "runs")
    code, out, _ = mav("sweep", "tiny", f"{key}={','.join(values)}", "--runs", tmp_path / "runs", "--json")
    found = json.loads(out)
    assert (code, found["rows"], list(found["values"])) == (0, 40, list(values))
    kept = set()
    for value in values:
        section = getattr(load_recipe("tiny", [f"{key}={value}"]), key.partition(".")[0])
        one_pass, chosen = in_threads(Folder(str(tmp_path / value)), 1), Folder(str(tmp_path / "chosen"))
        rows: Any
        if key.startswith("video"):
            rows = Clips(folders["video-shards"], section)
            work: Any = ClipWork(rows, rows.groups(one_pass), chosen)
        else:
            rows = Pictures(folders["image-download"], folders["image-embed"], section)
            work = PictureWork(rows, rows.groups(one_pass), chosen)
        made = add_counts([work(name).counts for name in rows.names()])
        told = found["values"][value]
        assert told["kept"] == made["rows_out"]
        overlaps = sum(told["dropped"].values()) - sum(made["dropped"].values())
        assert overlaps >= told["by_several"] >= (overlaps > 0), "a row is dropped for its first reason"
        assert Counter(made["dropped"]) <= Counter(told["dropped"])
        kept.add(told["kept"])
    assert len(kept) == len(values)


def test_sweep_shows_overlaps_and_names_what_is_wrong(tmp_path: Path, mav) -> None:
    assert (
        "image-download of tiny is not built" in mav("sweep", "tiny", "image_select.hash_bits=1", "--runs", tmp_path)[2]
    )
    stored(tmp_path)
    code, out, _ = mav("sweep", "tiny", "cut=2.7", "--runs", tmp_path)
    assert code == 0
    assert "40 clips" in out
    assert "blank+cut" in out
    for wrong, said in {
        "cut": "no threshold with its values", "cut=": "no threshold with its values",
        "cascade.frames=4": "no threshold with its values", "border=7": "`video_select.border`",
        "image_select.cut=1": "no threshold of `image_select`", "hash_bit=1": "did you mean hash_bits",
    }.items():  # fmt: skip
        code, _, error = mav("sweep", "tiny", wrong, "--runs", tmp_path)
        assert (code, said in error) == (2, True), error


def test_sheets_show_what_depends_on_the_value_first_and_near_duplicates_in_pairs(tmp_path: Path, mav) -> None:
    folders = stored(tmp_path)
    levels = np.arange(20) * 12  # each row has a brightness of its own
    for shard in ("00000", "00001", "00000-00000", "00000-00001"):
        folder = folders["image-download" if "-" in shard else "video-shards"]
        with folder.create(f"{shard}.tar") as file, TarWriter(file) as tar:
            for row, level in enumerate(levels):
                if "-" in shard:
                    buffer = io.BytesIO()
                    Image.fromarray(np.full((32, 32, 3), level, np.uint8)).save(buffer, "JPEG")
                    files = {"jpg": buffer.getvalue(), "json": b"{}", "txt": b""}
                else:
                    clip = encode_mp4(np.full((8, 32, 32, 3), level, np.uint8), 24)
                    files = {"mp4": clip, "json": json_bytes({"frames": 8})}
                tar.add(f"{shard.replace('-', '')}{row:05d}", files)
    page = tmp_path / "page.html"

    def sheets(key: str) -> dict[tuple[str, str], np.ndarray]:
        code, _, error = mav("sweep", "tiny", key, "--runs", tmp_path, "--sheets", page)
        assert code == 0, error
        parts = re.split(r"<h2>(.*?)</h2>", page.read_text())[1:]
        return {
            (value, reason): np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))
            for value, part in zip(parts[::2], parts[1::2], strict=True)
            for reason, data in re.findall(r"<h3>(.*?)</h3>.*?base64,(.*?)\"", part)
        }

    found = sheets("image_select.hash_bits=1,2")
    assert set(found) == {("1", "kept"), ("1", "near duplicate"), ("2", "kept"), ("2", "near duplicate")}
    pairs = found["2", "near duplicate"]
    assert pairs.shape == (2 * 66, 3 * 130 - 2), "three pairs in a line, and one"
    assert abs(pairs[[32, 32], [32, 96]].astype(int) - levels[[7, 6]]).max() < 4, "this depends on the value"
    assert abs(pairs[[32, 32], [292, 356]].astype(int) - levels[[5, 4]]).max() < 4, "this does not"
    found = sheets("cut=2.7,3")
    assert abs(int(found["2.7", "cut"][32, 32]) - levels[11]) < 6
    assert found["2.7", "cut"].shape == (6 * 66, 4 * 64), "four frames of each clip"
    assert abs(int(found["3", "kept"][32, 32]) - levels[11]) < 6
