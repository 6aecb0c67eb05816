"""The rating page over real HTTP: many raters at once, kill -9, a browser, and whatever a fuzzer thinks of."""

import csv
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_videos import frames

from flows.services.ports import reserve_port
from mav.data.videos.video_io import encode_mp4
from mav.storage import Folder
from mav.study.study import Pair, freeze
from mav.study.votes import Study, Votes

CHROMIUM = "/usr/bin/chromium"
PROMPTS = (
    "A dog wearing a superhero outfit with a red cape flying through the sky",
    "A blue unicorn flying over a mystical land",
)


def make_study(folder, pairs, session):
    clips = [encode_mp4(frames(seed, 12, 64), 16) for seed in range(6)]
    rows = [Pair(PROMPTS[i % 2], "animals", ("ours", "theirs"), (clips[i % 3], clips[3 + i % 3])) for i in range(pairs)]
    freeze(rows, Folder(str(folder)), seed=1, session=session)
    return Study.load(Folder(str(folder)))


class Server:
    """`mav study serve` as people run it; can be killed and started again on the same port."""

    def __init__(self, study, votes, raters):
        self.port = reserve_port()
        self.votes = votes
        self.command = [
            sys.executable, "-m", "flows.cli.main", "study", "serve", str(study), "--votes", str(votes),
            "--raters", str(raters), "--port", str(self.port),
        ]  # fmt: skip
        self.starts = 0
        self.start()

    def start(self):
        self.starts += 1
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.stderr.read().decode()
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the server did not start")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stderr.close()

    def tokens(self):
        with open(self.votes / "links.csv") as file:
            return [row["link"].rpartition("/")[2] for row in csv.DictReader(file)]


@contextmanager
def serving(study, votes, raters):
    server = Server(study, votes, raters)
    try:
        yield server
    finally:
        server.kill()


class Rater(threading.Thread):
    """A simulated person: keeps asking through lost connections, sometimes sends an answer twice, remembers what was acknowledged."""

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
    assert len(kept) == len(said), "a vote is there that nobody was told of"
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


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    from starlette.testclient import TestClient

    from mav.study.rating_server import make_app

    root = tmp_path_factory.mktemp("fuzz")
    study = make_study(root / "study", 4, 4)
    votes = Votes(str(root / "v.sqlite"), study)
    tokens = votes.invite(2)
    # An exception inside the server is raised here: it would have been a 500.
    with TestClient(make_app(votes, Folder(str(root / "study"))), raise_server_exceptions=True) as client:
        client.tokens, client.study = tokens, study
        yield client


TEXT = st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
LOOSE = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@LOOSE
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"]),
    path=TEXT,
    body=st.binary(max_size=200),
    token=TEXT,
)
def test_no_request_whatever_is_a_500(client, method, path, body, token):
    from urllib.parse import quote

    for prefix in ("/", "/videos/", "/r/", "/api/", "/api/vote/"):
        headers = {
            "Authorization": b"Bearer " + token.encode("utf-8", "replace").replace(b"\r", b"").replace(b"\n", b"")
        }
        response = client.request(method, prefix + quote(path, safe="/%"), content=body, headers=headers)
        assert response.status_code < 500
        assert response.status_code != 200 or prefix == "/r/" or method == "OPTIONS"


@LOOSE
@given(
    vote=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("item", "question", "answer", "milliseconds", "played", "x"), JSON)
    )
    | JSON
)
def test_no_answer_whatever_is_a_500_or_a_vote(client, vote):
    before = client.get("/api/next", headers={"Authorization": f"Bearer {client.tokens[0]}"}).json()
    try:
        content = json.dumps(vote).encode()
    except (ValueError, UnicodeEncodeError):
        content = repr(vote).encode("utf-8", "replace")
    response = client.post("/api/vote", content=content, headers={"Authorization": f"Bearer {client.tokens[0]}"})
    assert response.status_code in (409, 413, 422)
    assert response.json()["error"]
    assert client.get("/api/next", headers={"Authorization": f"Bearer {client.tokens[0]}"}).json() == before


def test_a_rater_sees_their_own_session_only(client):
    one, two = ({"Authorization": f"Bearer {token}"} for token in client.tokens)
    state = client.get("/api/next", headers=one).json()
    text = client.get("/api/next", headers=one).text + client.get(f"/r/{client.tokens[0]}").text
    for word in ("theirs", "ours", "intact", "ruined", "gold", "mirror", "rater_id"):
        assert f'"{word}' not in text
    videos = [f"videos/{way}key.json" for way in ("../", "..%2f", "%2e%2e/")]
    for path in ("study.json", "key.json", *videos, "docs", "openapi.json", ""):
        assert client.get(f"/{path}").status_code == 404, path
    assert client.get("/api/next").status_code == 401
    assert client.get("/api/next", headers={"Authorization": "Bearer x"}).status_code == 401
    vote = {"item": state["item"], "question": "quality", "answer": "left", "milliseconds": 5, "played": True}
    assert client.post("/api/vote", json=vote, headers={"Authorization": "Bearer x"}).status_code == 401
    assert client.post("/api/vote", json=vote | {"played": False}, headers=one).status_code == 422
    assert client.post("/api/vote", content=b"x" * 5000, headers=one).status_code == 413
    assert client.post("/api/vote", json=vote, headers=one).status_code == 200
    assert client.get("/api/next", headers=two).json()["done"] == 0
    video = client.get(state["left"], headers={"Range": "bytes=0-99"})
    assert (video.status_code, len(video.content), video.headers["content-type"]) == (206, 100, "video/mp4")
    policy = client.get(f"/r/{client.tokens[0]}").headers
    assert "default-src 'none'" in policy["content-security-policy"]
    assert policy["referrer-policy"] == "no-referrer"


