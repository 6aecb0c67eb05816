"""The report of a study: who is left out, and every statistic."""

import csv
import io
import json
import math

import pytest
from small_studies import freeze_made_up, prefers, rate

from mav.errors import UserError
from mav.evaluation.suite.ratings import read_ratings
from mav.storage import Folder
from mav.study.results import _csv, report_study
from mav.study.votes import Votes


def test_raters_who_do_not_look_are_left_out_and_replaced(clips, tmp_path):
    _, study = freeze_made_up(tmp_path, clips, 24)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    tokens = votes.invite(8)
    assert rate(votes, tokens[0], lambda item, question: "left")
    assert rate(
        votes,
        tokens[1],
        lambda item, question: next(s for s in ("left", "right") if study.key[item][s] in ("ruined", "theirs")),
    )
    for token in tokens[2:]:
        rate(votes, token, prefers(study, "ours"))
    report = report_study(study, votes, Folder(str(tmp_path / "report")))
    assert set(report["raters"]["left_out"]) == {"rater 1", "rater 2"}
    assert "gold" in report["raters"]["left_out"]["rater 2"]
    assert report["pairs"] == {"total": 24, "complete": 24, "ratings": 120}
    assert report["questions"]["quality"]["pairs"]["ours over theirs"]["majority_wins"] == 24
    assert report["checks"]["gold_right"] == report["checks"]["gold"] > 0


def test_the_report_has_every_statistic(clips, tmp_path):
    _, study = freeze_made_up(tmp_path, clips, 12)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    with pytest.raises(UserError, match="Nobody has rated"):
        report_study(study, votes, Folder(str(tmp_path / "report")))
    tokens = votes.invite(5)
    theirs = study.of_kind("pair")[:3]  # three pairs that theirs wins
    for token in tokens:
        rate(
            votes,
            token,
            lambda i, q: prefers(study, "theirs" if study.key[i]["of"] in theirs or i in theirs else "ours")(i, q),
        )
    out = Folder(str(tmp_path / "report"))
    report = report_study(study, votes, out)
    pair = report["questions"]["faithfulness"]["pairs"]["ours over theirs"]
    assert (pair["majority_wins"], pair["items"], pair["ties"]) == (9, 12, 0)
    assert pair["sign_test_p"] == pytest.approx(2 * sum(math.comb(12, k) for k in range(4)) / 2**12)
    assert pair["majority_wilson"][0] < 0.75 < pair["majority_wilson"][1]
    assert pair["vote_interval"][0] < pair["vote_share"] < pair["vote_interval"][1]
    assert set(pair["categories"]) == {"animals", "people"}
    assert report["questions"]["quality"]["agreement"]["fleiss_kappa"] == pytest.approx(1)
    assert report["votes"]["median_seconds"] == 0.9
    assert json.loads(out.read_bytes("report.json"))["questions"].keys() == {"quality", "faithfulness"}
    lines = out.read_bytes("votes.csv").decode().splitlines()
    assert lines[0].startswith("rater,item,kind,question,answer,preferred")
    assert len(lines) == 1 + len(votes.rows()[0])
    assert len(out.read_bytes("raters.csv").decode().splitlines()) == 6
    # The suite reads what each rater said of each pair of videos, whatever was left, and no check.
    videos = sorted({item[side] for item in study.items.values() for side in ("left", "right")})
    ratings = read_ratings(Folder(out.path("votes.csv")), videos)
    assert len(ratings.pairs) == 2 * 12
    assert {(pair.systems, len(pair.votes)) for pair in ratings.pairs} == {(("ours", "theirs"), 5)}
    assert sum(pair.preferred for pair in ratings.pairs if pair.question == "quality") == 9 - 3
    assert set(ratings.files) < set(videos)
    assert set(ratings.prompts.values()) <= {item["prompt"] for item in study.items.values()}


def test_no_cell_of_an_export_is_a_formula(clips, tmp_path):
    """Names of systems and categories come from files of others, and spreadsheets run what begins with these signs."""
    ours = "=HYPERLINK(1)"
    _, study = freeze_made_up(tmp_path, clips, 4, systems=(ours, "theirs"))
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    rate(votes, *votes.invite(1), prefers(study, ours))
    report_study(study, votes, out := Folder(str(tmp_path / "report")))
    assert f",'{ours}," in out.read_bytes("votes.csv").decode()
    for start in ("=", "+", "-", "@", "\t=", "\r=", " =", "\n=", "\uff1d"):
        text = _csv(["a", "b"], [{"a": f"{start}1+1", "b": -1.5}]).decode()
        assert list(csv.reader(io.StringIO(text, newline=""))) == [
            ["a", "b"],
            [f"'{start}1+1".replace("\r", "\n"), "-1.5"],
        ]
