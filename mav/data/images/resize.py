"""Turns fetched pictures into stored ones: inspected before decoding, resized, encoded as JPEG.

This is img2dataset's Resizer with its own sizes, filters and quality, but thread-safe (its own redirects the whole
process's output around every picture), bounded in memory, and faster with large JPEGs, which it decodes at a half, a
quarter or an eighth of their size.
"""

import contextlib
import io
import os
import threading
from typing import Any

import cv2
import numpy as np

from mav.data.images.hashes import perceptual_hash
from mav.data.images.pictures import Look, look, unpack
from mav.imports import without_wandb
from mav.recipes import ImageDownload

# img2dataset's resizing library would otherwise ask the package index for updates.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
LONGEST_JPEG = 65_500
LARGE_PIXELS = 16_000_000  # pictures of this size are decoded one at a time in a process, which bounds its memory
# The picture, its width and height, its width and height before, and the reason for which there is none.
Prepared = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]

_one_large = threading.Lock()


def guarded_resizer(rule: ImageDownload) -> Any:
    """Returns an img2dataset Resizer to a shorter side of `image_size`. Its error messages are the reasons of `look`.

    `ahead(data)` prepares a picture in any thread and returns its perceptual hash, None where there is no picture; the
    resizer then returns the result for the same bytes object.
    """
    with without_wandb():
        from img2dataset.resizer import Resizer

    cv2.setNumThreads(1)

    class GuardedResizer(Resizer):
        def __init__(self) -> None:
            options = {"encode_quality": rule.encode_quality, "encode_format": "jpg"}
            super().__init__(rule.image_size, "keep_ratio", resize_only_if_bigger=False, **options)
            self._ready: dict[int, tuple[bytes, Prepared]] = {}

        def ahead(self, data: bytes) -> int | None:
            prepared, found = self._prepare(data)
            # The bytes are kept with the result, so that no other object can take their id.
            self._ready[id(data)] = data, prepared
            return found

        def __call__(self, stream: io.BytesIO, blurring_bbox_list: Any = None) -> Prepared:
            data = stream.getvalue()
            ready = self._ready.pop(id(data), None)
            return ready[1] if ready else self.prepare(data)

        def prepare(self, data: bytes) -> Prepared:
            return self._prepare(data)[0]

        def _prepare(self, data: bytes) -> tuple[Prepared, int | None]:
            seen = look(data, rule.max_pixels)
            shorter, longer = sorted((seen.width, seen.height))
            # A thin line grows long when its shorter side becomes `image_size`.
            kept = longer * self.image_size / max(shorter, 1)
            if not seen.problem and (kept > LONGEST_JPEG or kept * self.image_size > rule.max_pixels):
                seen = Look("too_many_pixels")
            if seen.problem:
                return (None, None, None, None, None, seen.problem), None
            with _one_large if seen.width * seen.height > LARGE_PIXELS else contextlib.nullcontext():
                try:
                    return self._encoded(unpack(data, seen, self.image_size), seen)
                except Exception:  # decoders of odd bytes raise anything, MemoryError included
                    return (None, None, None, None, None, "undecodable"), None

        def _encoded(self, pixels: np.ndarray | None, seen: Look) -> tuple[Prepared, int]:
            if pixels is None:
                raise ValueError
            height, width = pixels.shape[:2]
            scale = self.image_size / min(height, width)
            size = max(1, round(width * scale)), max(1, round(height * scale))
            if size != (width, height):
                how = self.downscale_interpolation if scale < 1 else self.upscale_interpolation
                pixels = cv2.resize(pixels, size, interpolation=how)
            done, picture = cv2.imencode(".jpg", pixels, params=self.encode_params)
            if not done:
                raise ValueError
            lying = seen.orientation >= 5 and (seen.width > seen.height) != (width > height)
            before = (seen.height, seen.width) if lying else (seen.width, seen.height)
            prepared = picture.tobytes(), pixels.shape[1], pixels.shape[0], *before, None
            return prepared, perceptual_hash(pixels)

    return GuardedResizer()
