"""`image-download`: screened rows to WebDataset tars, through img2dataset's Downloader and Resizer.

img2dataset fetches with a thread pool, decodes, resizes and encodes. Ours are the opener it fetches through (mav.data.guards), a look at
each picture before it is decoded, and the writer: samples reach the tar in the order of their keys whoever finished first, and every
row ends in the ledger with a status and a reason.
"""

from __future__ import annotations

import functools
import io
import os
import tempfile
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mav.artifact import Folder
from mav.data.guards import GuardedOpener, Resolver, installed, system_resolver
from mav.data.shards import IMAGE_LEDGER, ShardOutput, TarWriter, count, json_bytes, write_ledger
from mav.recipe import ImageDownload

if TYPE_CHECKING:
    import pyarrow as pa
    from img2dataset.resizer import Resizer

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # img2dataset's resizing library would ask the package index for news

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
PNG = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112  # EXIF's tag
COLUMNS = ("url", "caption", "row_key", "position", "punsafe", "pwatermark")


def shard_names(metadata: Folder) -> list[str]:
    """Names of `image-metadata`'s shards, sorted: PPPPP-KKKKK."""
    return [name[len("shards/") : -len(".parquet")] for name in metadata.names() if name.startswith("shards/")]


@dataclass(frozen=True)
class DownloadWork:
    """The shard work of `image-download`: reads `shards/NAME.parquet`, writes `NAME.tar` and the ledger `NAME.parquet`.

    Rows of hosts that opted out count as dropped, all other rows without a picture as failed. `resolver` is for tests.
    """

    metadata: Folder
    download: ImageDownload
    out: Folder
    resolver: Resolver = system_resolver

    def names(self) -> list[str]:
        return shard_names(self.metadata)

    def __call__(self, name: str) -> ShardOutput:
        import pyarrow.parquet as pq

        with self.metadata.open(f"shards/{name}.parquet") as file:
            table = pq.read_table(file)
        rule = self.download
        opener = GuardedOpener(
            timeout=rule.timeout_seconds,
            deadline=rule.deadline_seconds,
            max_bytes=rule.max_bytes,
            per_host=rule.per_host,
            contact=rule.contact,
            allow_addresses=rule.allow_addresses,
            refuse=rule.refuse_directives,
            resolver=self.resolver,
        )
        ledger: list[dict[str, Any]] = []
        with self.out.create(f"{name}.tar") as file, TarWriter(file) as tar:
            _download(table, rule, opener, tar, ledger)
        write_ledger(self.out, f"{name}.parquet", IMAGE_LEDGER, ledger)
        counts = count(ledger, bytes=sum(row["bytes"] or 0 for row in ledger))
        return ShardOutput(counts, (f"{name}.tar", f"{name}.parquet"))


