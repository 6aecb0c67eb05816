"""Turns fetched pictures into stored ones: inspected before decoding, resized, encoded as JPEG.

This is img2dataset's Resizer with its own sizes, filters and quality, but thread-safe (its own redirects the whole
process's output around every picture), bounded in memory, and faster with large JPEGs, which it decodes at a half, a
quarter or an eighth of their size.
"""

import contextlib
import io
import os
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mav.recipes import ImageDownload

# img2dataset's resizing library would otherwise ask the package index for updates.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Pillow warns about large pictures, whose limit is ours to set, and about odd metadata.
warnings.filterwarnings("ignore", module=r"PIL\.")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
JPEGS = ("JPEG", "MPO")
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
PNG = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112  # EXIF's tag
LONGEST_JPEG = 65_500
LARGE_PIXELS = 16_000_000  # pictures of this size are decoded one at a time in a process, which bounds its memory
REDUCTIONS = (8, 4, 2)  # scales at which a JPEG can be decoded

# The picture, its width and height, its width and height before, and the reason for which there is none.
Prepared = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]

_one_large = threading.Lock()


@dataclass(frozen=True)
class Look:
    """What a picture's header says. problem: the reason to refuse it, or empty."""

    problem: str = ""
    form: str = ""
    mode: str = ""  # Pillow's name of the kind of pixel; for PNGs only I;16 is reported
    width: int = 0
    height: int = 0
    turned: bool = False  # the header asks for a rotation or a flip


def look(data: bytes, max_pixels: int) -> Look:
    """Reads headers only, so that a decompression bomb is refused before it is decoded.

    Reasons to refuse are not_an_image, truncated, too_many_pixels and undecodable.
    """
    try:
        # PNG headers are read here, because Pillow refuses real PNGs for long texts among their chunks.
        if data[:8] == PNG and data[12:16] == b"IHDR":
            size = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
            form, mode, turned = "PNG", "I;16" if data[24] == 16 else "", False
        else:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            form, mode, size = image.format or "", image.mode, image.size
            turned = image.getexif().get(ORIENTATION, 1) not in (0, 1)
    except Image.DecompressionBombError:
        return Look("too_many_pixels")
    except UnidentifiedImageError:
        return Look("not_an_image")
    except Exception:  # parsers of hostile bytes raise anything, struct.error and RecursionError included
        return Look("undecodable")
    if size[0] * size[1] > max_pixels:
        return Look("too_many_pixels")
    if min(size) < 1:
        return Look("undecodable")
    return Look("" if _whole(data, form) else "truncated", form, mode, *size, turned)


def unpack(data: bytes, seen: Look, side: int) -> np.ndarray | None:
    """Returns pixels in OpenCV's channel order, upright, 8 bits a channel; None when the bytes cannot be decoded.

    A JPEG whose shorter side is at least twice `side` is decoded at a reduced size that is not smaller than `side`.
    """
    buffer = np.frombuffer(data, np.uint8)
    if seen.turned and seen.form not in JPEGS:
        turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        alpha = "A" in turned.getbands()
        return np.asarray(turned.convert("RGBA" if alpha else "RGB"))[..., [2, 1, 0, 3] if alpha else [2, 1, 0]]
    flags = cv2.IMREAD_COLOR if seen.turned else cv2.IMREAD_UNCHANGED
    reduction = next((r for r in REDUCTIONS if min(seen.width, seen.height) >= r * side), 1)
    if reduction > 1 and seen.form in JPEGS and seen.mode in ("RGB", "L"):
        flags = getattr(cv2, f"IMREAD_REDUCED_{'COLOR' if seen.mode == 'RGB' else 'GRAYSCALE'}_{reduction}")
        flags |= 0 if seen.turned else cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(buffer, flags)
    if pixels is None or seen.mode not in DEEP_MODES:
        return pixels
    pixels = np.nan_to_num(pixels, posinf=0.0, neginf=0.0)
    white = 65535.0 if pixels.dtype == np.uint16 else max(float(pixels.max()), 1.0)
    return np.clip(pixels * (255.0 / white), 0, 255).astype(np.uint8)


def guarded_resizer(rule: ImageDownload) -> Any:
    """Returns an img2dataset Resizer to a shorter side of `image_size`. Its error messages are the reasons of `look`.

    `ahead(data)` prepares a picture in any thread; the resizer then returns the result for the same bytes object.
    """
    from img2dataset.resizer import Resizer

    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it would print a page for each broken picture

    class GuardedResizer(Resizer):
        def __init__(self) -> None:
            options = {"encode_quality": rule.encode_quality, "encode_format": "jpg"}
            super().__init__(rule.image_size, "keep_ratio", resize_only_if_bigger=False, **options)
            self._ready: dict[int, tuple[bytes, Prepared]] = {}

        def ahead(self, data: bytes) -> None:
            # The bytes are kept with the result, so that no other object can take their id.
            self._ready[id(data)] = data, self.prepare(data)

        def __call__(self, stream: io.BytesIO, blurring_bbox_list: Any = None) -> Prepared:
            data = stream.getvalue()
            ready = self._ready.pop(id(data), None)
            return ready[1] if ready else self.prepare(data)

        def prepare(self, data: bytes) -> Prepared:
            seen = look(data, rule.max_pixels)
            shorter, longer = sorted((seen.width, seen.height))
            # A thin line grows long when its shorter side becomes `image_size`.
            kept = longer * self.image_size / max(shorter, 1)
            if not seen.problem and (kept > LONGEST_JPEG or kept * self.image_size > rule.max_pixels):
                seen = Look("too_many_pixels")
            if seen.problem:
                return None, None, None, None, None, seen.problem
            with _one_large if seen.width * seen.height > LARGE_PIXELS else contextlib.nullcontext():
                try:
                    return self._encoded(unpack(data, seen, self.image_size), seen)
                except Exception:  # as above, MemoryError included
                    return None, None, None, None, None, "undecodable"

        def _encoded(self, pixels: np.ndarray | None, seen: Look) -> Prepared:
            if pixels is None:
                raise ValueError
            if pixels.ndim == 3 and pixels.shape[2] == 4:  # transparent pictures are laid over white
                alpha = pixels[:, :, 3, np.newaxis]
                flat = alpha / 255 * pixels[..., :3] + 255 - alpha
                pixels = np.rint(flat.clip(min=0, max=255)).astype(np.uint8)
            height, width = pixels.shape[:2]
            scale = self.image_size / min(height, width)
            size = max(1, round(width * scale)), max(1, round(height * scale))
            if size != (width, height):
                how = self.downscale_interpolation if scale < 1 else self.upscale_interpolation
                pixels = cv2.resize(pixels, size, interpolation=how)
            done, picture = cv2.imencode(".jpg", pixels, params=self.encode_params)
            if not done:
                raise ValueError
            lying = seen.turned and (seen.width > seen.height) != (width > height)
            before = (seen.height, seen.width) if lying else (seen.width, seen.height)
            return picture.tobytes(), pixels.shape[1], pixels.shape[0], *before, None

    return GuardedResizer()


def _whole(data: bytes, form: str) -> bool:
    """Says whether a picture's end is present: OpenCV fills the missing part of a JPEG with grey without an error."""
    if form in JPEGS:
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    if form == "PNG":
        return b"IEND" in data
    return form != "WEBP" or len(data) >= int.from_bytes(data[4:8], "little") + 8
