"""Small valid files of every parser, from which the corpus is changed."""

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hostile_pickles import zipped
from PIL import Image


def _parquet(table: pa.Table, **options: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def _tables() -> list[bytes]:
    urls, captions = [f"http://h/{i}.jpg" for i in range(20)], [f"a cat {i}" for i in range(20)]
    plain = pa.table({"URL": urls, "TEXT": captions, "WIDTH": [512] * 20, "HEIGHT": [400] * 20, "punsafe": [0.1] * 20})
    scored = pa.table({"url": urls, "caption": captions, "pwatermark": [0.2] * 20, "md5": ["0" * 32] * 20})
    return [_parquet(plain), _parquet(scored, compression="zstd"), _parquet(scored, use_dictionary=False)]


def _lists() -> list[bytes]:
    webvid = "videoid,contentUrl,duration,page_dir,name\n"
    webvid += "".join(f"{i},http://h/{i}.mp4,PT00H00M1{i}S,p{i},a dog\n" for i in range(6))
    paths = "path\tstart\tend\n" + "".join(f"{i}.mp4\t{i}\t{i + 1}\n" for i in range(6))
    clip = [{"clip_id": f"c.{i}", "span": ["00:00:01", "00:00:02.5"]} for i in range(4)]
    vila = "".join(json.dumps({"video_id": f"v{i}", "url": f"http://h/{i}", "clip": clip}) + "\n" for i in range(3))
    return [webvid.encode(), paths.encode(), vila.encode()]


def _tars() -> list[bytes]:
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for i in range(4):
                name = f"{i:09d}" + ("" if form == tarfile.USTAR_FORMAT else "x" * 120)
                for extension, body in (("jpg", b"j" * 100), ("json", b"{}")):
                    info = tarfile.TarInfo(f"{name}.{extension}")
                    info.size = len(body)
                    tar.addfile(info, io.BytesIO(body))
        found.append(buffer.getvalue())
    return found


def _picture(form: str, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def _moving(form: str) -> bytes:
    frames = [Image.new("RGB", (32, 24), (20 * i, 0, 0)) for i in range(10)]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()


def _pictures() -> list[bytes]:
    stills = [_picture(form) for form in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")]
    return [*stills, _picture("JPEG", progressive=True), _picture("PNG", "P"), *map(_moving, ("GIF", "WEBP", "PNG"))]


@cache
def _video(container: str, codec: str, **options: str) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options) as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * i, np.uint8), format="rgb24")
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def _mp4() -> list[bytes]:
    return [
        _video("mp4", "libx264"),
        _video("mp4", "mpeg4"),
        _video("mp4", "libx264", movflags="frag_keyframe+empty_moov"),
    ]


def _avi() -> list[bytes]:
    return [_video("avi", "mpeg4"), _video("avi", "libx264"), _moving("GIF")]


def _answers() -> list[bytes]:
    body = _picture("JPEG")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n" % len(body)
    packed = gzip.compress(body, mtime=0)
    return [
        head + b"Connection: close\r\n\r\n" + body,
        b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/x?y=1#z\r\nContent-Length: 0\r\n\r\n",
        head + b"X-Robots-Tag: googlebot: noai, other: noindex\r\nTDM-Reservation: 1\r\n\r\n" + body,
        b"HTTP/1.1 429 Slow\r\nRetry-After: Fri, 31 Dec 2027 23:59:59 GMT\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(packed), packed),
    ]


def _yaml() -> list[bytes]:
    recipe = "extends: tiny\nname: mine\nseed: 3\nimage_metadata:\n  sources: [a.parquet, 'b*.parquet']\n"
    recipe += "generate: {count: 4}\ntrain_prior:\n  optimisation: {samples: 100, learning_rate: 1.0e-3}\n"
    return [
        recipe.encode(),
        b"a: &x [1, 2]\nb: *x\nc: {d: 2026-01-01, e: 0o7, f: .inf, g: ~}\n",
        b"# only a note\n---\n- 1\n",
    ]


def _safetensors() -> list[bytes]:
    import torch
    from safetensors.torch import save

    tensors = {"linear_1.weight": torch.ones(1, 8), "linear_1.bias": torch.zeros(1), "norm.mean": torch.zeros(8)}
    return [
        save(tensors),
        save({"a": torch.zeros(0, 3), "b": torch.ones(2, dtype=torch.bfloat16)}, metadata={"x": "y"}),
    ]


def _torch() -> list[bytes]:
    import torch

    whole = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.ones(1, 8), "bias": torch.zeros(1)}, "epoch": 3}, whole)
    buffer = io.BytesIO()
    layer = torch.nn.Linear(8, 1)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.ones_(layer.bias)
    torch.jit.save(torch.jit.script(layer), buffer)
    arrays = io.BytesIO()
    np.savez(arrays, weight=np.ones((1, 8), np.float32), bias=np.zeros(1, np.float32))
    return [whole.getvalue(), buffer.getvalue(), arrays.getvalue()]


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def _heads() -> list[bytes]:
    """Zips with a TensorFlow checkpoint of one tensor, as AutoKeras saves it."""
    entry = b"\x08\x01\x12\x04\x12\x02\x08\x08\x20\x00\x28\x20"  # float32, shape (8,), offset 0, 32 bytes
    name = b"layer_with_weights-0/mean/.ATTRIBUTES/VARIABLE_VALUE"

    def block(key: bytes, value: bytes) -> bytes:
        body = b"\0" + _varint(len(key)) + _varint(len(value)) + key + value
        return body + struct.pack("<II", 0, 1)

    first = block(name, entry)
    second = block(name, _varint(0) + _varint(len(first)))
    place = len(first) + 5
    index = first + bytes(5) + second + bytes(5)
    footer = _varint(0) + _varint(0) + _varint(place) + _varint(len(second))
    index += footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    return [zipped({"m/variables/variables.index": index, "m/variables/variables.data-00000-of-00001": bytes(32)})]


def _votes() -> list[bytes]:
    vote = {"item": "ITEM", "question": "quality", "answer": "left", "milliseconds": 900, "played": True}
    lines = [
        "POST /api/vote\nauthorization: Bearer TOKEN\n\n" + json.dumps(vote),
        "GET /api/next\nauthorization: Bearer TOKEN\n\n",
    ]
    return [
        line.encode() for line in [*lines, "GET /videos/0123456789abcdef.mp4\nrange: bytes=0-1\n\n", "GET /r/TOKEN\n\n"]
    ]


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "tables": _tables, "lists": _lists, "tars": _tars, "pictures": _pictures, "mp4": _mp4, "avi": _avi,
    "answers": _answers, "yaml": _yaml, "safetensors": _safetensors, "torch": _torch, "pickles": _torch,
    "heads": _heads, "votes": _votes,
}  # fmt: skip
