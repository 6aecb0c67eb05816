"""Reads the variables of a TensorFlow checkpoint (a "tensor bundle") without TensorFlow.

The index is a sorted table of blocks. A key is stored as the length of the prefix that it shares with the key before
it, and the rest. A value is a small protocol buffer with the type, shape, offset and size of a tensor in the data file.
"""

import struct
from collections.abc import Iterator

import torch
from torch import Tensor

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes
FLOAT = 1  # TensorFlow's number of float32


def read_bundle(index: bytes, data: bytes) -> dict[str, Tensor]:
    """Returns the float32 tensors by name and leaves out the others.

    Raises ValueError when the two files are not a whole, uncompressed bundle with one data file.
    """
    if len(index) < FOOTER or struct.unpack("<Q", index[-8:])[0] != MAGIC:
        raise ValueError("not the index of a TensorFlow checkpoint")
    tensors: dict[str, Tensor] = {}
    stored = 0
    try:
        footer = index[-FOOTER:]
        _, at = _handle(footer, 0)
        directory, _ = _handle(footer, at)
        for _, place in _entries(index, *directory):
            block, _ = _handle(place, 0)
            for key, value in _entries(index, *block):
                if key and (found := _tensor(value, data)) is not None:
                    stored += found.nbytes
                    if stored > len(data):
                        raise ValueError("a TensorFlow checkpoint whose tensors overlap")
                    tensors[key.decode()] = found
    except (LookupError, struct.error, RuntimeError, TypeError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"a broken TensorFlow checkpoint ({error})") from None
    return tensors


def _entries(index: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) pairs of one block."""
    block = index[offset : offset + size]
    if index[offset + size] != 0:
        raise ValueError("a compressed TensorFlow checkpoint")
    (restarts,) = struct.unpack("<I", block[-4:])
    at, end, key = 0, size - 4 - 4 * restarts, b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        yield key, block[at + fresh : at + fresh + length]
        at += fresh + length


def _tensor(entry: bytes, data: bytes) -> Tensor | None:
    """The tensor of an entry, or None when it is not float32."""
    fields = dict(_fields(entry))
    shape, offset, size = fields.get(2), fields.get(4, 0), fields.get(5, 0)
    if fields.get(1) != FLOAT or not isinstance(shape, bytes):
        return None
    sizes = [dict(_fields(dim)).get(1, 0) for number, dim in _fields(shape) if number == 2 and isinstance(dim, bytes)]
    if not isinstance(offset, int) or not isinstance(size, int):
        raise ValueError("a TensorFlow checkpoint without the place of a tensor")
    part = data[offset : offset + size]
    if len(part) != size:
        raise ValueError("a TensorFlow checkpoint whose data is cut")
    return torch.frombuffer(bytearray(part), dtype=torch.float32).reshape([int(s) for s in sizes])


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The (number, value) pairs of a protocol buffer; fields of fixed width, which nothing here needs, are skipped."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
        elif kind == 2:
            length, at = _varint(message, at)
            yield tag >> 3, message[at : at + length]
            at += length
        else:
            at += {1: 8, 5: 4}[kind]


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """The (offset, size) of a block, and the place after them."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The variable-length number at a place, and the place after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a broken TensorFlow checkpoint (a number without an end)")
