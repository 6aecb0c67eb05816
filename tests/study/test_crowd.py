"""Many raters at once over real HTTP, while the server is killed and started again."""

import http.client
import json
import random
import threading
import time
from collections import Counter

import pytest
from study_server import make_study, serving

from mav.study.votes import Votes


class Rater(threading.Thread):
    """A simulated person who repeats lost requests, sometimes sends an answer twice, and remembers the replies."""

    def __init__(self, port, token, study, seed):
        super().__init__()
        self.port, self.token, self.study, self.random = port, token, study, random.Random(seed)
        self.acknowledged, self.code, self.connection, self.wrong = {}, None, None, []

    def call(self, method, path, body=None):
        while True:
            try:
                self.connection = self.connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                self.connection.request(method, path, body, {"Authorization": f"Bearer {self.token}"})
                response = self.connection.getresponse()
                return response.status, json.loads(response.read())
            except (OSError, http.client.HTTPException):
                self.connection = None
                time.sleep(0.05)

    def run(self):
        status, state = self.call("GET", "/api/next")
        while status == 200 and state["state"] == "ask":
            item, question = state["item"], state["question"]["id"]
            wanted = {"intact", "ours" if self.random.random() < 0.7 else "theirs"}
            side = next(side for side in ("left", "right") if self.study.key[item][side] in wanted)
            if self.study.key[item]["kind"] == "mirror":  # consistent with what was said of the pair
                before = self.acknowledged[self.study.key[item]["of"], question]
                side = "right" if before == "left" else "left"
            vote = {
                "item": item,
                "question": question,
                "answer": side,
                "milliseconds": self.random.randrange(900, 9000),
                "played": True,
            }
            status, state = self.call("POST", "/api/vote", json.dumps(vote))
            if status == 200:
                self.acknowledged[item, question] = side
                if self.random.random() < 0.05:
                    assert self.call("POST", "/api/vote", json.dumps(vote))[0] == 200
            elif status == 409:
                status, state = self.call("GET", "/api/next")
        if status != 200:
            self.wrong.append((status, state))
        else:
            self.code = state["code"]


def crowd(tmp_path, raters, pairs, session, kills):
    """A whole study with the server killed in the middle so often; returns the raters and the votes."""
    study = make_study(tmp_path / "study", pairs, session)
    with serving(tmp_path / "study", tmp_path / "votes", raters) as server:
        people = [Rater(server.port, token, study, seed) for seed, token in enumerate(server.tokens())]
        for person in people:
            person.start()
        expected = pairs * study.raters * len(study.questions)
        for number in range(kills):
            while sum(len(person.acknowledged) for person in people) < expected * (number + 1) / (kills + 1):
                time.sleep(0.01)
            server.kill()
            server.start()
        for person in people:
            person.join()
        assert server.starts == kills + 1
    return study, people, Votes(str(tmp_path / "votes" / "votes.sqlite"), study)


def check_crowd(study, people, votes):
    rows, raters = votes.rows()
    assert not [person.wrong for person in people if person.wrong]
    kept = {(row["rater"], row["item"], row["question"]): row["answer"] for row in rows}
    assert len(kept) == len(rows), "a vote is there twice"
    said = {
        (number, *asked): side for number, person in enumerate(people, 1) for asked, side in person.acknowledged.items()
    }
    assert said.items() <= kept.items(), "an acknowledged vote is lost"
    assert len(kept) == len(said), "a vote is stored that was never acknowledged"
    assert not [rater for rater in raters if rater["excluded"]]
    pairs = Counter(row["item"] for row in rows if row["complete"] and study.key[row["item"]]["kind"] == "pair")
    assert set(pairs) == set(study.of_kind("pair"))
    assert set(pairs.values()) == {study.raters * len(study.questions)}, "a pair has not exactly its raters"
    assert all(person.code for person in people if person.acknowledged)


def test_a_few_raters_at_once_through_a_killed_server(tmp_path):
    check_crowd(*crowd(tmp_path, raters=8, pairs=8, session=8, kills=2))


@pytest.mark.slow
def test_fifty_raters_on_three_hundred_pairs_through_five_kills(tmp_path):
    check_crowd(*crowd(tmp_path, raters=50, pairs=300, session=40, kills=5))
