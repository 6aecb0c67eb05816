import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mav.data.videos.clip_list import ListedClip, read_clips, split_lists
from mav.errors import UserError

TEN_M = "videoid,contentUrl,duration,page_dir,name\n"
TWO_M = "videoid,name,page_idx,page_dir,duration,contentUrl\n"


def clips(path, rows=2, seed=0):
    parts = split_lists([str(path)], rows)
    return [list(read_clips(part, seed)) for part in parts]


def test_both_webvid_forms_in_parts(tmp_path):
    ten, two = tmp_path / "ten.csv", tmp_path / "two.csv"
    ten.write_text(TEN_M + "".join(f"{i},http://h/{i}.mp4,PT00H00M17S,000_050,a cat\n" for i in range(5)))
    two.write_text(
        TWO_M + "".join(f'{i},"a cat, ""two""\nlines",3,000_050,PT00H00M17S,http://h/{i}.mp4\n' for i in range(5))
    )
    assert clips(ten) == clips(two)
    assert [[c.videoid for c in part] for part in clips(ten)] == [["0", "1"], ["2", "3"], ["4"]]
    assert (clips(ten)[0][1].url, clips(ten)[0][1].page_dir) == ("http://h/1.mp4", "000_050")


def test_what_a_row_says(tmp_path):
    path = tmp_path / "ten.csv"
    path.write_text(TEN_M + "7,http://h/7.mp4,PT01H02M17S,000_050,a cat\n8,http://h/8.mp4,soon,000_050,a cat\n")
    (one, two), *_ = clips(path)
    assert one == ListedClip("7", "http://h/7.mp4", "000_050", duration=3737.0)
    assert two.duration == 0


def test_any_table_with_a_path_or_an_address(tmp_path):
    table, sheet = tmp_path / "a.parquet", tmp_path / "a.csv"
    entries = [
        {"Path": "one.mkv", "start": 1.5, "end": 2.5, "caption": "secret"},
        {"Path": "one.mkv", "start": 2.5, "end": None, "caption": "secret"},
        {"Path": "one.mkv", "start": 1.5, "end": 2.5, "caption": "secret"},
        {"Path": "two.mkv", "start": 3.0, "end": 1.0, "caption": "secret"},
        {"Path": "two.mkv", "start": None, "end": None, "caption": "secret"},
    ]
    pq.write_table(pa.Table.from_pylist(entries), table, row_group_size=2)
    names = ",".join(entries[0])
    sheet.write_text("\n".join([names, *(",".join("" if v is None else str(v) for v in e.values()) for e in entries)]))
    for path in (table, sheet):
        found = [clip for part in clips(path) for clip in part]
        assert [(c.path, c.start, c.end, c.problem) for c in found] == [
            ("one.mkv", 1.5, 2.5, ""),
            ("one.mkv", 2.5, 0.0, ""),
            ("one.mkv", 1.5, 2.5, "duplicate"),
            ("two.mkv", 0.0, 0.0, "bad_span"),
            ("two.mkv", 0.0, 0.0, ""),
        ]
        assert len({c.videoid for c in found}) == 4
        assert not any("one" in c.videoid or "secret" in repr(c) for c in found)
    assert clips(table, rows=3) == [[c for part in clips(table, rows=1) for c in part][i : i + 3] for i in (0, 3)]


def test_globs_name_lists_and_ids_repeat_across_them(tmp_path):
    for name, ids in (("b", (3, 1)), ("a", (1, 2))):
        (tmp_path / f"{name}.csv").write_text(TEN_M + "".join(f"{i},u,d,p,n\n" for i in ids))
    parts = split_lists([str(tmp_path / "*.csv")], 10)
    found = [clip for part in parts for clip in read_clips(part, 0)]
    assert [(c.videoid, c.problem) for c in found] == [("1", ""), ("2", ""), ("3", ""), ("1", "duplicate")]
    with pytest.raises(UserError, match="No file matches"):
        split_lists([str(tmp_path / "*.parquet")], 10)


@pytest.mark.slow
def test_the_pass_keeps_little_in_memory(tmp_path):
    path = tmp_path / "many.csv"
    with open(path, "w") as file:
        file.write(TEN_M)
        file.writelines(f"{i % 9_990},http://h/{i}.mp4,PT00H00M17S,p,{'n' * 800}\n" for i in range(10_000))
    tracemalloc.start()
    parts = split_lists([str(path)], 500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(parts) == 20
    assert sum(len(part.repeated) for part in parts) == 10
    assert peak < 6e6 < path.stat().st_size


def test_repeated_ids_are_marked_across_parts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(TEN_M + "".join(f"{i},u,d,p,n\n" for i in (1, 2, 1, 3, 2, 1)))
    assert [bool(c.problem) for part in clips(path) for c in part] == [False, False, True, False, True, True]


def test_lines_that_share_out_a_video_of_hd_vila_are_no_duplicates(tmp_path):
    def line(*spans):
        return json.dumps(
            {"video_id": "v", "url": "u", "clip": [{"clip_id": f"v.{s}", "span": [s, s + 2]} for s in spans]}
        )

    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([line(0, 4), line(8), line(0, 4).replace(": ", ":"), line(8, 12)]))
    found = [clip for part in clips(path, rows=6) for clip in part]
    assert [(c.start, c.problem) for c in found] == [
        (0, ""), (4, ""), (8, ""), (0, "duplicate"), (4, "duplicate"), (8, ""), (12, ""),
    ]  # fmt: skip


