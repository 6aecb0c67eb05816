"""A perceptual hash: 64 bits that a picture keeps when it is encoded again, resized or cropped a little.

They are the signs of the lowest frequencies of its brightness (the DCT of 32 x 32 pixels), the lowest sums of the
vertical and the horizontal one first, without the mean. In a mirror image those of odd horizontal frequencies turn.
Pictures of one brightness have the hash 0, which says nothing about them.
"""

import cv2
import numpy as np

HASH_BITS = 64
SIDE = 32
PLAIN = SIDE / 2.0  # the largest of these numbers in a picture whose brightness varies by one level of 256
FREQUENCIES: np.ndarray = np.array(
    sorted(np.ndindex(SIDE, SIDE), key=lambda frequency: (sum(frequency), frequency))[1 : HASH_BITS + 1]
)  # vertical, horizontal
_PLACES = np.uint64(1) << np.arange(HASH_BITS, dtype=np.uint64)
_TURNED = _PLACES[FREQUENCIES[:, 1] % 2 == 1].sum()


def perceptual_hash(pixels: np.ndarray) -> int:
    """Returns the hash of a picture, uint8 (H, W, 3) in BGR or (H, W) in grey."""
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY) if small.ndim == 3 else small
    waves = cv2.dct(grey.astype(np.float32))[tuple(FREQUENCIES.T)]
    return int(_PLACES[waves > 0].sum()) if np.abs(waves).max() > PLAIN else 0


def mirrored(hashes: np.ndarray) -> np.ndarray:
    """Returns the hashes, uint64, that mirror images of the same pictures have."""
    return hashes ^ _TURNED
