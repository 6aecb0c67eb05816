"""How often metrics rank pairs as people do: known answers, and FETV's published ratings."""

import csv
import io
import json

import numpy as np
import pytest
from small_videos import frames, save
from test_suite import weights

from mav.errors import UserError
from mav.evaluation.intervals import clustered_share, wilson
from mav.evaluation.suite.agreement import agreement, between_systems, one_rater, ranking
from mav.evaluation.suite.ratings import COLUMNS, Pair, Ratings, read_ratings
from mav.evaluation.suite.run import run_suite
from mav.report.suite import suite_page
from mav.storage import Folder

SYSTEMS = ("a", "b", "c")


def made_up(prompts=120, seed=0):
    """Pairs of three systems' videos, of which three raters see the quality with noise of their own."""
    rng = np.random.default_rng(seed)
    quality = {f"{s}/{p}": rng.normal() for s in SYSTEMS for p in range(prompts)}
    seen = {(r, file): value + 0.5 * rng.normal() for r in "xyz" for file, value in quality.items()}
    pairs = [
        Pair("q", str(p), (f"{s}/{p}", f"{t}/{p}"), (s, t),
             {r: int(np.sign(seen[r, f"{s}/{p}"] - seen[r, f"{t}/{p}"])) for r in "xyz"})
        for p in range(prompts) for s, t in (("a", "b"), ("a", "c"), ("b", "c"))
    ]  # fmt: skip
    return pairs, quality, rng


def test_metrics_that_follow_oppose_or_toss_a_coin_are_told_apart():
    pairs, quality, rng = made_up()
    ratings = Ratings("made up", tuple(pairs), {}, 0)
    each = {
        "aesthetic_quality": quality,
        "strobing": quality,  # lower is better, so that these numbers oppose the raters
        "motion_smoothness": {file: rng.normal() for file in quality},
        "dynamic_degree": dict.fromkeys(quality, 1.0),
    }
    told = agreement(ratings, each, {"fvd": {"a": 3.0, "b": 2.0, "c": 1.0}})
    rows = {row["metric"]: row for row in told["rows"]}
    assert [rows[name]["verdict"] for name in each] == ["follows", "opposes", "chance", "chance"]
    follows, opposes = rows["aesthetic_quality"], rows["strobing"]
    assert follows["value"] == pytest.approx(1 - opposes["value"])
    assert follows["low"] > 0.8
    assert rows["motion_smoothness"]["low"] < 0.5 < rows["motion_smoothness"]["high"]
    assert (rows["dynamic_degree"]["value"], rows["dynamic_degree"]["metric_even"]) == (0.5, 360)
    assert rows["fvd"]["of"] == "systems"
    assert rows["fvd"]["pairs"] == 3
    assert 0.7 < told["one_rater"]["q"]["value"] < follows["value"]


def test_ties_and_videos_without_a_number_are_counted_and_left_out():
    votes = ({"x": 1, "y": 1}, {"x": 1, "y": -1}, {"x": 0, "y": -1}, {"x": 1})
    pairs = [Pair("q", str(i), (f"a/{i}", f"b/{i}"), ("a", "b"), told) for i, told in enumerate(votes)]
    values = {"a/0": 2.0, "b/0": 1.0, "a/1": 1.0, "b/1": 2.0, "a/2": 1.0, "b/2": 1.0 + 1e-12, "a/3": np.nan, "b/3": 1.0}
    found = ranking(pairs, values, lower=False)
    assert (found["value"], found["pairs"], found["prompts"]) == (0.75, 2, 2)
    assert (found["raters_even"], found["metric_even"], found["unmeasured"]) == (1, 1, 1)
    assert ranking(pairs[1:2], values, lower=False)["value"] is None
    # The first pair agrees both ways, the second never, and in the third x saw nothing where y did.
    assert one_rater(pairs)["value"] == pytest.approx((1 + 1 + 0 + 0 + 0.5) / 5)
    (between,) = between_systems(pairs)
    assert between.votes == {"0": 1, "1": 0, "2": -1, "3": 1}


def test_the_interval_of_a_share_counts_clusters():
    assert clustered_share([(1, 1)] * 7 + [(0, 1)] * 2)[1:] == pytest.approx(wilson(7, 9), abs=0.02)
    together, alone = clustered_share([(4, 4), (0, 4)] * 10), clustered_share([(1, 1), (0, 1)] * 40)
    assert together[2] - together[1] > 1.8 * (alone[2] - alone[1]), "four that go together are one"
    assert clustered_share([(2, 4)]) == (0.5, *wilson(0.5, 1))
    assert clustered_share([(3, 3)] * 5) == (1.0, *wilson(5, 5))
    # 95 % hold the truth: prompts of three pairs with a common part.
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        chance = rng.beta(1.4, 0.6, size=40)  # 0.7 in the mean
        _, low, high = clustered_share([(rng.binomial(3, c), 3) for c in chance])
        held += low <= 0.7 <= high
    assert 0.92 < held / 400 < 0.98


