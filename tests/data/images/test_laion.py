import math
import re
from contextlib import nullcontext

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback import Quiet, served

from filters.screen import MetadataWork
from mav.data.images.laion import TYPES, read_part, recognise, source_parts
from mav.errors import UserError
from mav.recipes import Screening
from mav.storage import Folder


def rows(path, **columns):
    pq.write_table(pa.table(columns), path)
    return [row for batch in read_part(str(path))[1] for row in batch.to_pylist()]


def test_plain_tables_have_width_and_height_swapped_and_say_nsfw_by_tag(tmp_path):
    plain = {
        "SAMPLE_ID": [1, 2, 3, 4],
        "URL": ["u"] * 4,
        "TEXT": ["t"] * 4,
        "HEIGHT": [640] * 4,
        "WIDTH": [480] * 4,
        "LICENSE": ["?"] * 4,
    }
    found = rows(tmp_path / "a.parquet", **plain, NSFW=["NSFW", "UNSURE", "UNLIKELY", None], similarity=[0.3] * 4)
    assert {(row["width"], row["height"]) for row in found} == {(640, 480)}
    assert [row["punsafe"] for row in found] == [1.0, None, None, None]


def test_joined_tables_are_as_they_say(tmp_path):
    (row,) = rows(tmp_path / "a.parquet", URL=["u"], TEXT=["t"], WIDTH=pa.array([480], pa.int32()), HEIGHT=[640.0],
                  similarity=[0.3], hash=[-5], punsafe=[0.25], pwatermark=pa.array([None], pa.float32()))  # fmt: skip
    assert row == {
        "url": "u",
        "caption": "t",
        "width": 480,
        "height": 640,
        "punsafe": 0.25,
        "pwatermark": None,
        "hash": -5,
        "digest": None,
    }


def test_digests_of_pictures_are_taken_from_text_columns_only(tmp_path):
    md5, sha = "0123456789abcdef" * 2, "ab" * 32
    found = rows(
        tmp_path / "a.parquet",
        URL=["u"] * 4,
        TEXT=["t"] * 4,
        MD5=[md5.upper(), f" {md5} ", "none", None],
        hash=[1, 2, 3, 4],
    )
    assert [row["digest"] for row in found] == [md5, md5, None, None]
    assert [row["hash"] for row in found] == [1, 2, 3, 4]
    found = rows(tmp_path / "b.parquet", url=["u"], caption=["t"], hash=[sha])
    assert (found[0]["digest"], found[0]["hash"]) == (sha, None)
    found = rows(tmp_path / "c.parquet", url=["u"], caption=["t"], md5=[md5], sha256=[sha])
    assert found[0]["digest"] == sha


@pytest.fixture
def remote(tmp_path):
    """A table of 5,000 rows in groups of 500, and a loopback server that answers ranges and counts the bytes sent."""
    columns = {"url": [f"http://h/{i}.jpg" for i in range(5000)], "caption": ["a caption"] * 5000,
               "ballast": [np.random.default_rng(i).bytes(400) for i in range(5000)]}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=500)
    data, sent = (tmp_path / "a.parquet").read_bytes(), []

    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def get(self):
            found = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not self.path.endswith("/a.parquet"):
                return self.answer(404, b"", Content_Length="0")
            first, last = (int(found[1]), int(found[2] or len(data) - 1)) if found else (0, len(data) - 1)
            body = data[first : last + 1]
            self.send_response(206 if found else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(data)}")
            self.end_headers()
            if self.command == "GET":
                sent.append(len(body))
                self.wfile.write(body)

    with served(Handler) as address:
        yield f"http://{address}", len(data), sent


def test_tables_over_http_are_read_by_row_group(remote):
    base, size, sent = remote
    schema, batches = read_part(f"{base}/a.parquet", batch_rows=500)
    assert schema.name == "url and caption"
    assert sum(sent) < size, "only the end of the file so far"
    assert len(next(batches)) == 500
    assert sum(map(len, batches)) == 4500
    with pytest.raises(UserError, match=r"There is no file http://127.0.0.1:\d+/absent.parquet"):
        read_part(f"{base}/absent.parquet")


def test_tables_on_s3(s3):
    """Against a loopback S3: globs are expanded, and each part is read."""
    for name in ("a", "b"):
        with fsspec.open(f"{s3}/tables/{name}.parquet", "wb") as file:
            pq.write_table(pa.table({"URL": [f"http://h/{name}"], "TEXT": ["t"]}), file)
    parts = source_parts([f"{s3}/tables/*.parquet"])
    assert parts == [f"{s3}/tables/a.parquet", f"{s3}/tables/b.parquet"]
    urls = [url for part in parts for batch in read_part(part)[1] for url in batch.column("url").to_pylist()]
    assert urls == ["http://h/a", "http://h/b"]


