"""Picture files that are whole, cut, disguised, huge or odd, made here and deterministic."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image


def encoded(form: str = "JPEG", size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: Any) -> bytes:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).convert(
        mode
    )
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


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
