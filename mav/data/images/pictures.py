"""The one reader of pictures, for shards, evaluation, studies and the commands: upright, opaque, 8 bits, sRGB.

A picture's header is read before it is decoded, so that a decompression bomb is refused. OpenCV decodes what it decodes
rightly, JPEG, PNG and WEBP, and Pillow the rest.
"""

import io
import re
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from mav.data.images.bitmaps import masked_bitmap, masked_pixels
from mav.data.images.frames import eight_bits, frames_over_white

# Pillow warns about large pictures, whose limit is ours to set, and about odd metadata; OpenCV prints of broken ones.
warnings.filterwarnings("ignore", module=r"PIL\.")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # of pictures from the web
# Of a user's own pictures too. Pillow's other readers are for rare forms, and that of EPS starts Ghostscript.
OWN_FORMATS = (*FORMATS, "AVIF", "JPEG2000", "PPM", "TGA")
JPEGS = ("JPEG", "MPO")
MOST_SEGMENTS = 10_000  # of a JPEG, which Pillow reads one by one
MOST_SCANS = 64  # of a progressive JPEG: some need a dozen, and each takes as long as the picture is large
PNG = b"\x89PNG\r\n\x1a\n"
TIFFS = (b"II*\0", b"MM\0*")  # how they begin
ORIENTATION = 0x0112  # EXIF's tag
USUAL_GAMMA = 0.45455  # of a PNG: what sRGB is about
MAX_PIXELS = 178_000_000  # of a user's own picture: what Pillow takes
REDUCTIONS = (8, 4, 2)  # scales at which a JPEG can be decoded
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # among entropy-coded data: what ends it
GREYS = ("1", "L", "LA", "I;16", "I;16B", "I", "F")  # Pillow's modes
GREY = {1: 255, 2: 85, 4: 17}  # bits of a PNG's grey -> what its levels are multiplied by
BARE = frozenset(range(0xD0, 0xD8)) | {0x01, 0xD8}  # JPEG markers without a length


@dataclass(frozen=True)
class Look:
    """What a picture's header says. problem: the reason to refuse it, or empty."""

    problem: str = ""
    form: str = ""
    mode: str = ""  # Pillow's name of the kind of pixel
    width: int = 0  # as stored
    height: int = 0
    orientation: int = 1  # EXIF's: from 5 on the picture lies on its side
    profile: bytes = b""  # the ICC profile
    clear: int = -1  # of a grey PNG, the level that is transparent, as it is decoded: of 8 bits or 16
    gamma: float = 0.0  # of a PNG: the power of light that its levels are; 0: they are in sRGB, or have a profile


def look(data: bytes, max_pixels: int, formats: tuple[str, ...] = FORMATS) -> Look:
    """Reads headers only, so that a decompression bomb is refused before it is decoded.

    Reasons to refuse are not_an_image, truncated, too_many_pixels and undecodable.
    """
    try:
        # PNG headers are read here, because Pillow refuses real PNGs for long texts among their chunks.
        if data[:8] == PNG and data[12:16] == b"IHDR":
            seen, whole = _look_at_png(data)
        elif bitmap := masked_bitmap(data):  # Pillow knows a few masks alone
            seen = Look("", "BMP", "RGBA", bitmap.width, abs(bitmap.height))
            whole = bitmap.is_whole(data)
        else:
            ends = data[:2] != b"\xff\xd8" or _jpeg_ends(data)
            image = Image.open(io.BytesIO(data), formats=formats)
            form, profile = image.format or "", image.info.get("icc_profile") or b""
            orientation = _orientation(image.getexif())
            seen = Look("", form, image.mode, *image.size, orientation, bytes(profile))
            whole = ends if form in JPEGS else form != "WEBP" or len(data) >= _riff_size(data)
    except Image.DecompressionBombError:
        return Look("too_many_pixels")
    except UnidentifiedImageError:
        return Look("undecodable" if data[:4] in TIFFS and "TIFF" in formats else "not_an_image")
    except Exception:  # parsers of hostile bytes raise anything, struct.error and RecursionError included
        return Look("undecodable")
    if seen.width * seen.height > max_pixels:
        return Look("too_many_pixels")
    if min(seen.width, seen.height) < 1:
        return Look("undecodable")
    return seen if whole else Look("truncated")


