"""The requests of the rating page: a rater sees only the own session, and no request is a server error."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from study_server import make_study

from mav.storage import Folder
from mav.study.votes import Votes


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
