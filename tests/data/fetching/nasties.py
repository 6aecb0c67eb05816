"""Hundreds of answers and addresses that a web crawl meets and that must do no harm, made here and deterministic."""

import gzip
from collections.abc import Iterator

from nasty_pictures import encoded, pictures

Nasty = tuple[
    str, bytes, str
]  # name, the raw HTTP answer, what is expected: a reason, "ok", or "" for any of a closed set


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {len(body) if length is None else length}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def answers(port: int) -> Iterator[Nasty]:
    """Answers of a server that is broken, hostile or odd."""
    good = encoded()
    for name, body, expected in pictures():
        yield name, answer(body, "Content-Type: image/jpeg"), expected
    yield "gzip", answer(gzip.compress(good), "Content-Encoding: gzip"), "ok"
    yield "gzip-bomb", answer(gzip.compress(bytes(60_000_000)), "Content-Encoding: gzip"), "too_large"
    yield (
        "gzip-of-gzip-bomb",
        answer(gzip.compress(gzip.compress(bytes(60_000_000))), "Content-Encoding: gzip"),
        "not_an_image",
    )
    yield "gzip-cut", answer(gzip.compress(good)[:-20], "Content-Encoding: gzip"), "truncated"
    yield "gzip-nonsense", answer(b"no gzip at all", "Content-Encoding: gzip"), "bad_response"
    yield "brotli", answer(b"\x0b\x02\x80", "Content-Encoding: br"), "not_an_image"
    yield "loop", answer(b"", "Location: loop", status="302 Found"), "redirect_loop"
    yield "loop-of-two", answer(b"", "Location: loop-of-two?b", status="301 Moved"), "redirect_loop"
    for step in range(9):
        yield (
            f"chain-{step}",
            answer(b"", f"Location: chain-{step + 1}", status="307 Temporary"),
            "too_many_redirects" if step < 3 else "",
        )
    for name, target, expected in (
        ("file", "file:///etc/passwd", "bad_scheme"),
        ("data", "data:image/png;base64,AA", "bad_scheme"),
        ("ftp", "ftp://127.0.0.1/", "bad_scheme"),
        ("gopher", "gopher://127.0.0.1/", "bad_scheme"),
        ("private", "http://10.0.0.1/x", "private_address"),
        ("metadata", "http://169.254.169.254/latest", "private_address"),
        ("other-port", f"http://127.0.0.1:{port + 1}/", "private_address"),
        ("mapped", "http://[::ffff:127.0.0.1]/", "private_address"),
        ("nowhere", "http://nowhere.invalid/", "dns"),
        ("idn", "http://bücher.invalid/ü.jpg", "dns"),
        ("broken-idn", f"http://xn--{'a' * 80}.com/", "bad_url"),
        ("empty-host", "http:///x", "http_404"),
        ("bad-port", "http://h:99999999/", "bad_url"),
        ("bracket", "http://[::1", "bad_url"),
        ("javascript", "javascript:alert(1)", "bad_scheme"),
    ):
        yield f"to-{name}", answer(b"", f"Location: {target}", status="302 Found"), expected
    yield "redirect-to-nothing", answer(b"", status="302 Found"), "http_302"
    for status in (204, 206, 304, 401, 403, 418, 451, 600, 999):
        yield f"status-{status}", answer(good, status=f"{status} No"), f"http_{status}"
    yield "promises-nothing-and-sends-much", b"HTTP/1.1 200 OK\r\n\r\n" + bytes(20_000_001), "too_large"
    yield "promises-more", answer(good, length=len(good) + 100), "truncated"
    yield "promises-terabytes", answer(good, length=10**13), "too_large"
    yield "promises-less", answer(good, length=len(good) // 2), "truncated"
    for name, value in (("negative", "-5"), ("word", "many"), ("twice", "5, 5"), ("huge", "9" * 400)):
        yield f"length-{name}", b"HTTP/1.1 200 OK\r\nContent-Length: " + value.encode() + b"\r\n\r\n" + good, ""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield "chunked", chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(good), good), "ok"
    for name, body in (
        ("nonsense", b"zz\r\n"),
        ("negative", b"-5\r\nxxxxx"),
        ("huge", b"ffffffffffff\r\n" + good),
        ("cut", b"50\r\nxx"),
        ("none", b""),
    ):
        yield f"chunked-{name}", chunked + body, ""
    yield "chunked-backwards", chunked + b"-1\r\n" + bytes(45_000_000), "too_large"
    late = "Retry-After: Mon, 01 Jan 99999999999999999999 00:00:00 GMT"
    yield "patience-without-end", answer(b"", late, status="503 Later"), "http_503"
    for name, data in (
        ("silence", b""),
        ("one-byte", b"H"),
        ("ssh", b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
        ("http-0.9", good),
        ("http-9", b"HTTP/9.9 200 OK\r\n\r\n" + good),
        ("status-cut", b"HTTP/1.1 2"),
        ("no-reason", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"),
        ("bad-status", b"HTTP/1.1 abc OK\r\n\r\n"),
        ("long-status", b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\n\r\n"),
        ("long-header", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n"),
        ("many-headers", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n" + good),
        ("continues", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
        ("null-header", b"HTTP/1.1 200 OK\r\nX\0Y: z\r\n\r\n" + good),
        ("folded", b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n" + good),
        ("latin-header", b"HTTP/1.1 200 OK\r\nContent-Type: image/j\xe9peg\r\n\r\n" + good),
        ("tls", b"\x16\x03\x01\x02\0" + bytes(300)),
    ):
        yield f"wire-{name}", data, ""
    for value in ("noai", "NOAI", "none", "googlebot: nofollow, make-a-video-system: noai", "noindex, nofollow"):
        yield f"opted-out-{value}", answer(good, f"X-Robots-Tag: {value}"), "opted_out"
    yield "reserved", answer(good, "TDM-Reservation: 1"), "opted_out"


def addresses() -> Iterator[tuple[str, str]]:
    """(address, expectation) of addresses that are themselves the trouble; no server stands behind them."""
    schemes = "file:///etc/passwd ftp://h/x.jpg data:image/png;base64,iVBORw0KGgo= data:, javascript:1 "
    schemes += "about:blank blob:http://h/1"
    for url in f"{schemes} s3://bucket/key mailto:a@b".split():
        yield url, "bad_scheme"
    broken = "http:///x http://h:port/ http://[::1/ http://h:99999/ http://[nonsense]/ http:// //h/x x.jpg HTTPS//h "
    broken += "http://.../"
    for url in f"{broken} http://{'a' * 70}.com/".split():
        yield url, ""
    for host in (
        *("127.0.0.1:1", "2130706433:1", "0x7f.1:1", "[::1]:1", "0:1", "user:pw@127.0.0.1:1", "[::ffff:127.0.0.1]:1"),
        *("[64:ff9b::7f00:1]:1", "169.254.169.254", "10.0.0.1", "[fe80::1]"),
    ):
        yield f"http://{host}/", "private_address"
    for url in (
        "http://bücher.invalid/",
        "http://例え.invalid/図.jpg",
        "http://xn--bcher-kva.invalid/",
        "http://a b.invalid/",
        f"http://h.invalid/{'x' * 100_000}",
        "http://h.invalid/\r\nX-Injected: 1",
        "http://h.invalid/\0",
        "http://h.invalid/%",
        "http://h.invalid:80/?q=ü#f",
        "http://-.invalid/",
    ):
        yield url, ""