def test_tables_on_the_hub(remote, monkeypatch):
    """`hf://` through a stand-in of the hub on loopback, which answers as the real one does where a table is read."""
    from huggingface_hub import HfFileSystem

    base, size, _ = remote
    reached = []

    def info(self, path, **more):
        reached.append(path)
        return {"name": path, "size": size, "type": "file"}

    monkeypatch.setattr(HfFileSystem, "info", info)
    monkeypatch.setattr(
        HfFileSystem, "_open", lambda self, path, *more, **others: fsspec.open(f"{base}/a.parquet").open()
    )
    schema, batches = read_part("hf://datasets/somebody/something/a.parquet")
    assert schema.name == "url and caption"
    assert sum(map(len, batches)) == 5000


def test_nan_scores_are_unknown(tmp_path):
    (row,) = rows(
        tmp_path / "a.parquet",
        url=["u"],
        caption=["t"],
        width=[math.nan],
        height=[1.0],
        punsafe=[math.nan],
        pwatermark=[0.1],
    )
    assert (row["punsafe"], row["width"]) == (None, None)


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (["URL", "TEXT", "WIDTH", "HEIGHT", "similarity", "hash", "punsafe", "pwatermark"], "joined"),
        (["URL", "TEXT", "WIDTH", "HEIGHT", "punsafe", "pwatermark", "AESTHETIC_SCORE"], "aesthetic"),
        (["url", "caption", "width", "height", "punsafe", "pwatermark"], "Re-LAION"),
        (["URL", "TEXT", "__index_level_0__"], "URL and TEXT"),
        (["Url", "Caption", "Punsafe", "PWATERMARK"], "Re-LAION"),
        (["url", "text", "original_width"], "URL and TEXT"),
        (["sample_id", "url", "text", "height", "width", "nsfw"], "plain LAION-2B-en, width and height put right"),
    ],
)
def test_known_forms_in_any_letter_case(columns, name):
    assert recognise(columns, "x").name == name


def test_of_columns_in_two_cases_the_published_one_counts(tmp_path):
    (row,) = rows(tmp_path / "a.parquet", url=["no"], URL=["u"], TEXT=["t"], text=["no"], Width=[3], punsafe=[0.1])
    assert (row["url"], row["caption"], row["width"]) == ("u", "t", 3)


def test_sizes_that_nothing_asks_for_refuse_no_table(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"URL": ["u"], "TEXT": ["t"], "WIDTH": [[3]], "HEIGHT": [True]}), path)
    for rule, outcome in (
        (Screening(), nullcontext()),
        (Screening(min_side=2), pytest.raises(UserError, match="WIDTH")),
    ):
        with outcome:
            work = MetadataWork((str(path),), rule, 10, Folder(str(tmp_path / "out")))
            assert work("00000").counts["rows_out"] == 1


def test_other_tables_are_refused_with_both_lists(tmp_path):
    with pytest.raises(UserError, match=r"it has the columns link, text.*expected are URL, TEXT"):
        rows(tmp_path / "a.parquet", link=["u"], text=["t"])


def test_bad_files_are_user_errors(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no table PAR1")
    for name in ("bad.parquet", "absent.parquet"):
        with pytest.raises(UserError, match=name):
            read_part(str(tmp_path / name))
    with pytest.raises(UserError, match="No file matches"):
        source_parts([str(tmp_path / "*.nothing")])
    with pytest.raises(UserError, match="sources"):
        source_parts([])


def test_row_groups_are_streamed(tmp_path):
    pq.write_table(
        pa.table({"url": [str(i) for i in range(100)], "caption": ["t"] * 100}),
        tmp_path / "a.parquet",
        row_group_size=10,
    )
    batches = list(read_part(str(tmp_path / "a.parquet"), batch_rows=7)[1])
    assert max(map(len, batches)) <= 7
    assert [r for b in batches for r in b.column("url").to_pylist()] == [str(i) for i in range(100)]
    assert all(b.column_names == list(TYPES) for b in batches)


def test_real_rows(real_data):
    schema, parts = read_part(str(real_data / "laion/laion_1000.parquet"))
    batches = list(parts)
    assert schema.name == "URL and TEXT"
    assert sum(map(len, batches)) == 1000
    assert batches[0].column("url")[0].as_py().startswith("http")
