"""Odd and broken videos, more than a hundred, with what is expected of each."""

import io
import struct
import tempfile
import wave
import zipfile
from fractions import Fraction

import av
import numpy as np
from PIL import Image

FRAMES, RATE, WIDTH, HEIGHT = 12, 10, 64, 48


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Left red, right blue, a bright strip at the top; the green level is the frame's number."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 200
    pixels[:, width // 2 :, 2] = 200
    pixels[: height // 4, :, :] = 255
    pixels[height // 2 :, :, 1] = 12 * (number % 16)
    return pixels


def video(
    container="mp4", codec="libx264", *, size=(WIDTH, HEIGHT), rate=RATE, frames=FRAMES, pixels="yuv420p", times=None,
    sound=False, cover=False, options=None, format_options=None, aspect=None, each=lambda frame: frame,
) -> bytes:  # fmt: skip
    """A video of `picture`s. times: seconds of each frame, in a stream of no fixed rate."""
    # in a file: some writers go back over what they wrote, by its name
    with (
        tempfile.NamedTemporaryFile() as buffer,
        av.open(buffer.name, "w", format=container, options=format_options or {}) as out,
    ):
        stream = out.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.options = options or {}
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        base = Fraction(1, 1000) if times else 1 / Fraction(rate).limit_denominator(1001)
        if times:
            stream.codec_context.time_base = base
        if not frames:
            out.start_encoding()
        voice = out.add_stream("aac", rate=16000, layout="mono") if sound else None
        if cover:
            add_cover(out)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame = each(frame.reformat(format=pixels))
            frame.pts, frame.time_base = round(times[number] / base) if times else number, base
            out.mux(stream.encode(frame))
        if voice:
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
            quiet.sample_rate = 16000
            out.mux([*voice.encode(quiet), *voice.encode()])
        out.mux(stream.encode())
        out.close()
        return buffer.read()


def add_cover(out) -> None:
    from av.stream import Disposition

    stream = out.add_stream("mjpeg", rate=1)
    stream.width, stream.height, stream.pix_fmt, stream.disposition = 32, 32, "yuvj420p", Disposition.attached_pic
    out.mux(
        [
            *stream.encode(av.VideoFrame.from_ndarray(picture(0, 32, 32), format="rgb24").reformat(format="yuvj420p")),
            *stream.encode(),
        ]
    )


def turned(degrees: int) -> bytes:
    """An MP4 whose track header asks the player for a clockwise rotation."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    return placed(cos, sin, -sin, cos)


def placed(across: int, down: int, right: int, below: int) -> bytes:
    """An MP4 whose track header asks the player to show the pixel x, y at across x + right y, down x + below y."""
    data = bytearray(video())
    at = data.index(b"tkhd") + 4 + 4 + 36  # version and flags; times, track, duration, layer and volume
    entries = (across << 16, down << 16, 0, right << 16, below << 16, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", *entries)
    return bytes(data)


def flipped(data: bytes, share: float, run: int = 64) -> bytes:
    """Some bytes in the middle changed."""
    at = int(len(data) * share)
    return data[:at] + bytes(b ^ 0x5A for b in data[at : at + run]) + data[at + run :]


def image(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).save(buffer, kind)
    return buffer.getvalue()


def sound_only(container: str, codec: str, cover: bool = False) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=16000, layout="mono")
        if cover:
            add_cover(out)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux([*stream.encode(frame), *stream.encode()])
    return buffer.getvalue()


def spoken() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.mp4", b"hello" * 100)
    return buffer.getvalue()


def two_sizes() -> bytes:
    """A transport stream whose pictures change their size half way."""
    return video("mpegts", frames=8) + video("mpegts", size=(96, 72), frames=8)


STEADY = [0.1 * i for i in range(FRAMES)]

X265 = {"x265-params": "log-level=none"}

PQ = {"x265-params": "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"}

NO_B = {"bf": "0"}

# The video -> its metadata, where that is unusual, or the reason to refuse it.
HANDLED = {
    "h264 mp4": (lambda: video(), {}),
    "h264 mp4, index first": (lambda: video(format_options={"movflags": "faststart"}), {}),
    "h264 mp4, fragments": (lambda: video(format_options={"movflags": "frag_keyframe+empty_moov"}), {}),
    "h264 mp4, B-frames": (lambda: video(options={"bf": "3", "b-adapt": "0"}), {}),
    "h264 mp4, open groups": (lambda: video(options={"x264-params": "open-gop=1:keyint=4", "bf": "2"}), {}),
    "h264 mp4, one key frame": (lambda: video(options={"g": "1000", "sc_threshold": "0"}, frames=60), {"frames": 60}),
    "h264 mp4, lossless": (lambda: video(options={"qp": "0"}, pixels="yuv444p"), {}),
    "h264 mkv": (lambda: video("matroska"), {}),
    "h264 ts": (lambda: video("mpegts"), {}),
    "h264 flv": (lambda: video("flv"), {}),
    "h264 avi": (lambda: video("avi", options=NO_B), {}),
    "h264 bare": (lambda: video("h264", rate=25), {"fps": 25.0}),
    "hevc mp4": (lambda: video(codec="libx265", options=X265), {}),
    "hevc bare": (lambda: video("hevc", "libx265", options=X265, rate=25), {"fps": 25.0}),
    "mpeg4 mp4": (lambda: video(codec="mpeg4"), {}),
    "mpeg4 avi, B-frames": (lambda: video("avi", "mpeg4", options={"bf": "2"}), {}),
    "mpeg4 mov": (lambda: video("mov", "mpeg4"), {}),
    "msmpeg4 avi": (lambda: video("avi", "msmpeg4"), {}),
    "wmv2 asf": (lambda: video("asf", "wmv2"), {}),
    "flv1 flv": (lambda: video("flv", "flv"), {}),
    "mpeg2 program": (lambda: video("mpeg", "mpeg2video", rate=25), {"fps": 25.0}),
    "mpeg2 transport": (lambda: video("mpegts", "mpeg2video", rate=25), {"fps": 25.0}),
    "mpeg1 program": (lambda: video("mpeg", "mpeg1video", rate=25), {"fps": 25.0}),
    "vp8 webm": (lambda: video("webm", "libvpx"), {}),
    "vp9 webm": (lambda: video("webm", "libvpx-vp9"), {}),
    "vp9 mp4": (lambda: video(codec="libvpx-vp9"), {}),
    "theora ogg": (lambda: video("ogg", "libtheora"), {}),
    "mjpeg avi": (lambda: video("avi", "mjpeg", pixels="yuvj420p"), {}),
    "mjpeg mov": (lambda: video("mov", "mjpeg", pixels="yuvj422p"), {}),
    "ffv1 mkv": (lambda: video("matroska", "ffv1"), {}),
    "huffyuv avi": (lambda: video("avi", "huffyuv", pixels="yuv422p"), {}),
    "prores mov": (lambda: video("mov", "prores_ks", pixels="yuv422p10le"), {}),
    "animation mov": (lambda: video("mov", "qtrle", pixels="rgb24"), {}),
    "png mov": (lambda: video("mov", "png", pixels="rgb24"), {}),
    "raw avi": (lambda: video("avi", "rawvideo"), {}),
    "h263 3gp": (lambda: video("3gp", "h263", size=(128, 96), rate=25), {"fps": 25.0, "width": 46}),
    "gif": (lambda: video("gif", "gif", pixels="rgb8"), {}),
    "av1 mp4": (lambda: video(codec="libsvtav1", size=(64, 64), options={"preset": "12"}), {"width": 32}),
    "1 frame a second": (lambda: video(rate=1), {"fps": 1.0, "seconds": 12.0}),
    "5 frames a second": (lambda: video(rate=5), {"fps": 5.0}),
    "23.976 frames a second": (lambda: video(rate=24000 / 1001, frames=48), {"fps": 24000 / 1001, "frames": 48}),
    "29.97 frames a second, ms": (
        lambda: video("matroska", rate=30000 / 1001, frames=90),
        {"fps": 30000 / 1001, "frames": 90},
    ),
    "59.94 frames a second, ms": (
        lambda: video("flv", rate=60000 / 1001, frames=90),
        {"fps": 60000 / 1001, "frames": 90},
    ),
    "120 frames a second": (lambda: video(rate=120, frames=30), {"fps": 120.0, "frames": 30}),
    "eight frames": (lambda: video(frames=8), {"frames": 8}),
    "odd sides": (lambda: video(codec="libvpx-vp9", container="webm", size=(45, 33)), {"width": 44, "height": 32}),
    "odd and small": (lambda: video(codec="ffv1", container="matroska", size=(17, 31)), {"width": 16, "height": 32}),
    "smaller than the shards": (lambda: video(size=(24, 16)), {"width": 24, "height": 16}),
    "very wide": (lambda: video(size=(256, 16)), {"width": 256, "height": 16}),
    "very tall": (lambda: video(size=(16, 256)), {"width": 16, "height": 256}),
    "large": (lambda: video(size=(640, 480), options={"preset": "ultrafast"}), {"width": 42, "height": 32}),
    "4:4:4": (lambda: video(pixels="yuv444p"), {}),
    "4:2:2": (lambda: video(pixels="yuv422p"), {}),
    "full range": (lambda: video(pixels="yuvj420p"), {}),
    "ten bits": (lambda: video(pixels="yuv420p10le"), {}),
    "ten bits, 4:2:2": (lambda: video(pixels="yuv422p10le"), {}),
    "BT.709": (lambda: video(options={"colorspace": "bt709", "x264-params": "colormatrix=bt709"}, each=matrix_709), {}),
    "high dynamic range": (lambda: video(codec="libx265", pixels="yuv420p10le", options=PQ), {"colours": False}),
    "transparent": (lambda: video("mov", "qtrle", pixels="argb", each=clear_left), {"left": (0, 0, 0)}),
    "transparent prores": (lambda: video("mov", "prores_ks", pixels="yuva444p10le"), {}),
    "turned by 90": (lambda: turned(90), {"width": 32, "height": 42, "turned": 3}),
    "turned by 180": (lambda: turned(180), {"turned": 2}),
    "turned by 270": (lambda: turned(270), {"width": 32, "height": 42, "turned": 1}),
    "anamorphic": (lambda: video(aspect=Fraction(4, 3)), {"width": 56, "height": 32}),
    "interlaced": (lambda: video("mpeg", "mpeg2video", rate=25, options={"flags": "+ildct+ilme"}), {"fps": 25.0}),
    "interlaced h264": (lambda: video(options={"x264-params": "tff=1", "flags": "+ildct+ilme"}), {}),
    "with sound": (lambda: video(sound=True), {}),
    "with a cover": (lambda: video(cover=True), {}),
    "size changes": (two_sizes, {"frames": 16}),
    "a later beginning": (lambda: video("matroska", times=[5 + t for t in STEADY]), {}),
    "a later beginning, ts": (lambda: video("mpegts", format_options={"output_ts_offset": "3600"}), {}),
    "variable rate": (lambda: video(times=[0.1 * i + 0.03 * (i % 3) for i in range(12)]), {"times": True, "fps": None}),
    "variable rate, mkv": (
        lambda: video("matroska", times=[0.02 * i * i for i in range(12)]),
        {"times": True, "fps": 11 / 2.42},
    ),
    "a pause": (lambda: video(times=[t + 3 * (i > 5) for i, t in enumerate(STEADY)]), {"times": True, "fps": None}),
    "a second beginning": (lambda: video("mpegts") + video("mpegts"), {"frames": 24, "times": None}),
    "nonsense after the end": (lambda: video("mpegts") + bytes(range(256)) * 20, {"frames": None}),
    "a box of nonsense": (lambda: video() + struct.pack(">I4s", 1008, b"free") + b"x" * 1000, {}),
    "index broken": (lambda: video("matroska").replace(b"\x1c\x53\xbb\x6b", b"\xec\x53\xbb\x6b"), {}),
}

REFUSED = {
    "nothing": (lambda: b"", "empty"),
    "html": (lambda: b"<!DOCTYPE html><title>403 Forbidden</title>", "error_page"),
    "html in capitals": (lambda: b"\r\n  <HTML><BODY>gone</BODY></HTML>", "error_page"),
    "html after a mark": (lambda: b"\xef\xbb\xbf<html>gone</html>", "error_page"),
    "xml of a store": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "error_page"),
    "bare xml": (lambda: b"<Error><Code>NoSuchKey</Code></Error>", "error_page"),
    "json": (lambda: b'{"error": "not found"}', "error_page"),
    "zeros": (lambda: bytes(5000), "undecodable"),
    "noise": (lambda: np.random.default_rng(0).bytes(20_000), "undecodable"),
    "text": (lambda: b"not found\n" * 100, "undecodable"),
    "pdf": (lambda: b"%PDF-1.4\n" + b"1 0 obj\n" * 200, "undecodable"),
    "zip": (archive, "undecodable"),
    "png": (lambda: image("PNG"), "undecodable"),
    "jpeg": (lambda: image("JPEG"), "undecodable"),
    "webp": (lambda: image("WEBP"), "undecodable"),
    "still gif": (lambda: image("GIF"), "too_short"),
    "wav": (spoken, "undecodable"),
    "mp4 of sound": (lambda: sound_only("mp4", "aac"), "no_video_stream"),
    "mkv of sound": (lambda: sound_only("matroska", "aac"), "no_video_stream"),
    "song with a cover": (lambda: sound_only("mp4", "aac", cover=True), "no_video_stream"),
    "mp4 of nothing": (lambda: video(frames=0, format_options={"movflags": "empty_moov+frag_keyframe"}), "zero_frames"),
    "one frame": (lambda: video(frames=1), "too_short"),
    "seven frames": (lambda: video(frames=7), "too_short"),
    "a frame every five seconds": (lambda: video(times=[5.0 * i for i in range(12)]), "wild_frame_rate"),
    "500 frames a second": (
        lambda: video("matroska", times=[0.002 * i for i in range(24)], frames=24),
        "wild_frame_rate",
    ),
    "an hour between": (
        lambda: video("matroska", times=[t + 3600 * (i > 5) for i, t in enumerate(STEADY)]),
        "wild_timestamps",
    ),
    "half the data": (lambda: video()[: len(video()) // 2], "truncated"),
    "nine tenths": (lambda: video()[: len(video()) * 9 // 10], "truncated"),
    "all but ten bytes": (lambda: video()[:-10], "truncated"),
    "index first, data cut": (lambda: video(format_options={"movflags": "faststart"})[:-400], "truncated"),
    "fragments, cut": (lambda: video(format_options={"movflags": "frag_keyframe+empty_moov"})[:-300], "truncated"),
    "avi, cut": (lambda: video("avi", "mpeg4")[:3000], "truncated"),
    "only a beginning": (lambda: video()[:40], "truncated"),
    "unknown codec": (lambda: video().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"), "undecodable"),
    "playlist": (
        lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "undecodable",
    ),
    "list of files": (lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", "undecodable"),
    "subtitles": (lambda: b"1\n00:00:00,000 --> 00:00:02,000\nHello\n\n" * 10, "undecodable"),
    "midi": (lambda: b"MThd\x00\x00\x00\x06\x00\x01\x00\x01\x00\x60" + bytes(400), "undecodable"),
}


def matrix_709(frame: av.VideoFrame) -> av.VideoFrame:
    from av.video.reformatter import Colorspace

    return frame.reformat(format="rgb24").reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)


def clear_left(frame: av.VideoFrame) -> av.VideoFrame:
    pixels = frame.to_ndarray(format="argb")
    pixels[:, : WIDTH // 2, 0] = 0
    return av.VideoFrame.from_ndarray(pixels, format="argb")
