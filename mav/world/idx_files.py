"""Reads and writes handwritten digits in the files of MNIST: pictures as idx3, their labels as idx1, gzipped or not.

The files are from outside: nothing is allocated for what a header promises, and every size is checked.
"""

import gzip
import io
import posixpath
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

import numpy as np

from mav.errors import UserError
from mav.storage import Folder
from mav.storage.patterns import matching_paths

SIDE = 28  # pixels of a picture
MOST = 300_000  # digits in one folder; the largest set in this form has 280,000
CHUNK = 1 << 20  # bytes read at a time
LEAST_INK = 64  # of 255; a picture without a brighter pixel shows nothing
NAME = re.compile(r"(.*)(images[-.]idx3|labels[-.]idx1)-ubyte(\.gz)?")
IMAGES, LABELS = b"\x00\x00\x08\x03", b"\x00\x00\x08\x01"  # unsigned bytes in three dimensions, in one
ADVICE = "bring the files of MNIST, such as train-images-idx3-ubyte.gz with train-labels-idx1-ubyte.gz"


@dataclass(frozen=True)
class Digits:
    """images: uint8 (N, 28, 28), bright ink on 0. labels: uint8 (N,), 0 to 9."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Digits":
        """Returns the digits of these rows, in their order."""
        return Digits(self.images[rows], self.labels[rows])


def read_digits(folder: Folder) -> Digits:
    """Reads every pair of files in a folder, in the order of their names; each different picture once.

    A pair is `*images-idx3-ubyte` and `*labels-idx1-ubyte` with the same beginning; where a file is there both as it is
    and with `.gz`, the first is read. Raises UserError for a folder without a pair, and for a file that is truncated,
    too long, of another format, or does not fit the other of its pair.
    """
    pairs = _pairs(folder)
    images, labels, left = [], [], MOST
    for pair in pairs.values():
        images.append(_read(folder, pair[IMAGES], IMAGES, left))
        labels.append(_read(folder, pair[LABELS], LABELS, left))
        left -= len(images[-1])
        if len(images[-1]) != len(labels[-1]):
            raise UserError(
                f"{folder.path(pair[IMAGES])} has {len(images[-1])} pictures and {pair[LABELS]} has "
                f"{len(labels[-1])} labels: they must be of the same set, so bring both from the same place."
            )
        _refuse_odd(folder, pair, images[-1], labels[-1])
    found = Digits(np.concatenate(images), np.concatenate(labels))
    seen: dict[bytes, int] = {}
    for row, image in enumerate(found.images):
        seen.setdefault(image.tobytes(), row)
    return found.take(np.array(sorted(seen.values()), int))


def write_digits(folder: Folder, digits: Digits) -> None:
    """Writes a pair of files that `read_digits` reads."""
    count = struct.pack(">I", len(digits))
    header = IMAGES + count + struct.pack(">II", SIDE, SIDE)
    folder.write_bytes("images-idx3-ubyte", header + digits.images.tobytes())
    folder.write_bytes("labels-idx1-ubyte", LABELS + count + digits.labels.tobytes())


def _pairs(folder: Folder) -> dict[str, Mapping[bytes, str]]:
    """Returns the two names of each pair by their common beginning."""
    pairs: dict[str, dict[bytes, str]] = {}
    for path in matching_paths(f"{folder.url.rstrip('/')}/*-ubyte*"):  # sorted: a name comes before the same with .gz
        name = posixpath.basename(path)
        if match := NAME.fullmatch(name):
            pairs.setdefault(match[1], {}).setdefault(IMAGES if "images" in match[2] else LABELS, name)
    if not pairs:
        raise UserError(f"There are no handwritten digits in {folder.url}: {ADVICE}.")
    for pair in pairs.values():
        if len(pair) == 1:
            (name,) = pair.values()
            raise UserError(f"{folder.path(name)} has no partner: {ADVICE}.")
    return dict(pairs)


def _read(folder: Folder, name: str, magic: bytes, most: int) -> np.ndarray:
    """Returns uint8 (N, 28, 28) or (N,)."""
    path, shape = folder.path(name), (SIDE, SIDE) if magic == IMAGES else ()
    advice = "bring the file anew"
    with folder.open(name) as raw:
        stream = gzip.GzipFile(fileobj=raw, mode="rb") if name.endswith(".gz") else raw
        try:
            header = _up_to(stream, 8 + 4 * len(shape))
            if header[:4] != magic:
                raise UserError(f"{path} does not begin as an idx{magic[3]} file of bytes does: {ADVICE}.")
            if len(header) < 8 + 4 * len(shape):
                raise UserError(f"{path} ends within its header: {advice}.")
            count, *sides = struct.unpack(f">{1 + len(shape)}I", header[4:])
            if tuple(sides) != shape:
                raise UserError(
                    f"{path} has pictures of {sides[0]} x {sides[1]} pixels, not {SIDE} x {SIDE}: {ADVICE}."
                )
            if count > most:
                raise UserError(f"{path} promises {count} digits, and a world takes {MOST} at most: bring fewer.")
            size = count * int(np.prod(shape, dtype=int))
            data = _up_to(stream, size + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path} cannot be unpacked ({error}): {advice}.") from error
    if len(data) != size:
        what = "is shorter" if len(data) < size else "is longer"
        raise UserError(f"{path} {what} than the {count} digits of its header: {advice}.")
    return np.frombuffer(data, np.uint8).reshape(count, *shape)


def _up_to(stream: IO[bytes] | gzip.GzipFile, size: int) -> bytes:
    """Reads at most so many bytes. What is held grows with what is there, not with what was promised."""
    held = io.BytesIO()
    while (left := size - held.tell()) > 0 and (chunk := stream.read(min(left, CHUNK))):
        held.write(chunk)
    return held.getvalue()


def _refuse_odd(folder: Folder, pair: Mapping[bytes, str], images: np.ndarray, labels: np.ndarray) -> None:
    if len(labels) and labels.max() > 9:
        raise UserError(f"{folder.path(pair[LABELS])} has the label {labels.max()}, which is no digit: {ADVICE}.")
    empty = np.flatnonzero(images.reshape(len(images), -1).max(axis=1, initial=0) < LEAST_INK)
    if len(empty):
        raise UserError(f"{folder.path(pair[IMAGES])} shows nothing in picture {empty[0]}: {ADVICE}.")
