"""Honest pictures of rare kinds are read as their formats say, written here byte by byte."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mav.data.images.pictures import look, read_picture
from mav.data.videos.shown import ShownVideo

HEIGHT, WIDTH = 32, 40
Y, X = np.mgrid[:HEIGHT, :WIDTH]
COLOURS = np.stack([X * 6, Y * 7, 255 - X * 6], axis=-1).astype(np.uint8)
GREY = (X * 6).astype(np.uint8)
ALPHA = np.where(X < WIDTH // 2, 64, 255).astype(np.uint8)
OVER_WHITE = np.rint(COLOURS * (ALPHA[..., None] / 255) + 255 - ALPHA[..., None]).astype(np.uint8)


def grey(levels):
    return np.dstack([levels] * 3)


def tiff(body, photometric, bits, channels=1, planes=1, extra=None):
    """An uncompressed TIFF of one strip a plane."""
    strips = channels if planes == 2 else 1
    length = len(body) // strips
    tags = {256: [WIDTH], 257: [HEIGHT], 258: [bits] * channels, 259: [1], 262: [photometric]}
    tags |= {273: [8 + i * length for i in range(strips)], 277: [channels], 278: [HEIGHT], 279: [length] * strips}
    tags |= {284: [planes]} | ({338: [extra]} if extra is not None else {})
    at, entries, behind = 8 + len(body), b"", b""
    for tag, values in tags.items():
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            place = at + 6 + 12 * len(tags) + len(behind)
            behind += packed
            packed = struct.pack("<I", place)
        entries += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", at) + body + struct.pack("<H", len(tags)) + entries + bytes(4) + behind


def four_bits(levels):
    return (levels[:, ::2] >> 4 << 4 | levels[:, 1::2] >> 4).astype(np.uint8)


def deep(levels):
    return levels.astype("<u2") * 257


PREMULTIPLIED = np.rint(COLOURS * (ALPHA[..., None] / 255)).astype(np.uint8)
TIFFS = {
    "16 bits, white is zero": (tiff(deep(255 - GREY).tobytes(), 0, 16), grey(GREY)),
    "16 bits, black is zero": (tiff(deep(GREY).tobytes(), 1, 16), grey(GREY)),
    "8 bits, white is zero": (tiff((255 - GREY).tobytes(), 0, 8), grey(GREY)),
    "4 bits, white is zero": (tiff(four_bits(255 - GREY).tobytes(), 0, 4), grey(GREY >> 4) * 17),
    "4 bits, black is zero": (tiff(four_bits(GREY).tobytes(), 1, 4), grey(GREY >> 4) * 17),
    "1 bit, white is zero": (tiff(np.packbits(GREY < 128, axis=1).tobytes(), 0, 1), grey(255 * (GREY >= 128))),
    "planes": (tiff(COLOURS.transpose(2, 0, 1).tobytes(), 2, 8, 3, planes=2), COLOURS),
    "alpha": (tiff(np.dstack([COLOURS, ALPHA]).tobytes(), 2, 8, 4, extra=2), OVER_WHITE),
    "premultiplied alpha": (tiff(np.dstack([PREMULTIPLIED, ALPHA]).tobytes(), 2, 8, 4, extra=1), OVER_WHITE),
    "deep alpha": (tiff(deep(np.dstack([COLOURS, ALPHA])).tobytes(), 2, 16, 4, extra=2), OVER_WHITE),
    "a fourth channel that is no alpha": (tiff(np.dstack([COLOURS, ALPHA]).tobytes(), 2, 8, 4, extra=0), COLOURS),
}


def check(data, expected, most=3.0):
    seen = read_picture(data).astype(int)
    assert seen.shape == expected.shape
    assert np.abs(seen - expected).mean() < most


@pytest.mark.parametrize("name", TIFFS)
def test_tiffs(name):
    check(*TIFFS[name])


def test_a_tiff_of_a_kind_that_nobody_reads_is_refused():
    planes = tiff(deep(COLOURS.transpose(2, 0, 1)).tobytes(), 2, 16, 3, planes=2)  # Pillow would read it wrongly
    for data in (planes, tiff(deep(np.dstack([GREY, ALPHA])).tobytes(), 1, 16, 2, extra=2)):
        with pytest.raises(ValueError, match="undecodable"):
            read_picture(data)


def bitmap(bits, pixels, masks=(), size=40, compression=3, top_down=False):
    """A BMP; size: bytes of its header."""
    header = struct.pack("<IiiHHI", size, WIDTH, -HEIGHT if top_down else HEIGHT, 1, bits, compression)
    told = struct.pack(f"<{len(masks)}I", *masks)
    header = (header.ljust(40, b"\0") + told).ljust(size, b"\0")
    if size == 12:
        header = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, bits)
    lines = pixels if top_down else pixels[::-1]
    return b"BM" + struct.pack("<III", 0, 0, 14 + len(header)) + header + lines.tobytes()


def masked(*places):
    """COLOURS in words, their masks, and the colours that are left; places: lowest bit and number of bits."""
    words, masks, left = np.zeros((HEIGHT, WIDTH), np.uint32), [], []
    for channel, (lowest, bits) in enumerate(places):
        levels = np.rint(COLOURS[..., channel] / 255 * ((1 << bits) - 1)).astype(np.uint32)
        words |= levels << lowest
        masks.append(((1 << bits) - 1) << lowest)
        left.append(levels * 255 / ((1 << bits) - 1))
    return words, masks, np.stack(left, axis=-1)


MASKS = {
    "5-6-5": (16, ((11, 5), (5, 6), (0, 5))),
    "5-5-5": (16, ((10, 5), (5, 5), (0, 5))),
    "4-4-4": (16, ((8, 4), (4, 4), (0, 4))),
    "5-6-5 from blue to red": (16, ((0, 5), (5, 6), (11, 5))),
    "8-8-8": (32, ((16, 8), (8, 8), (0, 8))),
    "8-8-8 from blue to red": (32, ((0, 8), (8, 8), (16, 8))),
    "8-8-8 at the top": (32, ((24, 8), (16, 8), (8, 8))),
    "10-10-10": (32, ((20, 10), (10, 10), (0, 10))),
}


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("size", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("name", MASKS)
def test_bitmaps_with_masks(name, size, top_down):
    bits, places = MASKS[name]
    words, masks, expected = masked(*places)
    data = bitmap(bits, words.astype(f"<u{bits // 8}"), masks, size, top_down=top_down)
    check(data, expected, most=0.6)
    assert look(data, 10**8).problem == ""
    assert look(data[:-100], 10**8).problem == "truncated"
    assert look(data, WIDTH * HEIGHT - 1).problem == "too_many_pixels"


def test_bitmaps_without_masks():
    words, _, expected = masked((10, 5), (5, 5), (0, 5))
    check(bitmap(16, words.astype("<u2"), compression=0), expected, most=0.6)
    backward = COLOURS[..., ::-1]
    for size in (12, 40, 64, 124):
        check(bitmap(24, backward, size=size, compression=0), COLOURS, most=0.1)
    check(bitmap(32, np.dstack([backward, 0 * GREY]), compression=0), COLOURS, most=0.1)
    check(bitmap(24, backward, compression=0, top_down=True), COLOURS, most=0.1)


@pytest.mark.parametrize(("size", "compression"), [(40, 6), (56, 3), (108, 3), (124, 3)])
def test_a_bitmap_with_alpha_lies_over_white_unless_it_is_clear_all_over(size, compression):
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    for alpha, expected in ((ALPHA, OVER_WHITE), (0 * ALPHA, COLOURS)):
        check(bitmap(32, np.dstack([COLOURS[..., ::-1], alpha]), masks, size, compression), expected, most=1)


def png(pixels, colour, *chunks):
    """A PNG of 8 bits; colour: 0 for grey, 2 for RGB."""
    lines = zlib.compress(b"".join(b"\0" + line.tobytes() for line in pixels))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, colour, 0, 0, 0)
    every = ((b"IHDR", header), *chunks, (b"IDAT", lines), (b"IEND", b""))
    parts = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
             for kind, body in every)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gamma(value):
    return b"gAMA", struct.pack(">I", round(value * 100_000))


def test_the_gamma_of_a_png_is_applied_unless_it_says_that_it_is_srgb():
    light = np.where(COLOURS <= 10, COLOURS / 255 / 12.92, ((COLOURS / 255 + 0.055) / 1.055) ** 2.4)
    for value in (1.0, 1 / 1.8):
        levels = np.rint(255 * light**value).astype(np.uint8)
        check(png(levels, 2, gamma(value)), COLOURS)
        check(png(levels[..., 0], 0, gamma(value)), grey(COLOURS[..., 0]))
    for chunks in ([gamma(0.45455)], [(b"sRGB", b"\0"), gamma(1)], [gamma(0)], [gamma(20_000)], [(b"gAMA", b"")]):
        check(png(COLOURS, 2, *chunks), COLOURS, most=0.1)


def grey_profile(power):
    """An ICC profile of one channel, whose levels are a power of light."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"grey\0" + bytes(79), b"wtpt": b"XYZ \0\0\0\0" + white}
    tags[b"kTRC"] = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(power * 256), 0)
    at, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", at + len(body), len(tag))
        body += tag
    header = struct.pack(">I4sI4s4s4s12x4s28x", at + len(body), b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp")
    return (header + white).ljust(128, b"\0") + table + body


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_grey_with_a_profile_is_shown_in_srgb(form):
    """Photoshop writes grey pictures with the dot gain of a press."""
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, form, icc_profile=grey_profile(1.0))
    light = GREY / 255
    check(buffer.getvalue(), grey(255 * np.where(light < 0.0031, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)))


