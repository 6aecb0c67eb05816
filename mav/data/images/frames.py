"""What Pillow decodes, as browsers show it: each frame opaque and of 8 bits."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

TO_BACKGROUND, TO_PREVIOUS = 2, 3  # what becomes of a GIF's frame before the next one
BITS, PHOTOMETRIC, PLANES, SAMPLE_FORMAT = 258, 262, 284, 339  # TIFF's tags
WHITE_IS_ZERO, SEPARATE, UNSIGNED = 0, 2, 1  # values of the latter three


def frames_over_white(picture: Image.Image) -> Iterator[np.ndarray]:
    """Yields uint8 (H, W, 3) RGB of each frame that Pillow decodes of a picture, as browsers show it.

    White is what is transparent, and what no frame of a GIF has covered or has cleared, which Pillow gives a colour.
    Raises what Pillow raises, and ValueError for TIFFs that it decodes wrongly.
    """
    if _has_deep_planes(picture):
        raise ValueError("Pillow takes deep planes for shallow ones")
    covered = np.zeros(picture.size[::-1], bool)
    for frame in ImageSequence.Iterator(picture):
        pixels = _over_white(frame)
        if picture.format == "GIF":
            drawn: Any = frame  # Pillow's GifImageFile
            left, top, right, bottom = drawn.dispose_extent
            if covered.shape != pixels.shape[:2]:  # a frame that reaches over the screen enlarges it
                covered = np.pad(
                    covered, [(0, new - old) for old, new in zip(covered.shape, pixels.shape, strict=False)]
                )
            before = covered.copy()
            covered[top:bottom, left:right] = True
            if not covered.all():
                pixels = np.where(covered[..., None], pixels, np.uint8(255))
            if drawn.disposal_method == TO_BACKGROUND:
                covered[top:bottom, left:right] = False
            elif drawn.disposal_method == TO_PREVIOUS:
                covered = before
        yield pixels


def _over_white(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith(("I", "F")):
        return np.repeat(_deep_grey(picture)[..., None], 3, axis=2)
    if not picture.has_transparency_data:
        return np.asarray(picture.convert("RGB"))
    layered = picture.convert("RGBA")
    white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, layered).convert("RGB"))


def _has_deep_planes(picture: Any) -> bool:
    """Says whether a TIFF has its channels one after the other, each of more than 8 bits."""
    if picture.format != "TIFF":
        return False
    tags = picture.tag_v2
    return tags.get(PLANES) == SEPARATE and len(tags.get(BITS, ())) > 1 and max(tags[BITS]) > 8


def _deep_grey(picture: Image.Image) -> np.ndarray:
    """Returns uint8 (H, W) of a picture of one deep channel. Pillow would cut off what is above 255."""
    levels = np.asarray(picture)
    levels = levels.astype(levels.dtype.newbyteorder("="))  # TIFFs of both byte orders
    if picture.format != "TIFF":
        return eight_bits(levels.astype(np.uint16) if levels.dtype.kind == "i" else levels)
    tags: Any = picture
    if levels.dtype == np.int32 and tags.tag_v2.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED:
        levels = levels.view(np.uint32)
    grey = eight_bits(levels)
    return 255 - grey if tags.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Scales deep pixels: 16 bits by their range, others by the brightest."""
    if pixels.dtype == np.uint8:
        return pixels
    pixels = np.nan_to_num(pixels, posinf=0.0, neginf=0.0)
    white = 65535.0 if pixels.dtype == np.uint16 else max(float(pixels.max()), 1.0)
    return np.clip(pixels * (255.0 / white), 0, 255).astype(np.uint8)
