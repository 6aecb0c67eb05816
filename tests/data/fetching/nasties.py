"""Hundreds of answers and addresses that a web crawl meets and that must not hurt: made here, deterministic."""

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

Nasty = tuple[
    str, bytes, str
]  # name, the raw HTTP answer, what is expected: a reason, "ok", or "" for any of a closed set


def encoded(form: str = "JPEG", size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: Any) -> bytes:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).convert(
        mode
    )
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {len(body) if length is None else length}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def pictures() -> Iterator[tuple[str, bytes, str]]:
    """(name, body, expectation) of bodies."""
    whole = {form: encoded(form) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}
    for form, data in whole.items():
        yield f"whole-{form}", data, "ok"
        for part in range(1, 10):
            expected = "truncated" if form == "JPEG" and part > 4 else ""
            yield f"cut-{form}-{part}", data[: len(data) * part // 10], expected
        for seed in range(10):
            rng, broken = np.random.default_rng(seed), bytearray(data)
            for place in rng.integers(len(data) // 10, len(data), 12):
                broken[place] ^= int(rng.integers(1, 255))
            yield f"flipped-{form}-{seed}", bytes(broken), ""
        for place in range(0, 40, 8):
            yield f"zeroed-{form}-{place}", data[:place] + bytes(8) + data[place + 8 :], ""
    for size in (0, 1, 2, 3, 8, 20):
        yield f"bytes-{size}", whole["PNG"][:size], "" if size == 20 else "not_an_image"
    yield from _polyglots(whole)
    yield from _bombs()
    yield from _odd_but_good()
    kinds = {
        "html": b"<!DOCTYPE html><html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "json": b"{}",
        "pdf": b"%PDF-1.7\n%%EOF",
        "zip": b"PK\x05\x06" + bytes(18),
        "exe": b"MZ" + bytes(200),
        "mp4": b"\0\0\0\x18ftypmp42" + bytes(50),
        "text": "zażółć".encode(),
        "utf16": "<html>".encode("utf-16"),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "psd": b"8BPS\0\1" + bytes(30),
        "ico": b"\0\0\1\0\1\0" + bytes(30),
        "heic": b"\0\0\0\x18ftypheic" + bytes(50),
        "jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
        "xml": b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
    }
    for kind, body in kinds.items():
        yield f"wrong-type-{kind}", body, "not_an_image"


def _polyglots(whole: dict[str, bytes]) -> Iterator[tuple[str, bytes, str]]:
    yield "zip-behind-jpeg", whole["JPEG"] + b"PK\x03\x04" + bytes(100), "ok"
    yield "exe-behind-png", whole["PNG"] + b"MZ" + bytes(300), "ok"
    yield "script-in-gif", whole["GIF"] + b"*/=1;alert(1)//", "ok"
    yield "jpeg-behind-html", b"<html>" + whole["JPEG"], "not_an_image"
    yield "jpeg-behind-pdf", b"%PDF-1.4\n" + whole["JPEG"], "not_an_image"
    yield "png-behind-jpeg-start", b"\xff\xd8\xff" + whole["PNG"], ""
    yield "two-jpegs", whole["JPEG"] * 2, "ok"
    yield "jpeg-magic-only", b"\xff\xd8\xff\xe0" + bytes(500), ""
    yield "png-magic-only", b"\x89PNG\r\n\x1a\n" + bytes(500), "not_an_image"
    yield "webp-magic-only", b"RIFF\x10\0\0\0WEBPVP8 " + bytes(500), ""
    yield (
        "tiff-loop",
        b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 1, 9) + struct.pack("<I", 8),
        "",
    )


def _bombs() -> Iterator[tuple[str, bytes, str]]:
    for width, height in (
        (60_000, 60_000),
        (2**31 - 1, 1),
        (1, 2**31 - 1),
        (2**31 - 1, 2**31 - 1),
        (10_001, 10_000),
        (0, 10),
        (10, 0),
    ):
        yield (
            f"png-bomb-{width}x{height}",
            png(width, height),
            "undecodable" if not width * height else "too_many_pixels",
        )
    yield (
        "png-really-inflates",
        png(9000, 9000, zlib.compress(bytes(9000 * 9000 // 8 + 9000), 9), depth=1, colour=0),
        "ok",
    )
    gif = bytearray(encoded("GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    yield "gif-bomb", bytes(gif), "too_many_pixels"
    bmp = bytearray(encoded("BMP"))
    for width, height in ((2**30, 2**30), (2**31 - 1, 3), (100_000, -100_000)):
        bmp[18:26] = struct.pack("<ii", width, height)
        yield f"bmp-bomb-{width}x{height}", bytes(bmp), "too_many_pixels"
    jpeg = bytearray(encoded())
    at = jpeg.find(b"\xff\xc0") + 5
    for height, width in ((65_500, 65_500), (65_535, 65_535), (0, 40), (30, 0)):
        jpeg[at : at + 4] = struct.pack(">HH", height, width)
        yield f"jpeg-bomb-{width}x{height}", bytes(jpeg), "too_many_pixels" if width * height else "not_an_image"
    for count in (100, 1000):
        yield f"gif-of-{count}-frames", _animation("GIF", count), "ok"
    for kind, chunk in (
        ("zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000), 9)),
        ("iCCP", b"a\0\0" + zlib.compress(bytes(50_000_000), 9)),
        ("tEXt", b"a\0" + b"x" * 2_000_000),
    ):
        data = encoded("PNG")
        yield f"png-{kind}-bomb", data[:33] + _chunk(kind.encode(), chunk) + data[33:], ""
    exif = b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65_527)
    yield "jpeg-with-3-MB-of-headers", encoded()[:2] + exif * 50 + encoded()[2:], ""
    yield "jpeg-with-endless-segments", b"\xff\xd8" + b"\xff\xfe\x00\x02" * 500_000 + encoded()[2:], ""


def _odd_but_good() -> Iterator[tuple[str, bytes, str]]:
    modes = {
        "JPEG": ("CMYK", "L"),
        "PNG": ("P", "1", "LA", "RGBA"),
        "WEBP": ("RGBA",),
        "GIF": ("P",),
        "TIFF": ("L", "1"),
        "BMP": ("L",),
    }
    for form, mode in ((form, mode) for form, group in modes.items() for mode in group):
        yield f"mode-{mode}-{form}", encoded(form, mode=mode), "ok"
    yield "mode-CMYK-TIFF", encoded("TIFF", mode="CMYK"), ""
    yield "progressive", encoded(progressive=True), "ok"
    yield "one-pixel", encoded(size=(1, 1)), "ok"
    yield "long", encoded(size=(1500, 1)), "ok"
    yield "too-long", encoded(size=(3000, 1)), "too_many_pixels"
    yield "bomb-when-enlarged", encoded(size=(1, 60_000)), "too_many_pixels"
    yield "lossless-webp", encoded("WEBP", lossless=True), "ok"
    for orientation in (*range(10), 65_535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for form in ("JPEG", "WEBP"):
            yield f"turned-{form}-{orientation}", encoded(form, exif=exif.tobytes()), "ok"
    for form in ("GIF", "WEBP", "PNG"):
        yield f"animated-{form}", _animation(form, 5), "ok"
    deep = io.BytesIO()
    Image.fromarray(np.full((30, 40), 40_000, np.uint16)).save(deep, "PNG")
    yield "16-bit-png", deep.getvalue(), "ok"
    for values in (
        np.full((30, 40), 0.5, np.float32),
        np.full((30, 40), np.nan, np.float32),
        np.full((30, 40), 7, np.int32),
    ):
        deep = io.BytesIO()
        Image.fromarray(values).save(deep, "TIFF")
        yield f"tiff-{values.dtype}-{values[0, 0]}", deep.getvalue(), ""


def _animation(form: str, count: int) -> bytes:
    frames = [Image.new("RGB", (40, 30), (i % 255, 0, 0)) for i in range(count)]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def png(width: int, height: int, data: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header promises a size; the pixels behind it do not matter."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", data or zlib.compress(bytes(100)))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


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
    schemes = "file:///etc/passwd ftp://h/x.jpg data:image/png;base64,iVBORw0KGgo= data:, javascript:1 about:blank blob:http://h/1"
    for url in f"{schemes} s3://bucket/key mailto:a@b".split():
        yield url, "bad_scheme"
    broken = "http:///x http://h:port/ http://[::1/ http://h:99999/ http://[nonsense]/ http:// //h/x x.jpg HTTPS//h http://.../"
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
