"""Every line of a list is a row or a counted failure, whatever its bytes and types are."""

import datetime
import decimal
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mav.data.shards import VIDEO_ROWS, json_bytes, write_rows
from mav.data.videos.clip_list import read_clips, split_lists
from mav.errors import UserError
from mav.storage import Folder

HEADER = "videoid,contentUrl,duration,page_dir,name"
ROWS = 9


def clips(path, rows=4):
    return [clip for part in split_lists([str(path)], rows) for clip in read_clips(part, 0)]


def line(number, caption=b"a calm lake"):
    return f"{number},http://h/{number}.mp4,PT00H00M17S,000_050,".encode() + caption


@pytest.mark.parametrize(
    "caption",
    [b'"calm lake', b'calm "lake', b'"calm" lake', b'calm lake"', b'"', b'5" pipe', b'"two\r\nlines"', b'"a ""word"""',
     b"caf\xe9", b"cut \xe2\x82", b"nul\0", "a\u2028b".encode(), b"\xed\xa0\x80", b"", b"a, b, c", b'"a, b"',
     b"x" * 200_000],
)  # fmt: skip
def test_one_odd_caption_takes_no_other_row_with_it(tmp_path, caption):
    path = tmp_path / "clips.csv"
    path.write_bytes(b"\n".join([HEADER.encode(), *(line(i, caption if i == 3 else b"a lake") for i in range(ROWS))]))
    found = clips(path)
    assert [clip.videoid for clip in found] == [str(i) for i in range(ROWS)]
    assert [clip.url for clip in found] == [f"http://h/{i}.mp4" for i in range(ROWS)]
    assert clips(path, 1) == clips(path, 100)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 4), junk=st.binary(max_size=12).filter(lambda b: not set(b) & set(b"\n\r,")))
def test_bytes_in_any_column_of_one_row(tmp_path_factory, place, junk):
    folder = tmp_path_factory.mktemp("lists")
    fields = line(3).split(b",")
    fields[place] = junk
    lines = [HEADER.encode(), *(b",".join(fields) if i == 3 else line(i) for i in range(ROWS))]
    (folder / "clips.csv").write_bytes(b"\n".join(lines) + b"\n")
    found = clips(folder / "clips.csv")
    others = [clip.videoid for clip in found if clip.url != "" and clip.videoid in map(str, range(ROWS))]
    assert len(found) == ROWS
    assert set(others) >= {str(i) for i in range(ROWS) if i != 3}
    ledger = [{"key": str(i), "videoid": clip.videoid, "status": "ok", "reason": ""} for i, clip in enumerate(found)]
    write_rows(Folder(str(folder)), "ledger.parquet", VIDEO_ROWS, ledger)
    json_bytes({"videoid": [clip.videoid for clip in found], "url": [clip.url for clip in found]})


@pytest.mark.parametrize("odd", [b"7,http://h/7.mp4", b"7", b"7,u,PT1S,d,n,more,and,more", b",,,,", b"???"])
def test_a_row_of_another_width_is_a_row(tmp_path, odd):
    path = tmp_path / "clips.csv"
    path.write_bytes(b"\n".join([HEADER.encode(), line(1), odd, line(2)]))
    assert [clip.videoid for clip in clips(path)][::2] == ["1", "2"]
    assert len(clips(path)) == 3