def test_fetvs_raters_rank_its_systems_and_each_other(real_data):
    """The published ratings: 78 prompts without and 541 with a filmed clip, whose raters and FVD can be compared."""
    source = Folder(str(real_data / "human_ratings" / "fetv"))
    systems = ("cogvideo", "damo-text2video", "text2video-zero", "zeroscope")
    videos = [f"{system}/{number:05d}.mp4" for system in systems for number in range(1000)]
    ratings = read_ratings(source, videos)
    questions = {pair.question for pair in ratings.pairs}
    assert questions == {"static_quality", "temporal_quality", "alignment"}
    assert len(ratings.pairs) == 3 * 6 * 619
    assert len(ratings.files) == 4 * 619
    assert ratings.without_video == 3 * 3 * 541, "the filmed clips are not here"
    # FVD and FID at the greatest n, the mean over draws. One system has another name there.
    table = list(csv.DictReader(io.StringIO((real_data / "human_ratings/fetv_fid_fvd_by_n.csv").read_text())))
    drawn = {}
    for row in table:
        if row["n"] == "1024":
            system = row["model"].replace("modelscope-t2v", "damo-text2video")
            drawn.setdefault(row["metric"], {}).setdefault(system, []).append(float(row["value"]))
    at = {metric: {system: np.mean(values) for system, values in of.items()} for metric, of in drawn.items()}
    marks = {}  # one rater's own marks as a metric
    for system in systems:
        for line in source.read_bytes(f"human0_{system}.jsonl").decode().splitlines():
            for item, row in json.loads(line).items():
                marks[f"{system}/{int(item):05d}.mp4"] = float(row["temporal_quality"])
    told = agreement(ratings, {"temporal_flickering": marks}, at)
    found = {(row["metric"], row["question"]): row for row in told["rows"]}
    first = found["temporal_flickering", "temporal_quality"]
    assert first["verdict"] == "follows"
    assert first["low"] > 0.8
    assert [found["fvd", q]["value"] for q in sorted(questions)] == [1 / 6, 3 / 6, 2 / 6]
    for question in questions:
        alone = told["one_rater"][question]
        assert alone["verdict"] == "follows"
        assert alone["low"] < alone["value"] < 0.9, "people do not always agree either"


def test_the_suite_compares_its_metrics_with_marks(tmp_path):
    """Still videos are preferred to strobing ones, in FETV's form."""
    home, rows = tmp_path / "videos", {"still": [], "strobe": []}
    for number in range(4):
        clip = frames(number, count=18, size=32)
        strobe = clip.copy()
        strobe[::2] = np.minimum(strobe[::2].astype(int) + 40, 255)
        for name, video, mark in (("still", clip, 5), ("strobe", strobe, 2 + number % 2)):
            save(video, home / name / f"{number:05d}.npy", "npy")
            rows[name].append(json.dumps({str(number): {"video_id": f"video{number}", "look": mark, "text": None}}))
    save(frames(9, count=18), home / "other" / "00000.npy", "npy")  # nobody rated it
    marks = tmp_path / "marks"
    marks.mkdir()
    for name, lines in rows.items():
        for rater in (0, 1):
            (marks / f"human{rater}_{name}.jsonl").write_text("\n".join(lines))
    videos, out = Folder(str(home)), Folder(str(tmp_path / "out"))
    names = weights(tmp_path, ("i3d.safetensors",))
    result = run_suite(videos, names, out, reference=videos.child("still"), draws=5, ratings=Folder(str(marks)))
    told = {(row["metric"], row["of"]): row for row in result["agreement"]["rows"]}
    assert (result["videos"], result["agreement"]["raters"]) == (8, 2)
    assert (told["strobing", "videos"]["value"], told["strobing", "videos"]["pairs"]) == (1.0, 4)
    assert told["fvd", "systems"]["value"] == 1.0
    assert result["agreement"]["one_rater"]["look"]["value"] == 1.0
    page = suite_page(result, videos).decode()
    assert "Agreement with people" in page
    assert "one rater, against the others" in page


