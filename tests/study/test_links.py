"""Links survive a spreadsheet, a lost file, a new address and a database of before; the page lives under a prefix."""

import csv
import sqlite3

import pytest
from small_studies import freeze_made_up, made_up, rate
from study_server import make_study

from flows.cli.study import _write_links
from mav.errors import UserError
from mav.storage import Folder
from mav.study.results import report_study
from mav.study.study import Pair, freeze
from mav.study.votes import Study, Votes

HOST = "http://host/study"


def links(path):
    with open(path, newline="") as file:
        return [row["link"].rpartition("/")[2] for row in csv.DictReader(file)]


@pytest.fixture
def votes(clips, tmp_path):
    _, study = freeze_made_up(tmp_path, clips, 8)
    return Votes(str(tmp_path / "votes.sqlite"), study)


@pytest.mark.parametrize("kind", ["semicolons", "columns", "order", "utf-16", "lost", "empty", "torn"])
def test_links_survive(votes, tmp_path, kind, capsys):
    path = tmp_path / "links.csv"
    assert _write_links(votes, path, 3, HOST) == 3
    text, sent = path.read_text(), links(path)
    edited = {
        "semicolons": "\ufeff" + text.replace(",", ";").replace("\n", "\r\n"),
        "columns": text.replace("rater,link", "name,rater,link").replace(f"\n1,{HOST}", f"\nAnna,1,{HOST}"),
        "order": "\n".join([text.splitlines()[0], *text.splitlines()[:0:-1]]), "utf-16": text, "lost": text,
        "empty": "", "torn": text[:40],
    }[kind]  # fmt: skip
    path.write_bytes(edited.encode("utf-16" if kind == "utf-16" else "utf-8"))
    if kind == "lost":
        path.unlink()
    assert _write_links(votes, path, 5, "https://other") == 5
    assert links(path)[:3] == sent, "whoever has a link keeps it"
    assert path.read_text().splitlines()[1].startswith("1,https://other/r/")
    kept = tmp_path / "links-before-1.csv"
    assert kept.exists() == (kind in ("semicolons", "columns", "order", "utf-16", "torn"))
    assert not kept.exists() or ("changed by hand" in capsys.readouterr().out)


@pytest.mark.parametrize("lost", [False, True])
def test_a_database_of_before_did_not_store_links(votes, tmp_path, lost):
    path = tmp_path / "links.csv"
    _write_links(votes, path, 3, HOST)
    sent = links(path)
    with sqlite3.connect(votes.path) as db:
        db.execute("DROP TABLE links")
    if lost:
        path.unlink()
    again = Votes(votes.path, votes.study)
    assert _write_links(again, path, 3, HOST) == 3
    assert (links(path) == sent) != lost
    for token in (*sent, *links(path)):
        assert again.next(token)["state"] == "ask", "old links and new ones work"
    assert len(again.rows()[1]) == 3


def test_votes_and_codes_are_written_whatever_there_is_to_report(clips, tmp_path, votes):
    for raters, sentence in ((0, "Nobody has rated"), (1, "answers so far: 1, of 1 rater")):
        for token in votes.invite(raters):
            state = votes.next(token)
            votes.vote(token, state["item"], state["question"]["id"], "left", 5)
        out = Folder(str(tmp_path / f"report{raters}"))
        with pytest.raises(UserError, match=sentence):
            report_study(votes.study, votes, out)
        assert len(out.read_bytes("raters.csv").splitlines()) == 1 + raters
        assert len(out.read_bytes("votes.csv").splitlines()) == 1 + raters


def test_all_left_out_is_told_as_that(clips, tmp_path):
    _, study = freeze_made_up(tmp_path, clips, 24)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    for token in votes.invite(9):
        rate(votes, token, lambda item, question: "left")
    with pytest.raises(UserError, match=r"leaves out all 9 raters who answered \(9 .*invite others") as told:
        report_study(study, votes, Folder(str(tmp_path / "out")))
    assert "Nobody" not in str(told.value)
    assert len((tmp_path / "out/raters.csv").read_text().splitlines()) == 10


def test_a_pair_of_one_video_is_told(clips, tmp_path):
    folder = Folder(str(tmp_path / "same"))
    freeze([*made_up(clips, 3), Pair("twice", "", ("ours", "theirs"), (clips[0], clips[0]))], folder)
    study = Study.load(folder)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    for token in votes.invite(5):
        rate(votes, token, lambda item, question: "left")
    assert report_study(study, votes, Folder(str(tmp_path / "out")))["same_video"] == 1


@pytest.mark.parametrize("damage", ["empty", "truncated", "other"])
def test_a_damaged_database_is_a_sentence(votes, tmp_path, damage):
    votes.invite(5)
    votes._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    votes._connection().close()
    data = (tmp_path / "votes.sqlite").read_bytes()
    (tmp_path / "votes.sqlite").write_bytes({"empty": b"", "truncated": data[:5000], "other": b"x" * 9000}[damage])
    with pytest.raises(UserError, match="bring it back from a copy"):
        Votes(votes.path, votes.study).rows()


@pytest.mark.parametrize("prefix", ["", "/study", "/a/b"])
@pytest.mark.parametrize("stripped", [True, False])
def test_the_page_is_served_under_a_prefix(tmp_path, prefix, stripped):
    from starlette.testclient import TestClient

    from mav.study.rating_server import make_app

    study = make_study(tmp_path / "study", 3, 3)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    (token,) = votes.invite(1)
    with TestClient(make_app(votes, Folder(str(tmp_path / "study")), prefix)) as client:
        before = "" if stripped else prefix
        for address in (f"/r/{token}", f"/r/{token}/"):
            page = client.get(before + address, follow_redirects=False)
            assert page.status_code == 200
        assert 'fetch("/' not in page.text, "an address from the root would leave the prefix"
        state = client.get(f"{before}/api/next", headers={"Authorization": f"Bearer {token}"}).json()
        assert client.get(before + state["left"]).status_code == 200
