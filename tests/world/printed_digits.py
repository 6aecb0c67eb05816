"""Stands in for handwritten digits where the real ones are not there: printed ones, each a little different."""

import gzip

import cv2
import numpy as np

from mav.storage import Folder
from mav.world.idx_files import SIDE, Digits, write_digits


def printed_digits(each: int, seed: int = 0) -> Digits:
    """Returns so many pictures of each digit, in turn."""
    rng, images = np.random.default_rng(seed), []
    labels = np.tile(np.arange(10, dtype=np.uint8), each)
    for label in labels:
        page = np.zeros((SIDE, SIDE), np.uint8)
        cv2.putText(page, str(label), (5, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.85, 255, 2, cv2.LINE_AA)
        turn = cv2.getRotationMatrix2D((14, 14), rng.uniform(-12, 12), rng.uniform(0.8, 1.05))
        turn[:, 2] += rng.uniform(-1.5, 1.5, 2)
        images.append(cv2.warpAffine(page, turn, (SIDE, SIDE)))
    return Digits(np.stack(images), labels)


def write_printed(folder: Folder, each: int) -> None:
    """Writes them as MNIST's files, of which the labels are packed."""
    write_digits(folder, printed_digits(each))
    labels = folder.read_bytes("labels-idx1-ubyte")
    folder.write_bytes("labels-idx1-ubyte.gz", gzip.compress(labels, mtime=0))
    folder.remove("labels-idx1-ubyte")