def test_ratings_that_cannot_be_used_say_where(tmp_path):
    source = Folder(str(tmp_path))
    with pytest.raises(UserError, match="holds no ratings"):
        read_ratings(source, [])
    for wrong in (b"{", b"[1]", b"[" * 100_000, b'{"1": 2}', b'{"1": {"look": "good"}}', b'{"1": {"look": true}}'):
        source.write_bytes("human0_a.jsonl", b'{"0": {"look": 1}}\n' + wrong)
        with pytest.raises(UserError, match=r"human0_a\.jsonl, line 2: no marks"):
            read_ratings(source, ["a/0.mp4"])
    source.write_bytes("human0_a.jsonl", b'{"0": {"look": 1}}\n{"0": {"look": 2}}')
    with pytest.raises(UserError, match="line 2: item 0 has a second mark of look"):
        read_ratings(source, ["a/0.mp4"])
    source.write_bytes("human0_a.jsonl", b'{"0": {"look": 1}}')
    with pytest.raises(UserError, match="both of its videos"):
        read_ratings(source, ["a/0.mp4"])
    with pytest.raises(UserError, match="are both video 7 of a"):
        read_ratings(source, ["a/07.mp4", "a/7.mp4"])
    source.write_bytes("votes.csv", b"rater,question\n1,q\n")
    votes = Folder(source.path("votes.csv"))
    with pytest.raises(UserError, match="lacks answer, left"):
        read_ratings(votes, [])
    source.write_bytes("votes.csv", f"{','.join(COLUMNS)}\n1,q,neither\n".encode())
    with pytest.raises(UserError, match="row 2: no vote"):
        read_ratings(votes, [])


def votes(tmp_path, rows, delimiter=",", encoding="utf-8", true="True"):
    """Writes the table of a study: (rater, answer, left, right) of two systems' videos."""
    lines = [delimiter.join(COLUMNS)]
    for rater, answer, left, right in rows:
        cells = (rater, "quality", answer, "ours", "theirs", "a cat", left, right, true)
        lines.append(delimiter.join(cells))
    (tmp_path / "votes.csv").write_bytes("\r\n".join(lines).encode(encoding))
    return Folder(str(tmp_path / "votes.csv"))


@pytest.mark.parametrize("form", [{}, {"delimiter": ";"}, {"encoding": "utf-8-sig"}, {"true": "TRUE"}])
def test_votes_that_a_spreadsheet_has_stored_are_read(tmp_path, form):
    told = read_ratings(votes(tmp_path, [("r", "left", "v/a.mp4", "v/b.mp4")], **form), ["v/a.mp4", "v/b.mp4"])
    assert [pair.votes for pair in told.pairs] == [{"r": 1}]


def test_votes_are_of_the_files_they_name_or_it_is_told(tmp_path):
    here = ["ours/0.mp4", "theirs/0.mp4"]
    told = read_ratings(votes(tmp_path, [("r", "right", *here)]), here)
    assert told.files == {"ours/0.mp4": "ours", "theirs/0.mp4": "theirs"}
    with pytest.raises(UserError, match=r"row 2: study/0\.mp4 may be ours/0\.mp4 or theirs/0\.mp4"):
        read_ratings(votes(tmp_path, [("r", "right", "study/0.mp4", "study/1.mp4")]), here)


def test_a_rater_has_one_vote_on_a_pair(tmp_path):
    here = ["a.mp4", "b.mp4"]
    same = [("r", "left", "a.mp4", "b.mp4")] * 2
    assert read_ratings(votes(tmp_path, same), here).pairs[0].votes == {"r": 1}
    with pytest.raises(UserError, match="row 3: r preferred the other video before; leave one"):
        read_ratings(votes(tmp_path, [same[0], ("r", "right", "a.mp4", "b.mp4")]), here)
    with pytest.raises(UserError, match="row 2: counts is 'WAHR'; it must be True or False"):
        read_ratings(votes(tmp_path, same, true="WAHR"), here)


def test_marks_with_a_byte_order_mark_and_numbers_with_zeros(tmp_path):
    (tmp_path / "human0_a.jsonl").write_text('\ufeff{"0007": {"look": 3, "text": null}}\r\n')
    (tmp_path / "human0_b.jsonl").write_text('\n{"7": {"look": 1}}\n')
    (pair,) = read_ratings(Folder(str(tmp_path)), ["a/7.mp4", "b/00007.mp4"]).pairs
    assert (pair.sides, pair.votes) == (("a/7.mp4", "b/00007.mp4"), {"0": 1})
    (tmp_path / "human0_b.jsonl").write_text('{"7": {"look": "1"}}')
    with pytest.raises(UserError, match=r"line 1: no marks of a video \(look is '1', which is no number\); a line is"):
        read_ratings(Folder(str(tmp_path)), ["a/7.mp4", "b/00007.mp4"])