@pytest.mark.parametrize("ending", [".csv", ".CSV", ".tsv", ".TSV", ".txt"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_delimiters_and_endings(tmp_path, delimiter, ending):
    path = tmp_path / f"clips{ending}"
    lines = [HEADER, *(line(i).decode() for i in range(3))]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(text.replace(",", delimiter) for text in lines).encode())
    assert [(clip.videoid, clip.page_dir) for clip in clips(path)] == [(str(i), "000_050") for i in range(3)]


@pytest.mark.parametrize("size", [9, 5_000])
def test_lines_that_end_in_carriage_returns_alone(tmp_path, size):
    path = tmp_path / "clips.csv"
    path.write_bytes(b"\r".join([HEADER.encode(), *(line(i) for i in range(size))]))
    found = clips(path, 1000)
    assert [clip.videoid for clip in found] == [str(i) for i in range(size)]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.csv", f"{HEADER}\n".encode("utf-16-le"), "no text in UTF-8"),
        ("a.csv.gz", gzip.compress(line(1), mtime=0), "unpack"),
        ("a.csv", b"url,start,url\nu,1,v\n", "several columns of the name url"),
        ("a.csv", b"video_id,url,clip\n1,u,[]\n", "HD-VILA's spans"),
    ],
)  # fmt: skip
def test_other_lists_are_refused_in_one_sentence(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        clips(tmp_path / name)
    assert str(caught.value).isprintable()


def test_two_parquet_columns_of_one_name(tmp_path):
    columns = [pa.array(["http://h/1"]), pa.array(["http://h/2"]), pa.array([1]), pa.array([2])]
    pq.write_table(pa.Table.from_arrays(columns, names=["url", "x", "x", "x"]), tmp_path / "a.parquet")
    assert [clip.url for clip in clips(tmp_path / "a.parquet")] == ["http://h/1"]
    pq.write_table(pa.Table.from_arrays(columns, names=["url", "url", "x", "y"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="several columns of the name url"):
        clips(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("1e1", 10), ("1.", 1), (".5", 0.5), ('"1,5"', 1.5), ('"00:00:01,250"', 1.25), ("5E-05", 5e-5), ("1e999", None),
     ("-1", None), ("one", None), ("\u0661", None)],
)  # fmt: skip
def test_seconds_in_any_form(tmp_path, time, seconds):
    (tmp_path / "a.csv").write_text(f"url,start,end\nhttp://h/1,{time},20\n")
    (found,) = clips(tmp_path / "a.csv")
    assert (found.start, found.problem) == ((0, "bad_span") if seconds is None else (seconds, ""))


def test_utf_16_is_named(tmp_path):
    path = tmp_path / "clips.csv"
    path.write_text(f"{HEADER}\n{line(1).decode()}\n", encoding="utf-16")
    with pytest.raises(UserError, match="UTF-16"):
        clips(path)


def test_a_line_that_is_no_json_is_counted(tmp_path):
    path = tmp_path / "list.JSONL"
    spans = [[{"clip_id": f"v{i}.0.mp4", "span": ["1", "2"]}] for i in range(4)]
    good = [json.dumps({"video_id": f"v{i}", "url": f"http://h/{i}", "clip": clip}) for i, clip in enumerate(spans)]
    bad = [
        b"{cut",
        b"[1]",
        b"\xff\xfe",
        b"{}",
        b'{"video_id": null}',
        b'{"video_id": {"a": 1}}',
        b'{"video_id": "\\ud800", "url": "\\udc80"}',
    ]
    path.write_bytes(b"\n".join([good[0].encode(), *bad, *(text.encode() for text in good[1:])]))
    found = clips(path)
    assert [clip.videoid for clip in found if not clip.problem] == [f"v{i}.0" for i in range(4)]
    assert [clip.problem for clip in found if clip.problem] == ["bad_row"] * 6 + ["no_spans"]
    assert len({clip.videoid for clip in found}) == 11
    json_bytes([clip.videoid + clip.url for clip in found])


NULLS = [None, "", "nan", "NaN", "None", "null", "NaT", "<NA>"]


@pytest.mark.parametrize("null", NULLS)
def test_null_is_null_in_every_column(tmp_path, null):
    row = {"videoid": "1", "url": "http://h/1", "path": "1.mp4", "duration": "17", "start": "1", "end": "2"}
    for column in row:
        pq.write_table(pa.table({name: pa.array([null if name == column else value], pa.string())
                                 for name, value in row.items()}), tmp_path / "a.parquet")  # fmt: skip
        (found,) = clips(tmp_path / "a.parquet")
        assert not found.problem, column
        assert "nan" not in repr(found).lower()
        assert (found.start, found.end) == (0 if column == "start" else 1, 0 if column == "end" else 2)


@pytest.mark.parametrize("null", [*NULLS, float("nan")])
def test_null_spans_of_hd_vila(tmp_path, null):
    entry = {"video_id": 12.0, "url": null, "clip": [{"clip_id": null, "span": [null, "2"]}, {"span": ["1", null]}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(entry))
    found = clips(tmp_path / "a.jsonl")
    assert [(c.videoid, c.start, c.end, c.url) for c in found] == [("12.0", 0, 2, ""), ("12.1", 1, 0, "")]


@pytest.mark.parametrize(
    "ids",
    [pa.array([7, 7]), pa.array([7.0, 7.0]), pa.array(["7", "7.0"]), pa.array(["7", "7"]).dictionary_encode(),
     pa.array([decimal.Decimal("7"), decimal.Decimal("7")]), pa.array(["7", "7"], pa.large_string()),
     pa.array([b"7", b"7"])],
)  # fmt: skip
def test_an_id_names_one_clip_whatever_its_type(tmp_path, ids):
    seconds = pa.array([1.5, 1.5])
    pq.write_table(pa.table({"videoid": ids, "url": ["http://h/7", "http://h/8"], "start": seconds}), tmp_path / "a.pq")
    assert [(clip.videoid, clip.problem) for clip in clips(tmp_path / "a.pq")] == [("7", ""), ("7", "duplicate")]


def test_times_of_odd_types(tmp_path):
    table = pa.table({
        "url": ["u"], "start": pa.array([datetime.timedelta(seconds=1.5)]), "end": pa.array([datetime.time(0, 1, 2)]),
        "duration": pa.array([decimal.Decimal("90.5")]), "tags": [["never", "read"]],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    (found,) = clips(tmp_path / "a.parquet")
    assert (found.start, found.end, found.duration, found.problem) == (1.5, 62, 90.5, "")
    pq.write_table(pa.table({"url": [["u"]]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"the column url is of the type list"):
        clips(tmp_path / "b.parquet")


def test_parquet_text_that_is_not_utf_8(tmp_path):
    urls = pa.array([b"http://h/caf\xe9", b"http://h/2"]).view(pa.string())
    pq.write_table(
        pa.table({"videoid": pa.array([b"\xff", b"2"]).view(pa.string()), "url": urls}), tmp_path / "a.parquet"
    )
    assert [clip.url for clip in clips(tmp_path / "a.parquet")] == ["http://h/caf%E9", "http://h/2"]
