"""Files that were made by hand to hurt a parser: bombs, code, numbers without an end."""

import json
import struct
import tarfile
import zipfile
from collections.abc import Callable

from hostile_pickles import hostile_pickles, zipped
from nasty_pictures import pictures


def by_hand(parser: str) -> list[bytes]:
    """Returns the inputs for a parser; none for one that is not of this file."""
    made = HAND[parser]() if parser in HAND else []
    return [data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass") for data in made]


def _tables() -> list[str | bytes]:
    return [
        b"",
        b"PAR1",
        b"PAR1PAR1",
        b"PAR1" + struct.pack("<I", 0xFFFFFFFF) + b"PAR1",
        "URL,TEXT\nhttp://h,a\n",
        bytes(4096),
    ]


def _tars() -> list[str | bytes]:
    found: list[str | bytes] = [b"", bytes(512), bytes(1024), bytes(10_240), b"x" * 10_240]
    kinds = (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.GNUTYPE_SPARSE,
    )
    for kind in (*kinds, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, b"Z"):
        for size in (0, 1 << 33, (1 << 62) + 1):
            info = tarfile.TarInfo("../../etc/0.jpg")
            info.type, info.linkname, info.size = kind, "/etc/passwd", size
            found.append(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    notes = ("size=-1024", "size=-1536", "size=-5", f"size={'9' * 30}", "size=x", "path=\0", "GNU.sparse.map=1,2,3")
    for note in notes:
        for length in (len(note) + 4, 1, 10**9):
            body = f"{length} {note}\n".encode()
            info = tarfile.TarInfo("x")
            info.type, info.size = tarfile.XHDTYPE, len(body)
            member = tarfile.TarInfo("0.jpg").tobuf()
            found.append(info.tobuf() + body.ljust(512, b"\0") + member + bytes(1024))
    return found


def _pictures() -> list[str | bytes]:
    """The bombs and disguises of the download's tests, and a JPEG whose scans never end."""
    chosen = ("bomb", "wrong", "magic", "loop", "headers", "segments", "mode", "tiff", "frames", "turned-JPEG-65535")
    found: list[str | bytes] = [data for name, data, _ in pictures() if any(part in name for part in chosen)]
    return found[:75]


def box(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _mp4() -> list[str | bytes]:
    nested = b""
    for _ in range(5000):
        nested = box(b"moov", nested)
    tables = box(b"stsz", bytes(4) + struct.pack(">II", 16, 1 << 31)) + box(
        b"stsc", bytes(4) + struct.pack(">IIII", 1, 1, 1 << 31, 1)
    )
    handler = box(b"hdlr", bytes(8) + b"vide" + bytes(12))
    bomb = box(b"moov", box(b"trak", box(b"mdia", handler + box(b"minf", box(b"stbl", tables)))))
    run = box(b"moof", box(b"traf", box(b"trun", bytes(4) + struct.pack(">I", 1 << 31))))
    start, data = box(b"ftyp", b"isom\0\0\2\0isom"), box(b"mdat", bytes(64))
    found: list[str | bytes] = [
        start + nested + data,
        start + bomb + data,
        start + data + bomb,
        start + run + data,
        nested,
        start,
    ]
    found += [start + struct.pack(">I4sQ", 1, b"mdat", size) + bytes(64) for size in (0, 8, 15, 1 << 40, (1 << 64) - 1)]
    return [*found, b"", b"\0" * 4096, struct.pack(">I4s", 0, b"moov") + bytes(100)]


def _avi() -> list[str | bytes]:
    playlists = (
        "#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        "ffconcat version 1.0\nfile /etc/passwd\n",
        "<SMIL><video src='/etc/passwd'/></SMIL>",
    )
    masks = [
        "[playlist]\nFile1=/etc/passwd\n",
        "#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\nhttp://127.0.0.1:9/x\n",
        "v=0\nm=video 9 RTP/AVP 96\n",
    ]
    riff = [b"RIFF" + struct.pack("<I", size) + b"AVI LIST" + bytes(200) for size in (0, 1, 0xFFFFFFFF, 204)]
    return [
        *playlists,
        *masks,
        *riff,
        b"GIF89a" + b"\xff" * 13,
        b"RIFF\0\0\0\0WEBPVP8X" + b"\xff" * 40,
        b"\x1aE\xdf\xa3" + b"\xff" * 100,
    ]


def _safetensors() -> list[str | bytes]:
    def file(header: object, data: bytes = b"") -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    def tensor(shape: list[object], offsets: list[object], kind: str = "F32") -> dict[str, object]:
        return {"a": {"dtype": kind, "shape": shape, "data_offsets": offsets}}

    found: list[str | bytes] = [
        b"",
        bytes(8),
        struct.pack("<Q", 1 << 62),
        struct.pack("<Q", 99_999_999) + b"{",
        file(b"{" * 5000),
    ]
    for shape, offsets in (
        ([1 << 40], [0, 4]),
        ([-1], [0, 4]),
        ([1], [4, 0]),
        ([1], [0, 1 << 40]),
        ([1 << 32, 1 << 32], [0, 0]),
        ([], [0, 4]),
    ):
        found.append(file(tensor([*shape], [*offsets]), bytes(4)))
    return [
        *found,
        file(tensor([1], [0, 4], "F99"), bytes(4)),
        file({"a": {}}),
        file([]),
        file({"__metadata__": {"a": 1}}),
    ]


def _torch() -> list[str | bytes]:
    found: list[str | bytes] = [b""]
    codes = [
        b"\x80\x02r\xff\xff\xff\x7f.", b"\x80\x02N" + b"\x85" * 20_000 + b".", b"\x80\x02" + b"(" * 20_000 + b".",
        b"\x80\x02N" + b"r\xff\xff\xff\x7f" * 9 + b".", b"\x80\x02\x8b\xff\xff\xff\x7f.", b"\x80\x02](]]]e.",
        b"\x80\x02cos\nsystem\nX\x04\0\0\0trueR.", b"\x80\x02(ios\nsystem\n.", b"\x80\x02}(K\x01]K\x02}u.",
        b"\x80\x02c__torch__\nA\n)\x81}X\x01\0\0\0aNsb.", b"\x80\x02c__torch__\nA\n)\x81)b.", b"", b".", b"N", b"\x80",
        b"\x80\x04\x8d" + b"\xff" * 8 + b".", b"\x80\x02\x82\x01.",
    ]  # fmt: skip
    found += [zipped({"a/data.pkl": code, "a/constants.pkl": b"N."}) for code in codes]
    found.append(zipped({"a/data.pkl": b"N.", "a/data/0": bytes(3 << 20)}, zipfile.ZIP_DEFLATED))
    return [
        *found,
        zipped({"a.npy": b"\x93NUMPY\x01\0F\0{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999,)}"}),
    ]


def _heads() -> list[str | bytes]:
    name, data = "m/variables/variables.index", "m/variables/variables.data-00000-of-00001"
    magic = struct.pack("<Q", 0xDB4775248B80FB57)
    footers = [b"\xff" * 40, bytes(40), b"\x80" * 39 + b"\1", b"\0\0\0\x30" + bytes(36)]
    found: list[str | bytes] = [zipped({name: bytes(60) + footer + magic, data: b""}) for footer in footers]
    return [
        *found,
        zipped({name: b"\xff" * 500_000 + footers[0] + magic, data: b""}),
        zipped({name: b"", data: bytes(3 << 20)}, 8),
        b"PK",
    ]


HAND: dict[str, Callable[[], list[str | bytes]]] = {
    "tables": _tables,
    "tars": _tars,
    "pictures": _pictures,
    "mp4": _mp4,
    "avi": _avi,
    "safetensors": _safetensors,
    "torch": _torch,
    "pickles": lambda: [*hostile_pickles()],
    "heads": _heads,
}
