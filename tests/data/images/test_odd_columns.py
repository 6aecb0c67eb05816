"""LAION-like tables whose cells and columns are odd: every row comes through, or the column is named with its type."""

import datetime
import decimal
import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.screen import MetadataWork, Screen
from mav.data.images.laion import read_part
from mav.data.videos.clip_list import read_clips, split_lists
from mav.errors import UserError
from mav.recipes import Screening
from mav.storage import Folder

ROWS = 4
SCORES = [0.01, 0.02, 0.9, 0.03]
PLAIN = {
    "URL": [f"http://example.invalid/{i}.jpg" for i in range(ROWS)], "TEXT": [f"a picture {i}" for i in range(ROWS)],
    "WIDTH": [640] * ROWS, "HEIGHT": [480] * ROWS, "punsafe": SCORES, "pwatermark": [0.01] * ROWS,
    "hash": list(range(ROWS)), "md5": ["0123456789abcdef" * 2] * ROWS,
}  # fmt: skip


def screened(path, **columns):
    pq.write_table(pa.table(PLAIN | columns), path)
    screen = Screen(Screening())
    kept = [screen(batch)[0] for batch in read_part(str(path))[1]]
    assert screen.rows_in == ROWS
    return pa.concat_tables(kept)


READ = {
    "large text": {"TEXT": pa.array(PLAIN["TEXT"], pa.large_string())},
    "text as views": {"TEXT": pa.array(PLAIN["TEXT"], pa.string_view())},
    "text as categories": {"TEXT": pa.array(PLAIN["TEXT"]).dictionary_encode()},
    "text as bytes": {"TEXT": [text.encode() for text in PLAIN["TEXT"]]},
    "numbers as captions": {"TEXT": [1, 2, 3, 4]},
    "days as captions": {"TEXT": [datetime.date(2020, 1, i + 1) for i in range(ROWS)]},
    "times as captions": {"TEXT": [datetime.datetime(2020, 1, i + 1) for i in range(ROWS)]},
    "scores as text": {"punsafe": ["0.01", " 0.02 ", "9e-1", "0.03"]},
    "scores as decimals": {"punsafe": [decimal.Decimal(str(score)) for score in SCORES]},
    "scores as categories": {"punsafe": pa.array([str(score) for score in SCORES]).dictionary_encode()},
    "scores as halves": {"punsafe": pa.array(np.array(SCORES, np.float16))},
    "sizes as floats": {"WIDTH": [640.0] * ROWS},
    "sizes as floats in text": {"WIDTH": ["640.0"] * ROWS},
    "sizes as decimals": {"HEIGHT": [decimal.Decimal("480")] * ROWS},
    "sizes as halves": {"WIDTH": pa.array(np.full(ROWS, 640, np.float16))},
    "sizes as large numbers": {"WIDTH": pa.array([640] * ROWS, pa.uint64())},
    "sizes beyond a number": {"WIDTH": [2**40] * ROWS},
    "sizes beyond a large number": {"WIDTH": pa.array([2**63] * ROWS, pa.uint64())},
    "hash as lists": {"hash": [[1]] * ROWS},
    "hash as a struct": {"hash": [{"a": 1}] * ROWS},
    "hash as floats": {"hash": [1.0, float("nan"), 2.0, 3.0]},
    "hash as large numbers": {"hash": pa.array([2**63 + i for i in range(ROWS)], pa.uint64())},
    "hash as categories": {"hash": pa.array(["x"] * ROWS).dictionary_encode()},
    "md5 as categories": {"md5": pa.array(PLAIN["md5"]).dictionary_encode()},
    "md5 as numbers": {"md5": [1] * ROWS},
    "a column of nulls": {"WIDTH": pa.nulls(ROWS), "hash": pa.nulls(ROWS)},
    "others": {"exif": [{"a": [1]}] * ROWS, "when": [datetime.datetime(2020, 1, 1)] * ROWS},
}


@pytest.mark.parametrize("name", READ)
def test_columns_of_other_types_are_read(tmp_path, name):
    kept = screened(tmp_path / "a.parquet", **READ[name])
    assert kept["url"].to_pylist() == [url for i, url in enumerate(PLAIN["URL"]) if i != 2]
    if "sizes" in name:
        assert set(kept["width"].to_pylist()) == ({None} if "beyond" in name else {640})


@pytest.mark.parametrize("column", ["URL", "TEXT", "punsafe"])
@pytest.mark.parametrize(
    "values", [[["a"]] * ROWS, [{"en": "a"}] * ROWS, [datetime.timedelta(1)] * ROWS], ids=["list", "struct", "duration"]
)
def test_columns_that_cannot_be_read_are_named_with_their_type(tmp_path, column, values):
    kind = str(pa.array(values).type).partition("<")[0]
    with pytest.raises(UserError) as caught:
        screened(tmp_path / "a.parquet", **{column: values})
    assert column in str(caught.value)
    assert kind in str(caught.value)
    assert "bring the file again" not in str(caught.value)


