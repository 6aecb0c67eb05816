import json
import os

import pytest

from mav.data.cliplist import read_clips, split_lists
from mav.errors import UserError

TEN_M = "videoid,contentUrl,duration,page_dir,name\n"
TWO_M = "videoid,name,page_idx,page_dir,duration,contentUrl\n"


def clips(path, rows=2, seed=0):
    parts = split_lists([str(path)], rows)
    return [list(read_clips(part, seed)) for part in parts]


def test_both_webvid_forms_in_parts(tmp_path):
    ten, two = tmp_path / "ten.csv", tmp_path / "two.csv"
    ten.write_text(TEN_M + "".join(f"{i},http://h/{i}.mp4,PT00H00M17S,000_050,a cat\n" for i in range(5)))
    two.write_text(TWO_M + "".join(f'{i},"a cat, ""two""\nlines",3,000_050,PT00H00M17S,http://h/{i}.mp4\n' for i in range(5)))
    assert clips(ten) == clips(two)
    assert [[c.videoid for c in part] for part in clips(ten)] == [["0", "1"], ["2", "3"], ["4"]]
    assert (clips(ten)[0][1].url, clips(ten)[0][1].page_dir) == ("http://h/1.mp4", "000_050")


def test_captions_are_left_in_the_list(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(TEN_M + "1,http://h/1.mp4,PT00H00M17S,000_050,a secret caption\n")
    assert "secret" not in repr(clips(path)) + repr(split_lists([str(path)], 10))


def test_repeated_ids_are_marked_across_parts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(TEN_M + "".join(f"{i},u,d,p,n\n" for i in (1, 2, 1, 3, 2, 1)))
    assert [c.repeated for part in clips(path) for c in part] == [False, False, True, False, True, True]


def test_byte_order_mark_crlf_and_blank_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf" + TEN_M.replace("\n", "\r\n").encode() + "7,ü,d,p,n\r\n\r\n8,u,d,p,n\r\n".encode())
    assert [(c.videoid, c.url) for part in clips(path, rows=1) for c in part] == [("7", "ü"), ("8", "u")]


def test_hd_vila_takes_three_spans_of_each_video_by_seed(tmp_path):
    path = tmp_path / "a.jsonl"
    videos = [
        {"video_id": f"v{v}", "url": f"http://h/{v}", "clip": [
            {"clip_id": f"v{v}.{c}.mp4", "span": [f"00:00:{c:02d}.500", f"00:01:{c:02d}.000"]} for c in range(10)]}
        for v in range(3)
    ] + [{"video_id": "bare", "url": "u", "clip": []}]  # fmt: skip
    path.write_text("\n".join(json.dumps(v) for v in videos))
    parts = clips(path)
    assert [len(part) for part in parts] == [6, 3]
    first = parts[0][0]
    assert first.videoid.startswith("v0.")
    assert first.end - first.start == 59.5
    assert clips(path) == parts
    assert clips(path, rows=1, seed=0)[1] == parts[0][3:]
    assert clips(path, seed=1) != parts


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.csv", "", "is empty"),
        ("header.csv", TEN_M, "lists no clips"),
        ("other.csv", "id,link\n1,2\n", r"columns id, link.*expected are videoid"),
        ("empty.jsonl", "\n", "lists no clips"),
        ("bad.jsonl", "{}\n", "HD-VILA"),
        ("worse.jsonl", "no json\n", "HD-VILA"),
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


@pytest.mark.skipif("MAV_REAL_DATA" not in os.environ, reason="needs MAV_REAL_DATA")
def test_real_webvid_header():
    path = os.path.join(os.environ["MAV_REAL_DATA"], "webvid/webvid_2m_sample.csv")
    found = [clip for part in clips(path, rows=7) for clip in part]
    assert len(found) >= 5
    assert all(c.videoid.isdigit() and c.url.startswith("https://") and "_" in c.page_dir for c in found)