def _download(table: pa.Table, rule: ImageDownload, opener: GuardedOpener, tar: TarWriter, ledger: list[dict[str, Any]]) -> None:
    """Runs img2dataset's Downloader over a table. It takes an Arrow file and leaves a statistics file: both in a folder that goes."""
    import pyarrow as pa
    from img2dataset.downloader import Downloader

    rows = {"url": table.column("url"), "caption": table.column("caption"), "row_key": table.column("key"),
            "position": pa.array(range(len(table)), pa.int64()), "punsafe": table.column("punsafe"),
            "pwatermark": table.column("pwatermark")}  # fmt: skip
    errors: list[Exception] = []
    with tempfile.TemporaryDirectory(prefix="mav-download-") as folder:
        path = os.path.join(folder, "rows.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, pa.schema([(c, rows[c].type) for c in COLUMNS])) as writer:
            writer.write_table(pa.table(rows))
        downloader = Downloader(
            sample_writer_class=functools.partial(_Writer, tar, opener, ledger, errors),
            resizer=guarded_resizer(rule),
            thread_count=rule.threads,
            save_caption=True,
            extract_exif=False,
            output_folder=folder,
            column_list=list(COLUMNS),
            timeout=rule.timeout_seconds,
            number_sample_per_shard=max(len(table), 2),
            oom_shard_count=5,
            compute_hash="sha256",
            verify_hash_type=None,
            encode_format="jpg",
            retries=0,  # the opener knows which answers are worth asking again
            user_agent_token=None,  # and says who asks, and hears who opted out
            disallowed_header_directives=None,
        )
        with installed(opener):
            downloader.download_shard((0, path))
    if errors:
        raise errors[0]
    if len(ledger) != len(table):
        raise RuntimeError(f"{len(table)} rows went in and {len(ledger)} are in the ledger")


class _Writer:
    """img2dataset's sample writer: what comes in completion order goes out in key order.

    img2dataset prints and forgets what a writer raises (a full disk, say), so the first error is kept here for the shard to end with.
    """

    def __init__(
        self, tar: TarWriter, opener: GuardedOpener, ledger: list[dict[str, Any]], errors: list[Exception], *_of_img2dataset: Any
    ) -> None:
        self._tar, self._opener, self._ledger, self._errors = tar, opener, ledger, errors
        self._waiting: dict[int, tuple[str, dict[str, bytes] | None]] = {}
        self._next = 0

    def write(self, picture: bytes | None, _key: str, caption: str | None, meta: dict[str, Any]) -> None:
        if self._errors:
            return
        try:
            self._take(picture, caption, meta)
        except Exception as error:
            self._errors.append(error)

    def close(self) -> None:
        """All rows have come, so none waits."""

    def _take(self, picture: bytes | None, caption: str | None, meta: dict[str, Any]) -> None:
        key, url = meta["row_key"], meta["url"]
        size, content_type, final_url = self._opener.fetched.get(url, (None, None, None))
        row = {"key": key, "url": url, "bytes": size, "content_type": content_type, "final_url": final_url, "sha256": meta["sha256"]}
        files = None
        if picture is None:
            reason = str(meta["error_message"]).partition(":")[0]
            row |= {"status": "dropped" if reason == "opted_out" else "failed", "reason": reason}
        else:
            row |= {"status": "ok", "reason": "", "width": meta["width"], "height": meta["height"]}
            known = ("url", "width", "height", "original_width", "original_height", "sha256", "punsafe", "pwatermark")
            facts = {"key": key} | {name: meta[name] for name in known}
            files = {"jpg": picture, "json": json_bytes(facts), "txt": (caption or "").encode()}
        self._ledger.append(row)
        self._waiting[meta["position"]] = (key, files)
        while self._next in self._waiting:
            self._put(self._next)
            self._next += 1

    def _put(self, position: int) -> None:
        key, files = self._waiting.pop(position)
        if files is not None:
            self._tar.add(key, files)


def guarded_resizer(rule: ImageDownload) -> Resizer:
    """img2dataset's Resizer, shorter side to `image_size`, that looks before it decodes.

    Its error messages are reasons: not_an_image, truncated, too_many_pixels, undecodable.
    """
    from img2dataset.resizer import Resizer

    class GuardedResizer(Resizer):
        def __call__(self, stream: io.BytesIO, blurring_bbox_list: Any = None) -> tuple[Any, ...]:
            problem, plain = look(stream.getvalue(), rule.max_pixels)
            if problem:
                return None, None, None, None, None, problem
            answer: tuple[Any, ...] = super().__call__(io.BytesIO(plain), blurring_bbox_list)
            return answer if answer[-1] is None else (*answer[:-1], "undecodable")

    return GuardedResizer(
        rule.image_size, "keep_ratio", resize_only_if_bigger=False, encode_quality=rule.encode_quality, encode_format="jpg"
    )


def look(data: bytes, max_pixels: int) -> tuple[str, bytes]:
    """(reason to refuse a picture or "", its bytes in a form OpenCV reads right).

    Only headers are read: a bomb is refused before it is unpacked. Pictures that a camera laid on its side are set upright, more
    than 8 bits a channel are brought to 8.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if data[:8] == PNG and data[12:16] == b"IHDR":  # read here: Pillow refuses real PNGs for long texts among their chunks
            width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
            form, deep, image = "PNG", data[24] == 16, None
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own, fixed opinion of how large is suspicious
                image = Image.open(io.BytesIO(data), formats=FORMATS)
            form, deep, (width, height) = image.format or "", image.mode in DEEP_MODES, image.size
        if width * height > max_pixels:
            return "too_many_pixels", b""
        if not _whole(data, form):
            return "truncated", b""
        if deep:
            return "", _shallow(data)
        if image is None or image.getexif().get(ORIENTATION, 1) == 1:
            return "", data
        upright = io.BytesIO()
        ImageOps.exif_transpose(image).convert("RGBA" if "A" in image.getbands() else "RGB").save(upright, format="PNG", compress_level=0)
        return "", upright.getvalue()
    except Image.DecompressionBombError:
        return "too_many_pixels", b""
    except UnidentifiedImageError:
        return "not_an_image", b""
    except (OSError, ValueError, SyntaxError, MemoryError, EOFError, KeyError, TypeError):  # what Pillow's parsers raise on nonsense
        return "undecodable", b""


def _shallow(data: bytes) -> bytes:
    """A picture of 16-bit or floating samples as an 8-bit PNG. Raises ValueError when OpenCV cannot read it."""
    import cv2
    import numpy as np

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("undecodable")
    white = 65535.0 if pixels.dtype == np.uint16 else max(float(pixels.max()), 1.0)
    return bytes(cv2.imencode(".png", np.clip(pixels * (255.0 / white), 0, 255).astype(np.uint8))[1])


def _whole(data: bytes, form: str) -> bool:
    """Whether a picture's end is there: OpenCV fills what is missing of a JPEG with grey and says nothing."""
    if form in ("JPEG", "MPO"):
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    if form == "PNG":
        return b"IEND" in data
    if form == "WEBP":
        return len(data) >= int.from_bytes(data[4:8], "little") + 8
    return True
