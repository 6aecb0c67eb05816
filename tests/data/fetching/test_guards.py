import importlib.metadata
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
from loopback import Quiet, served

from mav.data.fetching.guards import GuardedOpener, installed
from mav.data.fetching.rules import FetchError, is_transient, opted_out

REFUSE = ("noai", "noimageai", "noindex")


class Handler(Quiet):
    """Answers with what the test registered: path -> function of the handler."""

    routes: ClassVar[dict] = {}
    seen: ClassVar[list] = []
    at: ClassVar[list] = []  # when each was seen

    def get(self):
        Handler.seen.append((self.path, dict(self.headers)))
        Handler.at.append(time.monotonic())
        Handler.routes[self.path.partition("?")[0]](self)


@pytest.fixture
def web():
    """(routes, base url) of a loopback server."""
    Handler.routes, Handler.seen, Handler.at = {}, [], []
    with served(Handler) as address:
        yield Handler.routes, f"http://{address}"


def opener(base, **more):
    settings = {"timeout": 1.0, "deadline": 2.0, "max_bytes": 1000, "refuse": REFUSE}
    return GuardedOpener(**{**settings, "allow_addresses": (base.removeprefix("http://"),), **more})


def reason(guard, url):
    with pytest.raises(FetchError) as caught:
        guard.fetch(url)
    return caught.value.reason


def test_fetches_with_an_honest_agent(web):
    routes, base = web
    routes["/a%20b"] = lambda h: h.answer(body=b"hello", Content_Type="image/png; charset=x")
    answer = opener(base, contact="me@example.org").fetch(f"{base}/a%20b")
    assert (answer.body, answer.content_type, answer.final_url) == (b"hello", "image/png", f"{base}/a%20b")
    headers = Handler.seen[0][1]
    version = importlib.metadata.version("make-a-video-system")
    assert headers["User-Agent"] == f"make-a-video-system/{version} (+me@example.org)"
    assert headers["Host"] == base.removeprefix("http://")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "user@127.0.0.1"])
def test_loopback_is_refused_however_it_is_written(host, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("connected"))
    assert reason(GuardedOpener(), f"http://{host}:9/x") == "private_address"


@pytest.mark.parametrize(
    "target", ["http://10.1.2.3/x", "http://169.254.169.254/latest/meta-data", "http://inside.example/x"]
)
def test_redirects_inside_are_refused_before_connecting(web, target):
    routes, base = web
    asked = []

    def resolver(host, port):
        asked.append(host)
        return {"inside.example": ["192.168.0.9"]}.get(host, [host])

    routes["/go"] = lambda h: h.answer(302, b"", Location=target)
    assert reason(opener(base, resolver=resolver), f"{base}/go") == "private_address"
    assert asked[0] == "127.0.0.1"
    assert len(Handler.seen) == 1


def test_connects_to_the_address_that_was_checked(web):
    """A name whose second answer would be private is asked once, and its first answer used."""
    routes, base = web
    port = base.rpartition(":")[2]
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    routes["/a"] = lambda h: h.answer(302, b"", Location="/b")
    routes["/b"] = lambda h: h.answer(body=b"ok")
    guard = opener(base, resolver=lambda host, port: next(answers))
    assert guard.fetch(f"http://rebinding.example:{port}/a").body == b"ok"
    assert next(answers) == ["10.0.0.1"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        *[(u, "bad_scheme") for u in ("file:///etc/passwd", "ftp://h/x", "data:image/png;base64,AA", "//h/x", "")],
        *[(u, "bad_url") for u in ("http:///x", "http://h:port/", "http://[::1/", f"http://{'a' * 70}.com/")],
    ],
)
def test_bad_urls(url, expected):
    assert reason(GuardedOpener(resolver=lambda host, port: pytest.fail("resolved")), url) == expected