def test_two_columns_of_one_name(tmp_path):
    columns = [pa.array(["u"]), pa.array(["t"]), pa.array(["t"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["URL", "TEXT", "TEXT"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="several columns of the name TEXT"):
        read_part(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("null", ["", "nan", "NaN", "None", "null", "NaT", "n/a", "unknown", "inf", None])
def test_a_score_that_is_none_is_unknown(tmp_path, null):
    kept = screened(tmp_path / "a.parquet", punsafe=[null, "0.01", "0.9", "0.03"], WIDTH=[null, "1", "2", "3"])
    assert kept["punsafe"].to_pylist()[0] is None
    assert kept["width"].to_pylist() == [None, 1, 3]


def test_a_negative_score_is_unknown_and_a_decimal_comma_a_point(tmp_path):
    kept = screened(tmp_path / "a.parquet", punsafe=[-1.0, -0.5, 0.9, 0.0], pwatermark=["0,01", "0,25", "0.3", "-1"])
    assert kept["punsafe"].to_pylist() == [None, None, 0.0]
    assert kept["pwatermark"].to_pylist() == [pytest.approx(0.01), 0.25, None]


def test_an_address_between_blanks_is_the_address(tmp_path):
    url = PLAIN["URL"][0]
    kept = screened(tmp_path / "a.parquet", URL=[f" {url}", f"{url}\n", url, " \t"], TEXT=["same"] * ROWS)
    assert kept["url"].to_pylist() == [url]


WRITE_PARQUET = ": write the table as parquet, as pandas does with `read_csv(...).to_parquet(...)`."
TABLE = "URL,TEXT\nhttp://h/1,a lake\n"


@pytest.mark.parametrize(
    ("name", "data", "remedy"),
    [
        ("a.csv", TABLE.encode(), WRITE_PARQUET),
        ("a.parquet", TABLE.encode(), WRITE_PARQUET),
        ("a.parquet", gzip.compress(TABLE.encode(), mtime=0), ": unpack it."),
        ("a.parquet", b"PAR1" + bytes(99), ": bring the file again."),
        ("a.parquet", b"", ": bring the file again."),
    ],
)
def test_what_is_no_parquet_is_told_with_what_to_do(tmp_path, name, data, remedy):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_part(str(tmp_path / name))
    assert str(caught.value).endswith(remedy)


def test_a_folder_of_tables_is_told_with_its_glob(tmp_path):
    with pytest.raises(UserError, match=r"it is a folder, whose tables are .*/\*\.parquet\.$"):
        read_part(f"{tmp_path}/")


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(column=st.sampled_from(["URL", "TEXT", "md5", "punsafe", "NSFW"]), junk=st.binary(max_size=16))
def test_bytes_in_any_text_column_of_one_row(tmp_path_factory, column, junk):
    """The stage's own work: what it writes is valid, and the other rows are kept."""
    folder = tmp_path_factory.mktemp("tables")
    cells = [str(value).encode() for value in PLAIN.get(column, ["UNLIKELY"] * ROWS)]
    cells[1] = junk
    plain = {name: values for name, values in PLAIN.items() if name != "hash"}
    if column == "NSFW":
        plain = {"SAMPLE_ID": list(range(ROWS)), "URL": PLAIN["URL"], "TEXT": PLAIN["TEXT"]}
    pq.write_table(pa.table(plain | {column: pa.array(cells).view(pa.string())}), folder / "part.parquet")
    work = MetadataWork((str(folder / "part.parquet"),), Screening(), 10, Folder(str(folder / "out")))
    counts = work("00000").counts
    assert counts["rows_in"] == ROWS == counts["rows_out"] + sum(counts["dropped"].values())
    tables = [pq.read_table(path) for path in (folder / "out").rglob("*.parquet")]
    for table in tables:
        table.validate(full=True)
    urls = [url for table in tables for url in table["url"].to_pylist()]
    assert {PLAIN["URL"][i] for i in (0, 2, 3)} <= set(urls)


def test_categories_that_are_not_utf_8(tmp_path):
    words = pa.array([b"caf\xe9", b"plain"]).view(pa.string())
    captions = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1, 0], pa.int16()), words)
    kept = screened(tmp_path / "a.parquet", TEXT=captions, punsafe=[0.1] * ROWS)
    assert kept["caption"].to_pylist() == ["caf\ufffd", "plain", "plain", "caf\ufffd"]
    pq.write_table(pa.table({"url": captions}), tmp_path / "clips.parquet")
    urls = [clip.url for part in split_lists([str(tmp_path / "clips.parquet")], 9) for clip in read_clips(part, 0)]
    assert urls == ["caf%E9", "plain", "plain", "caf%E9"]


def test_addresses_keep_their_bytes(tmp_path):
    urls = pa.array([b"http://h/caf\xe9.jpg", "http://h/größe".encode(), b"http://h/\xe2\x82", b"x"]).view(pa.string())
    kept = screened(tmp_path / "a.parquet", URL=urls)
    assert kept["url"].to_pylist() == ["http://h/caf%E9.jpg", "http://h/größe", "x"]
