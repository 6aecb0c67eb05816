"""Windows bitmaps whose channels are told by masks: 16 or 32 bits a pixel, as 5-6-5, 4-4-4, with alpha, or any other.

Libraries read a few of these. The layout is that of BITMAPINFOHEADER and its later versions in Microsoft's reference.
"""

import struct
from dataclasses import dataclass

import numpy as np

HEADERS = (40, 52, 56, 64, 108, 124)  # bytes of the versions that can have masks
PLAIN, MASKS, ALPHA_MASKS = 0, 3, 6  # compressions
FIVE_BITS = (0x7C00, 0x03E0, 0x001F, 0)  # red, green, blue and alpha of 16 bits that tell no masks


@dataclass(frozen=True)
class MaskedBitmap:
    """What the header of such a bitmap says. masks: of red, green, blue and alpha; 0 for a channel that is not there.

    height: negative when the first line is the top one. start: byte at which the pixels begin.
    """

    width: int
    height: int
    bits: int
    masks: tuple[int, ...]
    start: int

    @property
    def line(self) -> int:
        """Bytes of a line of pixels, which is padded to whole groups of four."""
        return (self.width * self.bits + 31) // 32 * 4

    def is_whole(self, data: bytes) -> bool:
        """Says whether no pixel is missing; writers leave out what pads the last line."""
        return len(data) >= self.start + self.line * (abs(self.height) - 1) + self.width * self.bits // 8


def masked_bitmap(data: bytes) -> MaskedBitmap | None:
    """Returns the header of a bitmap with masks, which those of 16 bits have in any case; None of all others."""
    if len(data) < 54 or data[:2] != b"BM":
        return None
    start, size, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
    if size not in HEADERS or bits not in (16, 32) or width < 1 or not height:
        return None
    if compression in (MASKS, ALPHA_MASKS):
        has_alpha = compression == ALPHA_MASKS or size in (56, 108, 124)
        if len(data) < 54 + 4 * (3 + has_alpha):
            return None
        masks = struct.unpack_from("<4I" if has_alpha else "<3I", data, 54)
        masks = masks if has_alpha else (*masks, 0)
    elif compression == PLAIN and bits == 16:
        masks = FIVE_BITS
    else:
        return None
    return MaskedBitmap(width, height, bits, masks, start)


def masked_pixels(data: bytes, bitmap: MaskedBitmap) -> np.ndarray:
    """Returns uint8 (H, W, 4): blue, green, red and alpha. As in browsers, a bitmap that is clear all over is opaque.

    Raises ValueError for data that end before the pixels.
    """
    if not bitmap.is_whole(data):
        raise ValueError("truncated")
    height, word = abs(bitmap.height), bitmap.bits // 8
    whole = data[bitmap.start : bitmap.start + bitmap.line * height].ljust(bitmap.line * height, b"\0")
    words = np.frombuffer(whole, f"<u{word}").reshape(height, -1)[:, : bitmap.width]
    words = words if bitmap.height < 0 else words[::-1]
    pixels = np.full((height, bitmap.width, 4), 255, np.uint8)
    red, green, blue, alpha = bitmap.masks
    for channel, mask in enumerate((blue, green, red, alpha)):
        if mask:
            lowest = mask & -mask
            levels = (words & words.dtype.type(mask)) // words.dtype.type(lowest)
            pixels[..., channel] = np.rint(levels * np.float32(255 / (mask // lowest)))
        elif channel < 3:
            pixels[..., channel] = 0
    if not pixels[..., 3].any():
        pixels[..., 3] = 255
    return pixels