CAN_ANSWER = "#ask:not([hidden]) #left[aria-disabled='false']"


def sync_api():
    return pytest.importorskip("playwright.sync_api")


@contextmanager
def browser_page(**options):
    if not os.path.exists(CHROMIUM):
        pytest.skip("no Chromium on this machine")
    with sync_api().sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            context = browser.new_context(**options)
            page = context.new_page()
            page.problems = []
            page.on(
                "console",
                lambda message: page.problems.append(message.text) if message.type in ("error", "warning") else None,
            )
            page.on("pageerror", lambda error: page.problems.append(str(error)))
            page.on(
                "request", lambda request: None if "127.0.0.1" in request.url else page.problems.append(request.url)
            )
            yield page
        finally:
            browser.close()


def rate_all(page, answer, shots=""):
    """A whole session; answer(side) gives one answer. Returns the number of questions."""
    page.wait_for_selector("#start")
    if shots:
        page.screenshot(path=f"{shots}-intro.png")
    page.click("#start")
    asked = 0
    while True:
        page.wait_for_selector(f"{CAN_ANSWER}, #end:not([hidden])")
        if page.is_visible("#end"):
            break
        if shots and asked < 2:
            page.screenshot(path=f"{shots}-{'quality' if asked == 0 else 'text'}.png")
        if asked == 0:
            assert page.is_hidden("#prompt")
        before = page.inner_text("#count")
        answer("right" if asked % 3 else "left")
        sync_api().expect(page.locator("#count")).not_to_have_text(before)
        asked += 1
    if shots:
        page.screenshot(path=f"{shots}-end.png")
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("how", ["keyboard", "touch"])
def test_a_whole_session_in_a_browser(tmp_path, how):
    study = make_study(tmp_path / "study", 3, 3)
    shots = os.environ.get("MAV_SCREENSHOTS", "")
    desktop = {"viewport": {"width": 1280, "height": 800}}
    phone = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    with (
        serving(tmp_path / "study", tmp_path / "votes", 1) as server,
        browser_page(**(phone if how == "touch" else desktop)) as page,
    ):
        page.goto(f"http://127.0.0.1:{server.port}/r/{server.tokens()[0]}")
        if how == "keyboard":
            asked = rate_all(
                page, lambda side: page.keyboard.press(f"Arrow{side.capitalize()}"), shots and f"{shots}/desktop"
            )
        else:
            asked = rate_all(page, lambda side: page.tap(f"#{side}"), shots and f"{shots}/phone")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
        code = page.inner_text("#code")
        assert not page.problems
        page.reload()
        page.wait_for_selector("#code", state="visible")
        assert page.inner_text("#code") == code
    rows, raters = Votes(str(tmp_path / "votes" / "votes.sqlite"), study).rows()
    assert asked == len(rows) == 2 * (3 + 1)  # three pairs and a gold one
    assert raters[0]["code"] == code
    assert {row["answer"] for row in rows} == {"left", "right"}
    assert all(row["milliseconds"] >= 500 for row in rows)  # nobody can answer before both clips have played


@pytest.mark.slow
def test_a_browser_goes_on_where_it_stopped_and_through_a_lost_server(tmp_path):
    study = make_study(tmp_path / "study", 3, 3)
    with serving(tmp_path / "study", tmp_path / "votes", 1) as server, browser_page() as page:
        page.goto(f"http://127.0.0.1:{server.port}/r/{server.tokens()[0]}")
        page.click("#start")
        count = page.locator("#count")
        page.keyboard.press("ArrowLeft")  # too early: nothing has played
        page.wait_for_selector(CAN_ANSWER)
        page.keyboard.press("ArrowLeft")
        sync_api().expect(count).to_have_text("2 of 8")
        page.reload()
        page.click("#start")
        sync_api().expect(count).to_have_text("2 of 8")
        page.wait_for_selector(CAN_ANSWER)
        server.kill()
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("#alert", state="visible")
        assert "stored" in page.inner_text("#alert")
        server.start()
        sync_api().expect(count).to_have_text("3 of 8", timeout=20_000)
        assert page.is_hidden("#alert")
        page.goto(f"http://127.0.0.1:{server.port}/r/unknown")
        page.wait_for_selector("#alert", state="visible")
        assert "not known" in page.inner_text("#alert")
    assert len(Votes(str(tmp_path / "votes" / "votes.sqlite"), study).rows()[0]) == 2
