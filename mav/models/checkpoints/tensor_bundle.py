"""Reads the variables of a TensorFlow checkpoint (a "tensor bundle") without TensorFlow.

Its index is a sorted table of blocks in which each key is told as what it shares with the one before and the rest; a value is a small
protocol buffer that says the tensor's type, shape, offset and size in the data file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import torch
from torch import Tensor

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes
FLOAT = 1  # TensorFlow's number of float32


def read_bundle(index: bytes, data: bytes) -> dict[str, Tensor]:
    """The float32 tensors by name; others are left out. Raises ValueError when these are no whole uncompressed bundle of one data file."""
    if len(index) < FOOTER or struct.unpack("<Q", index[-8:])[0] != MAGIC:
        raise ValueError("not the index of a TensorFlow checkpoint")
    tensors: dict[str, Tensor] = {}
    try:
        footer = index[-FOOTER:]
        _, at = _handle(footer, 0)
        directory, _ = _handle(footer, at)
        for _, place in _entries(index, *directory):
            block, _ = _handle(place, 0)
            for key, value in _entries(index, *block):
                if key and (found := _tensor(value, data)) is not None:
                    tensors[key.decode()] = found
    except (IndexError, struct.error, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"a broken TensorFlow checkpoint ({error})") from None
    return tensors


def _entries(index: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
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
    facts = dict(_fields(entry))
    shape = facts.get(2)
    if facts.get(1) != FLOAT or not isinstance(shape, bytes):
        return None
    sizes = [dict(_fields(dim)).get(1, 0) for number, dim in _fields(shape) if number == 2 and isinstance(dim, bytes)]
    offset, size = facts.get(4, 0), facts.get(5, 0)
    assert isinstance(offset, int)
    assert isinstance(size, int)
    part = data[offset : offset + size]
    if len(part) != size:
        raise ValueError("a TensorFlow checkpoint whose data is cut")
    return torch.frombuffer(bytearray(part), dtype=torch.float32).reshape([int(s) for s in sizes])


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a protocol buffer's fields; fixed-width ones are skipped, nothing here needs them."""
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
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return value, at
