"""MNIST's files are read as they are distributed, and a wrong one is refused in a sentence that names it."""

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mav.errors import UserError
from mav.storage import Folder
from mav.world.idx_files import read_digits
from tests.world.printed_digits import printed_digits

DIGITS = printed_digits(2)
IMAGES = struct.pack(">4I", 0x803, 20, 28, 28) + DIGITS.images.tobytes()
LABELS = struct.pack(">2I", 0x801, 20) + DIGITS.labels.tobytes()
PAIR = {"t-images-idx3-ubyte": IMAGES, "t-labels-idx1-ubyte": LABELS}


def folder_of(path: Path, files: dict[str, bytes]) -> Folder:
    folder = Folder(str(path))
    for name, data in files.items():
        folder.write_bytes(name, data)
    return folder


@pytest.mark.parametrize(
    "files",
    [
        PAIR,
        {f"{name}.gz": gzip.compress(data) for name, data in PAIR.items()},
        PAIR | {"t-images-idx3-ubyte.gz": b"not read, since it is there unpacked", "README": b"", ".t-images": b""},
        {"train-images.idx3-ubyte": IMAGES, "train-labels.idx1-ubyte.gz": gzip.compress(LABELS)},
        PAIR | {name.replace("t-", "again-"): data for name, data in PAIR.items()},
    ],
    ids=["plain", "packed", "both", "with dots", "twice the same"],
)
def test_a_pair_is_read_in_every_usual_form_and_each_picture_once(tmp_path: Path, files: dict[str, bytes]) -> None:
    read = read_digits(folder_of(tmp_path, files))
    assert np.array_equal(read.images, DIGITS.images)
    assert np.array_equal(read.labels, DIGITS.labels)


def test_pairs_are_joined_in_the_order_of_their_names(tmp_path: Path) -> None:
    other = printed_digits(1, seed=1)
    more = {"a-images-idx3-ubyte": struct.pack(">4I", 0x803, 10, 28, 28) + other.images.tobytes(),
            "a-labels-idx1-ubyte": struct.pack(">2I", 0x801, 10) + other.labels.tobytes()}  # fmt: skip
    assert np.array_equal(read_digits(folder_of(tmp_path, PAIR | more)).images[:10], other.images)


def images(data: bytes) -> dict[str, bytes]:
    return PAIR | {"t-images-idx3-ubyte": data}


def labels(data: bytes) -> dict[str, bytes]:
    return PAIR | {"t-labels-idx1-ubyte": data}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no handwritten digits"),
        ({"notes.txt": b"hello"}, "no handwritten digits"),
        ({"t-images-idx3-ubyte": IMAGES}, "no partner"),
        ({"t-images-idx3-ubyte": IMAGES, "u-labels-idx1-ubyte": LABELS}, "no partner"),
        (images(b""), "does not begin as an idx3"),
        (images(LABELS), "does not begin as an idx3"),
        (images(b"\0\0\x0d\3" + IMAGES[4:]), "does not begin as an idx3"),
        (labels(IMAGES), "does not begin as an idx1"),
        (labels(gzip.compress(LABELS)), "does not begin as an idx1"),
        (images(IMAGES[:11]), "within its header"),
        (images(IMAGES[:-1]), "shorter"),
        (labels(LABELS[:-1]), "shorter"),
        (images(IMAGES + b"\0"), "longer"),
        (images(struct.pack(">4I", 0x803, 5, 56, 56) + IMAGES[16:]), "56 x 56"),
        (images(struct.pack(">4I", 0x803, 2**32 - 1, 28, 28) + IMAGES[16:]), "at most"),
        (images(struct.pack(">4I", 0x803, 299_999, 28, 28) + IMAGES[16:]), "shorter"),
        (images(struct.pack(">4I", 0x803, 19, 28, 28) + IMAGES[16 : 16 + 19 * 784]), "19 pictures"),
        (labels(LABELS[:-1] + b"\x0a"), "the label 10"),
        (images(IMAGES[:-784] + bytes(784)), "nothing in picture 19"),
        ({"t-images-idx3-ubyte.gz": b"no gzip", "t-labels-idx1-ubyte": LABELS}, "unpacked"),
        ({"t-images-idx3-ubyte.gz": gzip.compress(IMAGES)[:-20], "t-labels-idx1-ubyte": LABELS}, "unpacked"),
        ({"t-images-idx3-ubyte.gz": gzip.compress(IMAGES)[:40] + b"\xff" * 99, "t-labels-idx1-ubyte": LABELS},
         "unpacked"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused(tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    tracemalloc.start()
    with pytest.raises(UserError, match=says) as refused:
        read_digits(folder_of(tmp_path, files))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000, "memory follows what is there, not what is promised"
    tracemalloc.stop()
    assert str(tmp_path) in str(refused.value)
    assert str(refused.value).count(". ") == 0


def test_a_small_file_that_unpacks_to_a_large_one_is_not_unpacked_whole(tmp_path: Path) -> None:
    bomb = gzip.compress(IMAGES + bytes(1 << 26))
    tracemalloc.start()
    with pytest.raises(UserError, match="longer"):
        read_digits(folder_of(tmp_path, {"t-images-idx3-ubyte.gz": bomb, "t-labels-idx1-ubyte": LABELS}))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.skipif("MAV_REAL_DATA" not in os.environ, reason="reads MNIST's files")
def test_mnist_s_own_files() -> None:
    digits = read_digits(Folder(f"{os.environ['MAV_REAL_DATA']}/mnist"))
    assert len(digits) == 10_000
    assert np.bincount(digits.labels).min() > 800
