"""A host gets few connections at a time, whether it is asked by name or by the redirects of others."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
from loopback import Quiet, served

from mav.data.fetching.guards import GuardedOpener
from mav.data.fetching.rules import FetchError
from mav.data.fetching.turns import Turn

HOSTS = 12


class Handler(Quiet):
    """Redirects /go/HOST to /slow of that host, and counts the requests that /slow answers at a time."""

    lock: ClassVar = threading.Lock()
    inside: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def get(self):
        if self.path.startswith("/go/"):
            port = self.headers["Host"].partition(":")[2]
            self.answer(302, Location=f"http://{self.path.removeprefix('/go/')}:{port}/slow?{self.headers['Host']}")
            return
        with Handler.lock:
            Handler.inside += 1
            Handler.most = max(Handler.most, Handler.inside)
        time.sleep(0.05)
        with Handler.lock:
            Handler.inside -= 1
        self.answer(body=b"here")


@pytest.fixture
def port():
    Handler.inside = Handler.most = 0
    with served(Handler) as address:
        yield address.partition(":")[2]


def opener(port, **settings):
    """Takes every name for this machine."""
    return GuardedOpener(allow_addresses=(f"127.0.0.1:{port}",), resolver=lambda *_: ["127.0.0.1"], **settings)


def fetched(guard, urls):
    with ThreadPoolExecutor(len(urls)) as pool:
        return [answer.body for answer in pool.map(guard.fetch, urls)]


def test_few_connections_a_host(port):
    assert fetched(opener(port, per_host=2), [f"http://a.example:{port}/slow?{i}" for i in range(8)]) == [b"here"] * 8
    assert Handler.most == 2


def test_few_connections_also_to_the_host_that_others_redirect_to(port):
    urls = [f"http://site{i}.example:{port}/go/pictures.example" for i in range(HOSTS)]
    assert fetched(opener(port, per_host=2), urls) == [b"here"] * HOSTS
    assert Handler.most == 2


def test_hosts_that_redirect_to_each_other_do_not_wait_for_each_other(port):
    urls = [f"http://{here}.example:{port}/go/{there}.example" for here, there in ("ab", "ba") for _ in range(4)]
    assert fetched(opener(port, per_host=1), urls) == [b"here"] * 8


def test_who_gets_no_turn_before_the_deadline_times_out(port):
    guard = opener(port, per_host=1, deadline=0.3)
    with Turn(guard._turns) as turn:
        turn.at("pictures.example")
        with pytest.raises(FetchError, match="timeout"):
            guard.fetch(f"http://site.example:{port}/go/pictures.example")
    assert guard.fetch(f"http://site.example:{port}/go/pictures.example").body == b"here", "turns were given back"
