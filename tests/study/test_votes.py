"""Votes: which rater is asked what, that answers stay, and that every pair gets exactly its raters."""

import re
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_studies import freeze_made_up, prefers, rate

from mav.errors import UserError
from mav.study.votes import RefusedError, Votes


def test_a_session_asks_quality_without_the_prompt_first_and_checks_in_between(clips, tmp_path):
    _, study = freeze_made_up(tmp_path, clips, 30, session=12)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    (token,) = votes.invite(1)
    state, asked, total = votes.next(token), [], None
    while state["state"] == "ask":
        assert (state["prompt"] is None) == (state["question"]["id"] == "quality")
        total = state["total"]
        assert state["done"] == len(asked)
        assert not set(state) & {"kind", "systems", "category", "gold"}
        asked.append((state["item"], state["question"]["id"]))
        state = votes.vote(token, *asked[-1], prefers(study, "ours")(*asked[-1]), 5)
    assert len(asked) == total == 2 * (12 + 2 + 2)
    assert [q for _, q in asked] == ["quality", "faithfulness"] * 16
    assert [item for item, _ in asked[::2]] == [item for item, _ in asked[1::2]]
    kinds = Counter(study.key[item]["kind"] for item, q in asked if q == "quality")
    assert kinds == {"pair": 12, "gold": 2, "mirror": 2}
    assert re.fullmatch("[0-9A-F]{8}", state["code"])
    assert votes.next(token)["code"] == state["code"]


def test_answers_stay_and_come_once(clips, tmp_path):
    _, study = freeze_made_up(tmp_path, clips, 8)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    one, two = votes.invite(2)
    state = votes.next(one)
    again = votes.vote(one, state["item"], "quality", "left", 5)
    assert votes.vote(one, state["item"], "quality", "left", 9) == again  # a repeated request
    with pytest.raises(RefusedError, match="cannot be changed"):
        votes.vote(one, state["item"], "quality", "right", 9)
    with pytest.raises(RefusedError, match="no longer yours"):
        votes.vote(two, "nonsense", "quality", "left", 9)
    with pytest.raises(RefusedError, match="not known"):
        votes.next("somebody")
    assert len(votes.rows()[0]) == 1
    with sqlite3.connect(tmp_path / "v.sqlite") as db:
        for statement in ("UPDATE votes SET answer = 'right'", "DELETE FROM votes"):
            with pytest.raises(sqlite3.IntegrityError, match="append only"):
                db.execute(statement)
    _, other = freeze_made_up(tmp_path / "other", clips, 9)
    with pytest.raises(UserError, match="votes of another study"):
        Votes(str(tmp_path / "v.sqlite"), other)


def test_a_lease_that_ran_out_gives_the_seat_away(clips, tmp_path):
    _, study = freeze_made_up(tmp_path, clips, 1, session=1)
    votes = Votes(str(tmp_path / "v.sqlite"), study, lease_seconds=0.0)
    tokens = votes.invite(7)
    slow = votes.next(tokens[0])
    votes.vote(tokens[0], slow["item"], "quality", "left", 5)
    for token in tokens[1:6]:
        assert rate(votes, token, prefers(study, "ours"))
    with pytest.raises(RefusedError, match="no longer yours"):
        votes.vote(tokens[0], slow["item"], "faithfulness", "left", 5)
    assert votes.next(tokens[6])["code"] is None  # nothing is left for the seventh
    rows, _ = votes.rows()
    assert Counter(row["complete"] for row in rows) == {1: 10, 0: 1}


def test_seats_are_held_while_somebody_rates(clips, tmp_path):
    _, study = freeze_made_up(tmp_path, clips, 1, session=1)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    tokens = votes.invite(6)
    for token in tokens[:5]:
        assert votes.next(token)["state"] == "ask"
    assert votes.next(tokens[5])["state"] == "end"
    assert votes.next(tokens[0])["state"] == "ask"


def test_many_raters_at_once_fill_every_seat_exactly(clips, tmp_path):
    _, study = freeze_made_up(tmp_path, clips, 20, session=14)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    tokens = votes.invite(12)
    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(lambda token: rate(votes, token, prefers(study, "ours")) is not False, tokens))
    rows, _ = votes.rows()
    pairs = set(study.of_kind("pair"))
    assert set(Counter(row["item"] for row in rows if row["item"] in pairs).values()) == {
        10
    }  # five raters, two questions
    assert all(row["complete"] for row in rows)
