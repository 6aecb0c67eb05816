"""A proxy that the recipe names is used for everything but allowed addresses; a failing one is named."""

import socket

import pytest
from loopback import Quiet, served

from mav.data.fetching.guards import GuardedOpener
from mav.data.fetching.proxy import Proxy, require_proxy
from mav.data.fetching.rules import FetchError, is_transient
from mav.errors import UserError

PUBLIC = "93.184.216.34"  # what the test's resolver says; nothing connects to it


class ForwardProxy(Quiet):
    """Answers whatever it is asked for, and leads no tunnel on."""

    def get(self) -> None:
        asked.append(f"{self.command} {self.path}")
        self.answer(body=b"through the proxy")

    def do_CONNECT(self) -> None:  # noqa: N802
        asked.append(f"{self.command} {self.path}")
        self.send_error(403)


asked: list[str] = []


@pytest.fixture
def proxy():
    asked.clear()
    with served(ForwardProxy) as address:
        yield Proxy.read(f"http://{address}")


def opener(proxy, known=(PUBLIC,), **more):
    return GuardedOpener(proxy=proxy, timeout=1.0, deadline=3.0, resolver=lambda host, port: list(known), **more)


def reason(guard, url):
    with pytest.raises(FetchError) as caught:
        guard.fetch(url)
    return caught.value.reason


def test_http_goes_through_it_whole(proxy):
    assert opener(proxy).fetch("http://one.example/a b?c=1").body == b"through the proxy"
    assert asked == ["GET http://one.example/a%20b?c=1"]


def test_https_asks_for_a_tunnel(proxy):
    assert reason(opener(proxy), "https://two.example/a") == "proxy"
    assert asked == ["CONNECT two.example:443"]
    assert is_transient("proxy")


def test_a_host_that_only_the_proxy_knows(proxy):
    def unknown(host, port):
        raise OSError

    guard = GuardedOpener(proxy=proxy, timeout=1.0, deadline=3.0, resolver=unknown)
    assert guard.fetch("http://three.example/").body == b"through the proxy"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1.", "0x7f.1", "2130706433", "017700000001", "a.localhost", "LOCALHOST.", "metadata.google.internal"],
)
def test_a_name_that_a_proxy_could_take_for_a_private_address_is_refused_where_it_is_unknown(proxy, host):
    def unknown(host, port):
        raise OSError

    assert reason(GuardedOpener(proxy=proxy, deadline=3.0, resolver=unknown), f"http://{host}/") == "private_address"
    assert asked == []


@pytest.mark.parametrize("known", [("10.0.0.1",), (PUBLIC, "127.0.0.1")])
def test_private_addresses_are_refused_before_it_is_asked(proxy, known):
    assert reason(opener(proxy, known), f"http://four{len(known)}.example/") == "private_address"
    assert asked == []


def test_allowed_addresses_need_none(proxy):
    class Own(Quiet):
        def get(self) -> None:
            self.answer(body=b"itself")

    with served(Own) as address:
        guard = opener(proxy, ("127.0.0.1",), allow_addresses=(address,))
        assert guard.fetch(f"http://{address}/").body == b"itself"
    assert asked == []


def test_the_environment_names_none(proxy, monkeypatch):
    for name in ("http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{proxy.host}:{proxy.port}")
    with served(ForwardProxy) as address:
        asked.clear()
        GuardedOpener(allow_addresses=(address,), deadline=3.0).fetch(f"http://{address}/x")
    assert asked == ["GET /x"]


def test_a_failing_one_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert reason(opener(Proxy.read(gone)), "http://five.example/") == "proxy"
    with pytest.raises(UserError, match=f"`image_download.proxy`: {gone} takes no connection .*: start it"):
        require_proxy("image_download.proxy", gone)
    require_proxy("image_download.proxy", "")
