"""The report over a whole made-up run: complete, self-contained, and clear about what is missing."""

import base64
import dataclasses
import io
import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up_run import RECIPE, make_run
from PIL import Image

from mav.data.videos.video_io import encode_mp4
from mav.report.collect import clips
from mav.report.page import StageView, write_report
from mav.storage import Artifact, Folder


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs"))


VOID = {"meta", "link", "img", "br", "input", "hr"}


class Reader(HTMLParser):
    """Collects tags, their attributes and the text; notices tags that do not nest."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text, self.wrong = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def read(views, tmp_path):
    summary = write_report(RECIPE, views, Folder(str(tmp_path)))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert summary["bytes"] == len(page.encode())
    return page, Reader(page), summary


def test_one_file_with_everything_in_it(views, tmp_path):
    page, reader, summary = read(views, tmp_path)
    assert not reader.wrong
    assert not reader.open
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]
    assert len(page) < 8_000_000
    for tag, attributes in reader.tags:
        for address in (attributes.get("src"), attributes.get("href")):
            assert (address or "#").startswith(("data:", "#")), (tag, address[:60])
    assert not re.search(r"url\((?!['\"]?data:)|@import|https?://", page)
    assert summary["videos"] == 6


def named(views, name):
    return next(view.artifact for view in views if view.name == name)


def test_every_part_is_there(views, tmp_path):
    page, reader, _ = read(views, tmp_path)
    text = " ".join(" ".join(reader.text).split())
    for view in views:
        assert view.name in text
        assert view.fingerprint[:12] in text
    for words in ("96 %", "1.24 times", "chance 17 %", "367.23", "ucf101-paper", "ucf101-demo v2", "msrvtt-demo v2",
                  "0.3049", "0.437",
                  "do not compare", "not comparable with published numbers", "22 http 404", "98 nsfw", "1 240",
                  "Toxic words and phrases found: 2", "first 50",
                  "A blind study is frozen",
                  "What the metrics of ucf101-demo see: all see strobing", "from 0.4",
                  "There is no validity card of interpolation-demo: No metric can be judged with <2> clips.",
                  "torch 2.13.0", "a photo of a"):  # fmt: skip
        assert words in text, words
    videos = [a for tag, a in reader.tags if tag == "video"]
    assert len(videos) == 12 + 8
    assert text.count("24 fps · 0.5 s") == 1
    assert text.count("24 fps on average · 0.5 s") == 7
    assert page.count('class="rate"') + page.count('class="rate held"') == 600
    assert "of the rates drawn need longer clips" in text
    assert all({"muted", "loop", "playsinline"} <= set(a) for a in videos)
    decoded = base64.b64decode(videos[0]["src"].partition(",")[2])
    assert decoded == named(views, "generate").folder.read_bytes("videos/00000.mp4")
    assert page.count('class="no"') == 2  # two of six shapes wrong
    assert page.count("<polyline") == 2 * 8 + 1  # seven networks and CLIP, and the one noise level of a held-out loss
    assert page.count('class="ridge"') == 5
    assert page.count('class="held-out"') == 4
    assert text.count("(dots)") == 1
    assert page.count('class="column under"') == page.count('class="column over"') == 2 * 10
    assert page.count("<title>72 rows, no score") == 2
    assert [page.count(f'alt="clips: {reason}"') for reason in ("kept", "cut", "still", "blank")] == [1, 1, 1, 0]
    for reason in ("cut", "near duplicate, of pictures"):
        assert f"{reason} 4 3 3 1.000 0.750 0.857" in text
    assert all(a.get("alt") is not None for tag, a in reader.tags if tag == "img")


def test_whoever_cannot_see_or_point_is_told_what_is_there(views, tmp_path):
    """Headings leave out no level, and what can be reached with the keyboard has a name."""
    page, reader, _ = read(views, tmp_path)
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels)), levels
    scrolled = [a for _, a in reader.tags if a.get("tabindex") == "0"]
    assert scrolled
    assert all(a["role"] == "region" and a["aria-label"] for a in scrolled)
    assert len({a["aria-label"] for a in scrolled}) == len(scrolled)
    assert all(a.get("aria-label") for tag, a in reader.tags if tag in ("video", "input", "nav"))
    assert {a.get("id") for tag, a in reader.tags if tag == "button" and a.get("aria-label")} == {"play", "theme"}
    assert re.search(r"\d %", page) is None, "no line ends between a number and its sign"
    assert "1 clips" not in page.replace("\u202f", " ")


def test_a_page_without_an_oracle_tells_of_no_marks(views, tmp_path):
    rest = [dataclasses.replace(view, artifact=None) if view.name == "oracle" else view for view in views]
    page, _, _ = read(rest, tmp_path)
    assert "Each prompt once" in page
    assert "The mark says" not in page
    blank = dataclasses.replace(RECIPE, about="", name="mine")
    write_report(blank, rest, Folder(str(tmp_path)))
    assert "What mine has made of its data so far." in (tmp_path / "index.html").read_text()


def test_what_was_asked_of_two_objects_is_shown(views, tmp_path):
    generate, oracle = (named(views, name) for name in ("generate", "oracle"))
    rows = generate.folder.read_json("videos.json")
    second = {"second": {"colour": "cyan", "shape": "square"}}
    copy = Folder(str(tmp_path))
    copy.write_json("videos.json", [row | second for row in rows])
    for row in rows:
        for name in (row["file"], row["twin"]):
            copy.write_bytes(name, generate.folder.read_bytes(name))
    shown, _ = clips(dataclasses.replace(generate, folder=copy), oracle)
    assert shown[0]["truth"] == {"colour": f"{rows[0]['colour']} and cyan", "shape": f"{rows[0]['shape']} and square"}


def test_the_picture_that_screening_dropped_is_not_shown(views, tmp_path):
    page, _, _ = read(views, tmp_path)
    assert 10 <= page.count("data:image/jpeg") - page.count('alt="clips: ') <= 19


def test_equal_runs_make_equal_pages(views, tmp_path):
    read(views, tmp_path / "a")
    read(views, tmp_path / "b")
    assert (tmp_path / "a/index.html").read_bytes() == (tmp_path / "b/index.html").read_bytes()


def test_what_a_network_made_while_it_learned_has_a_slider(views, tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (4, 2)).save(picture, "PNG")
    board = Folder(str(tmp_path / "board"))
    for samples in (100, 1200):
        board.write_bytes(f"samples/{samples:012d}.png", picture.getvalue())
    page, reader, _ = read(
        [dataclasses.replace(v, board=board) if v.name == "train-decoder" else v for v in views], tmp_path
    )
    assert not reader.wrong
    assert page.count('<div class="slides">') == 1
    assert page.count("data-samples=") == 2
    assert '<input type="range" min="0" max="1" value="1"' in page


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({}, ""),
        ({"shots": {"found": 1400, "kept": 1250, "short": 150}},
         "Shots of the kept clips: 1\u202f400 found, 1\u202f250 kept, 150 too short."),
        ({"cropped": 0}, "Clips cropped to the picture within their borders: 0."),
        ({"shots": {"found": 7, "kept": 5, "short": 2}, "cropped": 3},
         "Shots of the kept clips: 7 found, 5 kept, 2 too short. "
         "Clips cropped to the picture within their borders: 3."),
    ],
)  # fmt: skip
def test_shots_and_crops_are_told_where_clips_are_split_or_cropped(views, tmp_path, counts, sentence):
    selection = named(views, "video-select")
    manifest = dataclasses.replace(selection.manifest, counts=selection.manifest.counts | counts)
    changed = dataclasses.replace(selection, manifest=manifest)
    views = [dataclasses.replace(v, artifact=changed) if v.name == "video-select" else v for v in views]
    _, reader, _ = read(views, tmp_path)
    told = [words.strip() for words in reader.text if re.search("too short|cropped", words)]
    assert told == [sentence] * bool(sentence)
    assert not reader.wrong


@pytest.mark.parametrize(
    ("end", "words"),
    [((1.5, 4.0), "little motion first"), ((6.0, 1.0), "much motion first"), ((4.0, 1.5), "the same throughout")],
)
def test_how_the_frame_rates_change_over_a_training_is_told_as_the_recipe_has_it(views, tmp_path, end, words):
    video = RECIPE.train_decoder_video
    video = dataclasses.replace(video, fps=dataclasses.replace(video.fps, start=(4.0, 1.5), end=end))
    write_report(dataclasses.replace(RECIPE, train_decoder_video=video), views, Folder(str(tmp_path)))
    assert f"from the first sample to the last: {words}<" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_a_run_that_has_only_begun_has_a_page_too(views, tmp_path):
    begun = [StageView(v.name, v.fingerprint, v.inputs, None, "missing", 0.0) for v in views]
    begun[0] = views[0]
    page, reader, summary = read(begun, tmp_path)
    assert not reader.wrong
    assert summary["videos"] == 0
    assert f"1 of {len(views)}" in re.sub(r"<[^>]+>", "", page)
    assert read([], tmp_path / "none")[1].wrong == []


def generated(tmp_path, rows, video):
    """The stage `generate` alone, all of its videos this one."""
    folder = Folder(str(tmp_path / "generate"))
    for row in rows:
        folder.write_bytes(row["file"], video)
    folder.write_json("videos.json", rows)
    manifest = {"stage": "generate", "version": 1, "fingerprint": "ff", "recipe": "x", "config": {}, "inputs": {}}
    return StageView("generate", "ff", [], Artifact.publish(folder, **manifest), "done", 1.0)


def test_a_verdict_on_digits_has_no_colour_and_the_reader_s_own_error(views, tmp_path):
    made, oracle = (next(v for v in views if v.name == name) for name in ("generate", "oracle"))
    (row, *_), verdict = made.artifact.folder.read_json("videos.json"), oracle.artifact.folder.read_json("result.json")
    rows = [row | {"prompt": "the digit seven", "colour": None, "shape": "seven", "twin": None}]
    verdict |= {"colour": None, "chance_colour": None, "chance_shape": 0.1, "reader_error": 0.0219}
    verdict["intervals"]["colour"] = None
    verdict["videos"] = [{"file": row["file"], "colour": None, "shape": True, "frames_without_object": 0}]
    copy = Folder(str(tmp_path / "oracle"))
    copy.write_json("result.json", verdict)
    judged = dataclasses.replace(oracle, artifact=dataclasses.replace(oracle.artifact, folder=copy))
    video = made.artifact.folder.read_bytes(row["file"])
    _, reader, _ = read([generated(tmp_path, rows, video), judged], tmp_path / "page")
    text = " ".join("".join(reader.text).split())
    assert not reader.wrong
    assert "Asked for a digit, the videos show it 67 % of the time (guessing would give 10 %)" in text
    assert "wrong about 2.2 % of frames" in text
    assert "✓ seven" in text
    assert "Digit right" in text
    assert "brightness of the object" in text
    assert "None" not in text
    assert "olour" not in text.replace("colours", "")


def test_what_people_wrote_is_escaped(views, tmp_path):
    generate = named(views, "generate")
    row = generate.folder.read_json("videos.json")[0] | {"prompt": "<script>alert(1)</script>", "twin": None}
    page, _, _ = read([generated(tmp_path, [row], generate.folder.read_bytes(row["file"]))], tmp_path / "out")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_page_stays_light_whatever_the_videos_weigh(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 320, 320, 3), dtype=np.uint8)
    rows = [{"prompt": f"noise {i}", "file": f"videos/{i:05d}.mp4", "twin": None, "seed": i} for i in range(12)]
    page, _, seen = read([generated(tmp_path, rows, encode_mp4(noise, 8, crf=4))], tmp_path / "out")
    assert len(page) < 8_000_000
    assert 0 < seen["videos"] < 12
    assert f"The first {seen['videos']} of 12" in " ".join(page.split())