def test_byte_order_mark_crlf_and_blank_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf" + TEN_M.replace("\n", "\r\n").encode() + "7,ü,d,p,n\r\n\r\n8,u,d,p,n\r\n".encode())
    assert [(c.videoid, c.url) for part in clips(path, rows=1) for c in part] == [("7", "ü"), ("8", "u")]


def test_jsonl_of_paths_or_addresses_has_the_columns_of_its_first_line(tmp_path):
    path = tmp_path / "own.jsonl"
    lines = [
        {"Path": "a b.mp4", "caption": "secret"},
        {"Path": "c.mp4", "start": 3},
        {"path": "other case"},
        "no object",
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = clips(path)
    assert [clip.path for clip in (*first, *second)] == ["a b.mp4", "c.mp4", "", ""]
    assert first[1].start == 0, "the first line has no start"

    path.write_text(
        "".join(json.dumps({"video_id": "v", "url": "http://h/v", "start": n, "end": n + 1}) + "\n" for n in (0, 4))
    )
    ((one, two),) = clips(path)
    assert (one.url, one.start, one.end, two.start) == ("http://h/v", 0.0, 1.0, 4.0), "rows of spans are no HD-VILA"


def test_hd_vila_takes_three_spans_of_each_video_by_seed(tmp_path):
    path = tmp_path / "a.jsonl"
    videos = [
        {"video_id": f"v{v}", "url": f"http://h/{v}", "clip": [
            {"clip_id": f"v{v}.{c}.mp4", "span": [f"00:00:{c:02d}.500", f"00:01:{c:02d}.000"]} for c in range(10)]}
        for v in range(3)
    ] + [{"video_id": "bare", "url": "u", "clip": []}]  # fmt: skip
    path.write_text("\n".join(json.dumps(v) for v in videos))
    parts = clips(path, rows=6)
    assert [len(part) for part in parts] == [6, 4]
    assert parts[1][3] == ListedClip("bare", "u", problem="no_spans")
    first = parts[0][0]
    assert first.videoid.startswith("v0.")
    assert first.end - first.start == 59.5
    assert clips(path, rows=6) == parts
    assert clips(path, rows=1, seed=0)[1] == parts[0][3:]
    assert clips(path, rows=6, seed=1) != parts


def test_spans_that_are_none_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    spans = [["00:00:01.000", "soon"], ["00:00:05.000", "00:00:04.000"], ["1", "2.5"]]
    path.write_text(
        json.dumps(
            {"video_id": "v", "url": "u", "clip": [{"clip_id": f"v.{i}.mp4", "span": s} for i, s in enumerate(spans)]}
        )
    )
    assert [(c.videoid, c.start, c.end, c.problem) for c in clips(path)[0]] == [
        ("v.0", 0, 0, "bad_span"),
        ("v.1", 0, 0, "bad_span"),
        ("v.2", 1, 2.5, ""),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.csv", "", "is empty"),
        ("header.csv", TEN_M, "lists no clips"),
        ("other.csv", "id,link\n1,2\n", "columns id, link.*expected are WebVid"),
        ("empty.jsonl", "\n", "lists no clips"),
        ("bad.jsonl", "{}\n", "HD-VILA"),
        ("worse.jsonl", "no json\n", "cannot be read"),
        ("list.jsonl", "[1]\n", "no list of clips"),
        ("no.parquet", "PAR", "cannot be read"),
    ],
)
def test_bad_lists_are_user_errors(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        clips(tmp_path / name)


def test_absent_and_binary_lists(tmp_path):
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.csv", tmp_path / "b.csv"):
        with pytest.raises(UserError, match=path.name):
            clips(path)
    with pytest.raises(UserError, match="sources"):
        split_lists([], 5)


def test_real_webvid_header(real_data):
    found = [clip for part in clips(real_data / "webvid/webvid_2m_sample.csv", rows=7) for clip in part]
    assert len(found) >= 5
    assert all(c.videoid.isdigit() and c.url.startswith("https://") and "_" in c.page_dir for c in found)
