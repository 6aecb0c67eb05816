import math
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mav.data.laion import TYPES, read_part, recognise, source_parts
from mav.errors import UserError


def rows(path, **columns):
    pq.write_table(pa.table(columns), path)
    return [row for batch in read_part(str(path)) for row in batch.to_pylist()]


def test_plain_tables_have_width_and_height_swapped(tmp_path):
    (row,) = rows(
        tmp_path / "a.parquet",
        SAMPLE_ID=[1],
        URL=["u"],
        TEXT=["t"],
        HEIGHT=[640],
        WIDTH=[480],
        LICENSE=["?"],
        NSFW=["UNLIKELY"],
        similarity=[0.3],
    )
    assert (row["width"], row["height"]) == (640, 480)
    assert row["punsafe"] is None


def test_plain_tables_say_nsfw_by_tag(tmp_path):
    both = rows(
        tmp_path / "a.parquet",
        SAMPLE_ID=[1, 2, 3],
        URL=["u"] * 3,
        TEXT=["t"] * 3,
        HEIGHT=[1] * 3,
        WIDTH=[1] * 3,
        NSFW=["NSFW", "UNSURE", None],
    )
    assert [row["punsafe"] for row in both] == [1.0, None, None]


def test_joined_tables_are_as_they_say(tmp_path):
    (row,) = rows(tmp_path / "a.parquet", URL=["u"], TEXT=["t"], WIDTH=pa.array([480], pa.int32()), HEIGHT=[640.0], similarity=[0.3],
                  hash=[-5], punsafe=[0.25], pwatermark=pa.array([None], pa.float32()))  # fmt: skip
    assert row == {"url": "u", "caption": "t", "width": 480, "height": 640, "punsafe": 0.25, "pwatermark": None, "hash": -5}


def test_nan_scores_are_unknown(tmp_path):
    (row,) = rows(tmp_path / "a.parquet", url=["u"], caption=["t"], width=[math.nan], height=[1.0], punsafe=[math.nan], pwatermark=[0.1])
    assert (row["punsafe"], row["width"]) == (None, None)


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (["URL", "TEXT", "WIDTH", "HEIGHT", "similarity", "hash", "punsafe", "pwatermark"], "joined"),
        (["URL", "TEXT", "WIDTH", "HEIGHT", "punsafe", "pwatermark", "AESTHETIC_SCORE"], "aesthetic"),
        (["url", "caption", "width", "height", "punsafe", "pwatermark"], "Re-LAION"),
        (["URL", "TEXT", "__index_level_0__"], "URL and TEXT"),
    ],
)
def test_known_forms(columns, name):
    assert recognise(columns, "x").name == name


def test_other_tables_are_refused_with_both_lists(tmp_path):
    with pytest.raises(UserError, match=r"it has the columns link, text.*expected are URL, TEXT"):
        rows(tmp_path / "a.parquet", link=["u"], text=["t"])


def test_bad_files_are_user_errors(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no table PAR1")
    for name in ("bad.parquet", "absent.parquet"):
        with pytest.raises(UserError, match=name):
            list(read_part(str(tmp_path / name)))
    with pytest.raises(UserError, match="No file matches"):
        source_parts([str(tmp_path / "*.nothing")])
    with pytest.raises(UserError, match="sources"):
        source_parts([])


def test_row_groups_are_streamed(tmp_path):
    pq.write_table(pa.table({"url": [str(i) for i in range(100)], "caption": ["t"] * 100}), tmp_path / "a.parquet", row_group_size=10)
    batches = list(read_part(str(tmp_path / "a.parquet"), batch_rows=7))
    assert max(map(len, batches)) <= 7
    assert [r for b in batches for r in b.column("url").to_pylist()] == [str(i) for i in range(100)]
    assert all(b.column_names == list(TYPES) for b in batches)


@pytest.mark.skipif("MAV_REAL_DATA" not in os.environ, reason="needs MAV_REAL_DATA")
def test_real_rows():
    batches = list(read_part(os.path.join(os.environ["MAV_REAL_DATA"], "laion/laion_1000.parquet")))
    assert sum(map(len, batches)) == 1000
    assert batches[0].column("url")[0].as_py().startswith("http")
