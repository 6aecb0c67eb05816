"""Addresses and redirects are read as browsers read them."""

import pytest
from loopback import Quiet, served

from mav.data.fetching.guards import GuardedOpener
from mav.data.fetching.rules import FetchError, as_sent, percent_encoded, request_target, seconds_to_wait, split_url

SEEN = "/bilder/gr%C3%B6%C3%9Fe.jpg"
TARGETS = {
    "raw UTF-8": "/bilder/größe.jpg".encode(),
    "percent-encoded": SEEN.encode(),
    "relative": "bilder/größe.jpg".encode(),
    "up and down": "/x/../bilder/größe.jpg".encode(),
    "protocol-relative": "//HOST/bilder/größe.jpg".encode(),
    "absolute": "HTTP://HOST/bilder/größe.jpg".encode(),
    "backslashes": "\\bilder\\größe.jpg".encode(),
    "blanks around": "  /bilder/größe.jpg  ".encode(),
    "with a fragment": "/bilder/größe.jpg#part".encode(),
}


class Handler(Quiet):
    """Redirects as `target` says, and answers what it should lead to."""

    target = b""

    def get(self) -> None:
        if self.path == "/old":
            self.wfile.write(b"HTTP/1.0 302 Found\r\nLocation: " + self.target + b"\r\nContent-Length: 0\r\n\r\n")
        else:
            self.answer(200 if self.path in (SEEN, "/caf%E9", "/a%20b?q=%C3%B6") else 404, self.path.encode())


def follow(target: bytes) -> str:
    with served(Handler) as address:
        Handler.target = target.replace(b"HOST", address.encode())
        return GuardedOpener(allow_addresses=(address,), deadline=5).fetch(f"http://{address}/old").body.decode()


@pytest.mark.parametrize("name", TARGETS)
def test_redirects_go_where_a_browser_goes(name: str) -> None:
    assert follow(TARGETS[name]) == SEEN


def test_other_bytes_and_blanks_in_redirects() -> None:
    assert follow(b"/caf\xe9") == "/caf%E9"
    assert follow("/a b?q=ö".encode()) == "/a%20b?q=%C3%B6"


@pytest.mark.parametrize(
    "target", [b"http://[::1", b"http://h:port/", b"file:///etc/passwd", b"//", b"http://\xff\xfe/"]
)
def test_redirects_to_nowhere_are_counted(target: bytes) -> None:
    with pytest.raises(FetchError) as caught:
        follow(target)
    assert caught.value.reason in ("bad_url", "bad_scheme", "dns", "private_address", "redirect_loop")


@pytest.mark.parametrize(
    ("url", "host"),
    [("http://bücher.example/", "xn--bcher-kva.example"), ("http://faß.de/", "xn--fa-hia.de"),
     ("http://BÜCHER.example/", "xn--bcher-kva.example"), ("http://my_host.example/", "my_host.example"),
     ("http://例え.テスト/", "xn--r8jz45g.xn--zckzah"), ("http://a-b.example:80/", "a-b.example")],
)  # fmt: skip
def test_names_of_hosts(url: str, host: str) -> None:
    assert split_url(url).hostname == host


def test_any_text_is_an_address_that_can_be_stored() -> None:
    for text in ("http://h/\udce9", "http://h/\ud800x", "http://h/\0", "h\u2028"):
        percent_encoded(text).encode()
    assert percent_encoded("http://h/\udce9") == "http://h/%E9"
    assert as_sent("/gr\xc3\xb6\xc3\x9fe") == "/größe"
    assert request_target(split_url("http://h/größe")) == "/gr%C3%B6%C3%9Fe"


@pytest.mark.parametrize(
    ("header", "least"),
    [("7", 7), ("9" * 400, 1e300), ("\xb2", None), ("soon", None), ("Mon, 01 Jan 99999 00:00:00 GMT", None),
     ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None), ("Mon, 01 Jan 1990 00:00:00 GMT", 0)],
)  # fmt: skip
def test_any_retry_after_is_a_time_or_says_nothing(header: str, least: float | None) -> None:
    found = seconds_to_wait(header)
    assert found is None if least is None else found is not None and found >= least
