"""Every entrance sees the same picture: upright, opaque, 8 bits, sRGB, whatever the file's form."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from flows.cli.generate import _read_image
from mav.data.images.pictures import look, read_picture
from mav.data.images.resize import guarded_resizer
from mav.evaluation.protocols import Preparation
from mav.evaluation.reading import read_video
from mav.recipes import CascadeSizes, ImageDownload
from mav.storage import Folder

WIDTH, HEIGHT = 80, 64


def scene(alpha=False):
    """Smooth colours, all quarters different; with alpha, clear at the right."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([x * 3, y * 3, 255 - x * 2, 255 - x * 3], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels, "RGBA") if alpha else Image.fromarray(np.ascontiguousarray(pixels[..., :3]))


def saved(picture, form, **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def truth(data):
    """What Pillow makes of a file, upright and over white."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB"))


def exif(orientation):
    noted = Image.Exif()
    noted[0x0112] = orientation
    return noted


def entrances(data, folder):
    """Yields the name of each entrance and the picture that it sees."""
    yield "reader", read_picture(data)
    shard = guarded_resizer(ImageDownload(image_size=HEIGHT, encode_quality=100)).prepare(data)[0]
    yield "shards", np.asarray(Image.open(io.BytesIO(shard)).convert("RGB"))
    (folder / "frames").mkdir(exist_ok=True)
    (folder / "frames/0.png").write_bytes(data)
    yield "evaluate", read_video(Folder(str(folder)), "frames", Preparation(1))[0]
    yield "animate", _read_image(folder / "frames/0.png", CascadeSizes(base_size=16, low_size=32, high_size=HEIGHT))


FINE = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}
BLACK = Image.new("RGB", (WIDTH, HEIGHT))
FILES = {f"{form} {o}": lambda form=form, o=o: saved(scene(), form, exif=exif(o), **FINE.get(form, {}))
         for form in ("JPEG", "WEBP", "TIFF", "PNG") for o in range(1, 9)}  # fmt: skip
FILES |= {f"clear {form}": lambda form=form: saved(scene(True), form, **({"lossless": True} if form == "WEBP" else {}))
          for form in ("PNG", "WEBP", "TIFF")}  # fmt: skip
FILES |= {
    "grey with a clear level": lambda: saved(scene().convert("L"), "PNG", transparency=90),
    "colour with a clear one": lambda: saved(scene(), "PNG", transparency=scene().getpixel((9, 9))),
    "palette with a clear one": lambda: saved(scene().quantize(64), "PNG", transparency=5),
    "grey and alpha": lambda: saved(scene(True).convert("LA"), "PNG"),
    "grey and alpha TIFF": lambda: saved(scene(True).convert("LA"), "TIFF"),
    "palette": lambda: saved(scene().quantize(64), "PNG"),
    "one bit": lambda: saved(scene().convert("1"), "PNG"),
    "GIF": lambda: saved(scene().quantize(64), "GIF"),
    "clear GIF": lambda: saved(scene().quantize(64), "GIF", transparency=5),
    "animated GIF": lambda: saved(scene().quantize(64), "GIF", save_all=True, append_images=[BLACK]),
    "animated PNG": lambda: saved(scene(), "PNG", save_all=True, append_images=[BLACK]),
    "animated WEBP": lambda: saved(scene(), "WEBP", lossless=True, save_all=True, append_images=[BLACK]),
    "CMYK": lambda: saved(scene().convert("CMYK"), "JPEG", quality=100),
    "BMP": lambda: saved(scene(), "BMP"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_entrance_sees_what_a_browser_shows(name, tmp_path):
    data = FILES[name]()
    expected = truth(data).astype(int)
    assert (expected.shape[0] > expected.shape[1]) == (name[-1] in "5678")
    for entrance, seen in entrances(data, tmp_path):
        if entrance == "animate":
            fitted = ImageOps.fit(
                Image.fromarray(expected.astype(np.uint8)), (HEIGHT, HEIGHT), Image.Resampling.LANCZOS
            )
            assert np.abs(seen.astype(int) - np.asarray(fitted)).mean() < 3, entrance
        else:
            want = cv2.resize(expected.astype(np.uint8), seen.shape[1::-1], interpolation=cv2.INTER_AREA).astype(int)
            assert seen.shape == expected.shape or entrance == "shards"
            assert np.abs(seen.astype(int) - want).mean() < 4, entrance


@pytest.mark.parametrize("ending", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_have_the_colours_of_eight(ending, channels, tmp_path):
    eight = np.dstack([np.asarray(scene())[..., ::-1], np.full((HEIGHT, WIDTH), 255, np.uint8)])[
        ..., :channels
    ].squeeze()
    data = cv2.imencode(ending, eight.astype(np.uint16) * 257)[1].tobytes()
    expected = truth(cv2.imencode(".png", eight)[1].tobytes()).astype(int)
    for entrance, seen in entrances(data, tmp_path):
        if entrance != "animate":
            assert np.abs(seen.astype(int) - expected).mean() < 3, entrance


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_colours_of_a_profile_are_shown_in_srgb(form, tmp_path):
    """A profile whose red and blue are exchanged, so that a reader without it is far off."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"tXYZ"), (b"bXYZ", b"rXYZ"), (b"tXYZ", b"bXYZ"), (b"s\0R\0G\0B", b"o\0t\0h\0e")):
        profile = profile.replace(old, new)
    plain = scene()
    data = saved(plain, form, icc_profile=profile, **FINE.get(form, {}))
    expected = np.asarray(plain)[..., ::-1].astype(int)
    for entrance, seen in entrances(data, tmp_path):
        if entrance != "animate":
            assert np.abs(seen.astype(int) - expected).mean() < 6, entrance


def grey_png(bits, levels, clear):
    """A PNG of one channel, in which one level is transparent; levels: (H, W) of so many bits."""
    kinds = {b"IHDR": struct.pack(">IIBBBBB", *levels.shape[::-1], bits, 0, 0, 0, 0), b"tRNS": struct.pack(">H", clear)}
    rows = np.packbits(
        (levels[..., None] >> np.arange(bits)[::-1] & 1).reshape(len(levels), -1).astype(np.uint8), axis=1
    )
    kinds |= {b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)), b"IEND": b""}
    chunks = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
              for kind, body in kinds.items())  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_clear_level_of_a_grey_png_is_white_whatever_its_depth(bits, tmp_path):
    most = 2**bits - 1
    levels = np.linspace(0, most, WIDTH, dtype=np.int64)[None].repeat(HEIGHT, axis=0)
    clear = int(levels[0, WIDTH // 3])
    expected = np.where(levels == clear, 255, levels * 255 // most)
    for entrance, seen in entrances(grey_png(bits, levels, clear), tmp_path):
        if entrance in ("reader", "evaluate"):
            assert np.abs(seen.astype(int) - expected[..., None]).max() <= 1, entrance


def gif_on_a_screen(width, height):
    """A GIF whose picture of 80 x 64 is on a screen of another size, without an end."""
    data = bytearray(saved(scene().quantize(64), "GIF").rstrip(b"\x3b"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


@pytest.mark.parametrize("screen", [(WIDTH, HEIGHT), (WIDTH // 2, HEIGHT // 2), (0, 0)])
def test_a_gif_without_an_end_or_larger_than_its_screen_is_shown(screen, tmp_path, capfd):
    expected = np.asarray(scene().quantize(64).convert("RGB"))
    for entrance, seen in entrances(gif_on_a_screen(*screen), tmp_path):
        if entrance in ("reader", "evaluate"):
            assert np.array_equal(seen, expected), entrance
    with pytest.raises(ValueError, match="undecodable"):
        read_picture(gif_on_a_screen(*screen)[:-500])
    assert capfd.readouterr() == ("", "")  # OpenCV would print a page of it


def segment(kind, body):
    return b"\xff" + bytes([kind]) + struct.pack(">H", len(body) + 2) + body


def test_a_jpeg_ends_where_its_own_segments_end():
    small, whole = saved(scene().resize((16, 16)), "JPEG"), saved(scene(), "JPEG", progressive=True)
    noted = whole[:2] + segment(0xE1, b"Exif\0\0" + small) + segment(0xFE, b"\xff\xda \xff\xd9") + whole[2:]
    for behind in (b"", b"\xff\xda more", small[:50], b"\xff\xd8\xff\xda" * 9, bytes(500)):
        assert look(noted + behind, 10**8).problem == ""
    for cut in (len(noted) - 2, len(noted) - 200, len(noted) // 2 + len(small) // 2):
        assert look(noted[:cut], 10**8).problem == "truncated"
        assert look(noted[:cut] + b"\xff", 10**8).problem == "truncated"


def test_a_png_ends_with_its_last_chunk():
    data = saved(scene(), "PNG")
    text = b"tEXt" + b"Comment\0IEND"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    noted = data[:33] + chunk + data[33:]
    assert look(noted, 10**8).problem == ""
    assert look(noted[:-14], 10**8).problem == "truncated"
    assert look(noted + b"behind", 10**8).problem == ""


def test_no_picture_is_a_reason():
    for data, reason in (
        (b"", "not an image"),
        (b"<html>", "not an image"),
        (saved(scene(), "JPEG")[:-50], "truncated"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_picture(data)


def test_real_pictures(real_data, monkeypatch):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", PngImagePlugin.MAX_TEXT_MEMORY)  # one has a long text
    for path in sorted((real_data / "images").iterdir()):
        expected = truth(path.read_bytes()).astype(int)
        assert np.abs(read_picture(path.read_bytes()).astype(int) - expected).max() <= 4, path.name


def test_no_picture_starts_another_program(monkeypatch):
    """An EPS under any name is no picture: Pillow would hand it to Ghostscript."""
    from PIL import EpsImagePlugin

    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript"))
    with pytest.raises(ValueError, match="not an image"):
        read_picture(eps)
    assert look(eps, 10**8).problem == "not_an_image"


@pytest.mark.parametrize("filler", [b"\xff\xfe\x00\x02", b"\xff"])
def test_a_jpeg_of_many_segments_is_not_walked_through(filler, monkeypatch):
    data = saved(scene(), "JPEG")
    assert look(data[:2] + 100 * filler + data[2:], 10**8).problem == ""
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    assert look(data[:2] + 20_000 * filler + data[2:], 10**8).problem == "undecodable"


def test_a_jpeg_of_many_scans_is_not_decoded():
    data = saved(scene(), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert look(data[:-2] + 20 * scan + data[-2:], 10**8).problem == ""
    assert look(data[:-2] + 64 * scan + data[-2:], 10**8).problem == "undecodable"