def _orientation(exif: Image.Exif) -> int:
    value = exif.get(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _look_at_png(data: bytes) -> tuple[Look, bool]:
    """Walks the chunks of a PNG; also says whether its last one is there."""
    size = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    mode = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}.get(data[25], "") if data[24] <= 8 else "I;16"
    at, orientation, profile, clear, gamma, is_srgb = 8, 1, b"", -1, 0.0, False
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + min(length, 1 << 24)]
        if kind == b"IEND":
            told = 0.0 if is_srgb or profile or abs(gamma / USUAL_GAMMA - 1) < 0.05 or not 0.1 < gamma < 10 else gamma
            return Look("", "PNG", mode, *size, orientation, profile, clear, told), True
        with suppress(Exception):  # an odd note does not make an odd picture
            if kind == b"eXIf":
                exif = Image.Exif()
                exif.load(b"Exif\0\0" + body)
                orientation = _orientation(exif)
            elif kind == b"iCCP":
                profile = zlib.decompressobj().decompress(body.partition(b"\0")[2][1:], 1 << 24)
            elif kind == b"tRNS":
                clear = int.from_bytes(body[:2], "big") * GREY.get(data[24], 1) if data[25] == 0 else -1
            elif kind == b"gAMA":
                gamma = int.from_bytes(body[:4], "big") / 100_000
            is_srgb |= kind in (b"sRGB", b"cICP")
        at += 12 + length
    return Look("", "PNG", mode, *size, orientation, profile, clear), False


def _jpeg_ends(data: bytes) -> bool:
    """Walks a JPEG's segments to its end, since OpenCV fills what is missing with grey without an error.

    Thumbnails within a segment and files behind the picture have markers of their own, which do not count. Raises
    ValueError for more scans or segments than any picture needs.
    """
    at, scans, steps = 2, 0, 0
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 1:
        kind = data[at + 1]
        steps += 1
        if steps > MOST_SEGMENTS:
            raise ValueError("too many segments")
        if kind == 0xD9:
            return True
        if kind in (0x00, 0xFF) or kind in BARE:
            at += 1 if kind == 0xFF else 2
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if kind == 0xDA:  # a scan: entropy-coded data follow
            scans += 1
            if scans > MOST_SCANS:
                raise ValueError("too many scans")
            found = JPEG_MARKER.search(data, at)
            if found is None:
                return False
            at = found.start()
    return False


def _riff_size(data: bytes) -> int:
    return int.from_bytes(data[4:8], "little") + 8


def unpack(data: bytes, seen: Look, side: int = 1 << 30) -> np.ndarray | None:
    """Returns uint8 pixels in OpenCV's channel order, upright and opaque; None when the bytes cannot be decoded.

    A JPEG whose shorter side is at least twice `side` is decoded at a reduced size that is not smaller than `side`.
    """
    pixels: np.ndarray | None
    if seen.form == "BMP" and (bitmap := masked_bitmap(data)):
        pixels = masked_pixels(data, bitmap)
    elif _is_for_pillow(seen):
        pixels = _by_pillow(data)
    else:
        pixels = _by_opencv(data, seen, side)
    if pixels is None:
        return None
    if pixels.ndim == 3 and pixels.shape[2] == 4:  # transparent pictures are laid over white
        alpha = pixels[:, :, 3, np.newaxis]
        flat = alpha / 255 * pixels[..., :3] + 255 - alpha
        pixels = np.rint(flat.clip(min=0, max=255)).astype(np.uint8)
    return _in_srgb(data, pixels, seen)


