"""A perceptual hash: 64 bits that a picture keeps when it is encoded again, resized or cropped a little.

They are the signs of the lowest frequencies of its brightness (the DCT of 32 x 32 pixels), from left to right and from
top to bottom; the first, which is the mean's, is 0. In a mirror image those of odd horizontal frequencies turn.
Pictures of one brightness have the hash 0, which says nothing about them.
"""

import cv2
import numpy as np

HASH_BITS = 64
SIDE, LOWEST = 32, 8
PLAIN = SIDE / 2.0  # the largest of these numbers in a picture whose brightness varies by one level of 256
_PLACES = np.uint64(1) << np.arange(HASH_BITS, dtype=np.uint64)
_ODD = np.uint64(sum(1 << place for place in range(HASH_BITS) if place % 2))


def perceptual_hash(pixels: np.ndarray) -> int:
    """Returns the hash of a picture, uint8 (H, W, 3) in BGR."""
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    waves = cv2.dct(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32))[:LOWEST, :LOWEST].ravel()
    waves[0] = 0
    if np.abs(waves).max() <= PLAIN:
        return 0
    return int(_PLACES[waves > 0].sum())


def mirrored(hashes: np.ndarray) -> np.ndarray:
    """Returns the hashes, uint64, that mirror images of the same pictures have."""
    return hashes ^ _ODD
