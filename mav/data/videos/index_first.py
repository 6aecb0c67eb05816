"""Moves the index of an MP4 before its frames, so that a plain web server's reader can start before the end."""

import struct
from collections.abc import Iterator

PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}  # boxes on the way to the tables of offsets
OFFSETS = {b"stco": ">I", b"co64": ">Q"}


def index_first(data: bytes) -> bytes:
    """Returns the MP4 with `moov` before `mdat`; unchanged when it is so already, or when it is no such MP4."""
    boxes = {kind: (start, end) for kind, start, end in _boxes(data, 0, len(data))}
    if b"moov" not in boxes or b"mdat" not in boxes or boxes[b"moov"][0] < boxes[b"mdat"][0]:
        return data
    (start, end), (frames, _) = boxes[b"moov"], boxes[b"mdat"]
    index = bytearray(data[start:end])
    _shift(index, 0, len(index), end - start)
    return data[:frames] + bytes(index) + data[frames:start] + data[end:]


def _boxes(data: bytes | bytearray, at: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields (kind, start, end) of each box between two places."""
    while at + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, at)
        size = struct.unpack_from(">Q", data, at + 8)[0] if size == 1 and at + 16 <= stop else size or stop - at
        if size < 8 or at + size > stop:
            return
        yield bytes(kind), at, at + size
        at += size


def _shift(index: bytearray, at: int, stop: int, by: int) -> None:
    """Adds `by` to every offset of a chunk of frames, in place."""
    for kind, start, end in _boxes(index, at, stop):
        if kind in PARENTS:
            _shift(index, start + 8, end, by)
        elif form := OFFSETS.get(kind):
            (count,) = struct.unpack_from(">I", index, start + 12)
            for place in range(start + 16, start + 16 + count * struct.calcsize(form), struct.calcsize(form)):
                struct.pack_into(form, index, place, struct.unpack_from(form, index, place)[0] + by)