def _by_opencv(data: bytes, seen: Look, side: int) -> np.ndarray | None:
    flags = cv2.IMREAD_COLOR if seen.form in JPEGS and seen.orientation > 1 else cv2.IMREAD_UNCHANGED
    reduction = next((r for r in REDUCTIONS if min(seen.width, seen.height) >= r * side), 1)
    if reduction > 1 and seen.form in JPEGS and seen.mode in ("RGB", "L"):
        flags = getattr(cv2, f"IMREAD_REDUCED_{'COLOR' if seen.mode == 'RGB' else 'GRAYSCALE'}_{reduction}")
        flags |= 0 if seen.orientation > 1 else cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        return None
    clear = pixels == seen.clear if seen.clear >= 0 and pixels.ndim == 2 else None
    pixels = eight_bits(pixels)
    if clear is not None:
        pixels[clear] = 255
    return _turned(pixels, seen.orientation) if seen.form not in JPEGS else pixels  # JPEGS it turns itself


def read_picture(data: bytes) -> np.ndarray:
    """Returns uint8 (H, W, 3) RGB of a user's own picture. Raises ValueError with the reason when it has none."""
    seen = look(data, MAX_PIXELS, OWN_FORMATS)
    if seen.problem:
        raise ValueError(seen.problem.replace("_", " "))
    try:
        pixels = unpack(data, seen)
    except Exception:  # decoders of odd bytes raise anything
        pixels = None
    if pixels is None:
        raise ValueError("undecodable")
    return np.ascontiguousarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB) if pixels.ndim == 2 else pixels[..., ::-1])


def _is_for_pillow(seen: Look) -> bool:
    """Says whether OpenCV reads some pictures of such a form wrongly, or not at all.

    Of GIFs it wants an end, and every frame within the screen; it exchanges black and white of deep TIFFs, takes their
    planes for lines and any fourth channel for alpha; it turns bitmaps of OS/2 upside down.
    """
    return seen.form in ("GIF", "TIFF", "BMP") or seen.form not in FORMATS + JPEGS


def _by_pillow(data: bytes) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(data), formats=OWN_FORMATS) as picture:
            pixels = next(frames_over_white(picture))
            return _turned(pixels, _orientation(picture.getexif()))[..., ::-1]
    except (OSError, ValueError, SyntaxError):
        return None


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns a picture upright, as EXIF's orientation (1 to 8) asks for."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _in_srgb(data: bytes, pixels: np.ndarray, seen: Look) -> np.ndarray:
    """Returns colours in sRGB, as browsers show them. A profile that cannot be applied is left out, as they do."""
    if seen.gamma:
        light = (np.arange(256) / 255) ** (1 / seen.gamma)
        levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
        return np.rint(255 * levels).astype(np.uint8)[pixels]
    if not seen.profile or b"sRGB" in seen.profile or b"s\0R\0G\0B" in seen.profile:
        return pixels
    with suppress(ImageCms.PyCMSError, OSError, ValueError):
        profile = ImageCms.ImageCmsProfile(io.BytesIO(seen.profile))
        space, to = profile.profile.xcolor_space.strip(), ImageCms.createProfile("sRGB")
        if space == "GRAY" and seen.mode in GREYS:
            grey = Image.fromarray(pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., 0]))
            return np.asarray(ImageCms.profileToProfile(grey, profile, to, outputMode="RGB"))[..., ::-1]
        if space == "RGB" and pixels.ndim == 3:
            rgb = Image.fromarray(np.ascontiguousarray(pixels[..., ::-1]))
            return np.asarray(ImageCms.profileToProfile(rgb, profile, to))[..., ::-1]
        if space == "CMYK" and seen.mode == "CMYK":
            colours = ImageCms.profileToProfile(
                Image.open(io.BytesIO(data), formats=FORMATS), profile, to, outputMode="RGB"
            )
            return _turned(np.asarray(colours), seen.orientation)[..., ::-1]
    return pixels