def gif(*frames, screen=(WIDTH, HEIGHT)):
    """An animated GIF of plain frames (colour, left, top, width, height, disposal); colours are red, green and blue."""
    data = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x91, 0, 0) + bytes((255, 0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0))
    for colour, left, top, width, height, disposal in frames:
        buffer = io.BytesIO()
        picture = Image.new("P", (width, height), colour)
        picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
        picture.save(buffer, "GIF", optimize=False)
        whole = buffer.getvalue()
        drawn = whole[whole.index(b",") + 10 : -1]  # behind the frame's place and size
        data += b"\x21\xf9\x04" + struct.pack("<BHBB", disposal << 2, 10, 0, 0)
        data += b"," + struct.pack("<HHHHB", left, top, width, height, 0) + drawn
    return data + b";"


def painted(*rectangles):
    pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    for colour, left, top, width, height in rectangles:
        pixels[top : top + height, left : left + width] = np.eye(3, dtype=np.uint8)[colour] * 255
    return pixels


ONE, TWO = (1, 4, 6, 10, 8), (2, 20, 10, 12, 9)


def test_what_no_frame_of_a_gif_covers_is_white():
    assert np.array_equal(read_picture(gif((*ONE, 0))), painted(ONE))


@pytest.mark.parametrize(("disposal", "second"), [(0, (ONE, TWO)), (1, (ONE, TWO)), (2, (TWO,)), (3, (TWO,))])
def test_what_a_frame_of_a_gif_clears_is_white(disposal, second):
    frames = ShownVideo(gif((*ONE, disposal), (*TWO, 0))).frames()
    assert np.array_equal(frames[0], painted(ONE))
    assert np.array_equal(frames[1], painted(*second))
