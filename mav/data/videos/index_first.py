"""Reads the boxes of an MP4 without a decoder: moves its index before its frames, and counts what the index announces.

With the index first, a plain web server's reader can start before the end.
"""

import struct
from collections import Counter
from collections.abc import Iterator

PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}  # boxes on the way to the tables of offsets
FRAGMENT = {b"moof", b"traf"}
COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4}  # boxes that say how many samples follow, and where in them
DEEPEST = 5  # moov, trak, mdia, minf, stbl
OFFSETS = {b"stco": ">I", b"co64": ">Q"}


def index_first(data: bytes) -> bytes:
    """Returns the MP4 with `moov` before `mdat`; unchanged when it is so already, or when it is no such MP4."""
    top = {kind: (start, end) for kind, start, end in boxes(data, 0, len(data))}
    if b"moov" not in top or b"mdat" not in top or top[b"moov"][0] < top[b"mdat"][0]:
        return data
    (start, end), (frames, _) = top[b"moov"], top[b"mdat"]
    index = bytearray(data[start:end])
    try:
        _shift(index, 0, len(index), end - start)
    except struct.error:  # a table that is cut, or offsets that do not fit
        return data
    return data[:frames] + bytes(index) + data[frames:start] + data[end:]


def boxes(data: bytes | bytearray, at: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields (kind, start, end) of each box between two places."""
    while at + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, at)
        size = struct.unpack_from(">Q", data, at + 8)[0] if size == 1 and at + 16 <= stop else size or stop - at
        if size < 8 or at + size > stop:
            return
        yield bytes(kind), at, at + size
        at += size


def longest_track(data: bytes) -> int:
    """Returns the most samples that a track of an MP4 announces, or all of its fragments; 0 for anything else.

    A few bytes can announce billions of one size, for which FFmpeg makes room. Sound without compression, of which
    every amplitude is a sample, is left out, since FFmpeg counts its chunks.
    """
    counts: Counter[int] = Counter()  # by the place of the track
    sound, each_tick = set(), set()
    for track, kind, start, end in _leaves(data, 0, len(data)):
        body = data[start + 8 : min(end, start + 24)]
        if kind == b"hdlr" and body[8:12] == b"soun":
            sound.add(track)
        elif kind == b"stts" and body[4:8] == body[12:16] == b"\0\0\0\1":
            each_tick.add(track)
        elif kind in COUNTS:
            counts[track] += int.from_bytes(body[COUNTS[kind] : COUNTS[kind] + 4], "big")
    return max((count for track, count in counts.items() if track not in sound & each_tick), default=0)


def _leaves(data: bytes, at: int, stop: int, track: int = 0, depth: int = 0) -> Iterator[tuple[int, bytes, int, int]]:
    """Yields (place of the track, kind, start, end) of the boxes that hold no others."""
    for kind, start, end in boxes(data, at, stop):
        if kind in PARENTS | FRAGMENT and depth < DEEPEST:
            yield from _leaves(data, start + 8, end, start if kind == b"trak" else track, depth + 1)
        else:
            yield track, kind, start, end


def _shift(index: bytearray, at: int, stop: int, by: int, depth: int = 0) -> None:
    """Adds `by` to every offset of a chunk of frames, in place."""
    for kind, start, end in boxes(index, at, stop):
        if kind in PARENTS and depth < DEEPEST:
            _shift(index, start + 8, end, by, depth + 1)
        elif form := OFFSETS.get(kind):
            (count,) = struct.unpack_from(">I", index, start + 12)
            for place in range(start + 16, start + 16 + count * struct.calcsize(form), struct.calcsize(form)):
                struct.pack_into(form, index, place, struct.unpack_from(form, index, place)[0] + by)