def test_deadline_outlives_a_drip_in_body_and_in_headers(web):
    routes, base = web

    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "500")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    def drip_headers(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: ")
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    routes["/drip"], routes["/headers"] = drip, drip_headers
    for path in ("/drip", "/headers"):
        start = time.monotonic()
        assert reason(opener(base, timeout=0.4, deadline=0.6), base + path) == "timeout"
        assert time.monotonic() - start < 1.5


def test_status_classes_and_retries(web):
    routes, base = web
    tries = iter([503, 200])
    routes["/flaky"] = lambda h: h.answer(next(tries), b"at last", Retry_After="0")
    routes["/gone"] = lambda h: h.answer(410)
    routes["/busy"] = lambda h: h.answer(429, Retry_After="0")
    guard = opener(base)
    assert guard.fetch(f"{base}/flaky").body == b"at last"
    assert reason(guard, f"{base}/gone") == "http_410"
    assert reason(guard, f"{base}/busy") == "http_429"
    assert sum(path == "/busy" for path, _ in Handler.seen) == 3


def test_retry_after_holds_for_the_whole_host(web):
    routes, base = web
    tries = iter([503, 200])
    routes["/limited"] = lambda h: h.answer(next(tries), b"at last", Retry_After="1")
    routes["/other"] = lambda h: h.answer()
    guard, start = opener(base), time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(guard.fetch, f"{base}/limited")
        while not guard._paused:
            time.sleep(0.01)
        others = list(pool.map(guard.fetch, [f"{base}/other?{i}" for i in range(3)]))
    assert (first.result().body, len(others)) == (b"at last", 3)
    assert time.monotonic() - start > 1
    assert Handler.seen[0][0] == "/limited"
    assert Handler.at[1] - Handler.at[0] > 0.9, "nobody asked in between"


def test_a_wait_beyond_the_deadline_is_not_begun(web):
    routes, base = web
    routes["/limited"] = lambda h: h.answer(503, Retry_After="3600")
    routes["/other"] = lambda h: h.answer()
    guard, start = opener(base), time.monotonic()
    assert reason(guard, f"{base}/limited") == "http_503"
    failed = reason(guard, f"{base}/other")
    assert (failed, is_transient(failed)) == ("http_503", True), "the retry pass asks for it another day"
    assert time.monotonic() - start < 1
    assert len(Handler.seen) == 1, "the host is left alone"
    elsewhere = base.replace("127.0.0.1", "localhost")
    guard.allow_addresses = (base.removeprefix("http://"),)
    assert guard.fetch(f"{elsewhere}/other").body == b"x", "another host's URLs do not wait"


def test_names_that_do_not_resolve_and_resolvers_that_hang():
    def unknown(host, port):
        raise socket.gaierror(8, "unknown")

    assert reason(GuardedOpener(resolver=unknown), "http://nowhere.example/") == "dns"
    start = time.monotonic()
    assert (
        reason(GuardedOpener(deadline=0.2, resolver=lambda h, p: time.sleep(2) or []), "http://slow.example/") == "dns"
    )
    assert time.monotonic() - start < 1


def test_refused_and_nonsense(web):
    routes, base = web
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        free = f"127.0.0.1:{closed.getsockname()[1]}"
    assert reason(GuardedOpener(allow_addresses=(free,)), f"http://{free}/") == "refused"
    routes["/nonsense"] = lambda h: h.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")
    assert reason(opener(base), f"{base}/nonsense") == "bad_response"


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        (["noai"], True), (["NoAI , nofollow"], True), (["nofollow"], False), ([], False), (["none"], True),
        (["*: noai"], True), (["max-snippet: 20, noimageai"], True), (["noai, googlebot: noindex"], True),
        (["googlebot: noindex"], False), (["googlebot: nofollow, noai"], False),
        (["make-a-video-system: noindex"], True), (["somebody: nofollow, make-a-video-system: noai"], True),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], True),
        (["unavailable_after: Tuesday, 25-Jun-30 15:00:00 UTC"], False), (["all"], False),
        (["googlebot: unavailable_after: 1 Jan 2030 10:00:00, noai"], False), (["nofollow", "noai"], True),
    ],
)  # fmt: skip
def test_robots_headers(headers, refused):
    assert opted_out(headers, REFUSE) is refused


@pytest.mark.parametrize(
    ("value", "refuse", "expected"),
    [("1", (*REFUSE, "tdm-reservation"), "opted_out"), ("0", (*REFUSE, "tdm-reservation"), ""), ("1", REFUSE, "")],
)
def test_text_and_data_mining_reservation(web, value, refuse, expected):
    routes, base = web
    routes["/a"] = lambda h: h.answer(body=b"fine", TDM_Reservation=value)
    guard = opener(base, refuse=refuse)
    if expected:
        assert reason(guard, f"{base}/a") == expected
    else:
        assert guard.fetch(f"{base}/a").body == b"fine"


def test_a_host_is_looked_up_once_by_all_openers(web):
    routes, base = web
    routes["/a"] = lambda h: h.answer(body=b"fine")
    port = base.rpartition(":")[2]
    asked = []

    def resolver(host, port):
        asked.append(host)
        return ["127.0.0.1"]

    for _ in range(3):
        assert opener(base, resolver=resolver).fetch(f"http://known.example:{port}/a").body == b"fine"
    assert asked == ["known.example"]
    with pytest.raises(FetchError, match="private_address"):
        GuardedOpener(resolver=resolver).fetch(f"http://known.example:{port}/a")


def test_opt_out_and_urllib_use(web):
    routes, base = web
    routes["/no"] = lambda h: h.answer(X_Robots_Tag=["nofollow", "noai"])
    routes["/yes"] = lambda h: h.answer(body=b"fine", Content_Type="image/jpeg", X_Robots_Tag="bing: noai")
    guard = opener(base)
    before = getattr(urllib.request, "_opener", None)
    with installed(guard):
        assert urllib.request.urlopen(f"{base}/yes", timeout=9).read() == b"fine"
        with pytest.raises(FetchError, match="opted_out"):
            urllib.request.urlopen(f"{base}/no")
    assert getattr(urllib.request, "_opener", None) is before
