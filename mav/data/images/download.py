"""`image-download`: screened rows to WebDataset tars, through img2dataset's Downloader and Resizer.

img2dataset runs the thread pool, decodes, resizes and encodes. Ours are the opener it fetches through
(mav.data.fetching.guards), which also prepares each picture in the thread that fetched it (mav.data.images.resize), and
the writer: samples are written in the order of their keys, whichever finished first, and every row ends in the ledger
with a status and a reason.
"""

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mav.data.fetching.addresses import Resolver, system_resolver
from mav.data.fetching.guards import Answer, GuardedOpener, installed, opener_settings
from mav.data.fetching.rules import FetchError
from mav.data.images.resize import guarded_resizer
from mav.data.shards import IMAGE_LEDGER, ShardOutput, TarWriter, count, json_bytes, read_table, write_ledger
from mav.imports import without_wandb
from mav.recipes import ImageDownload
from mav.secrets import redacted
from mav.storage import Folder

ALGORITHMS = {32: "md5", 64: "sha256", 128: "sha512"}  # of a digest, by its length in hex
ROW = "row:"  # stands before a row's number where img2dataset has its address
# The fields of a sample's json beside key, url and sha256.
FIELDS = ("width", "height", "original_width", "original_height", "punsafe", "pwatermark")


@dataclass(frozen=True)
class DownloadWork:
    """The shard work of `image-download`: reads `shards/NAME.parquet`, writes `NAME.tar` and the ledger `NAME.parquet`.

    Rows of hosts that opted out count as dropped, all other rows without a picture as failed. Tests replace `resolver`.
    """

    metadata: Folder
    download: ImageDownload
    out: Folder
    resolver: Resolver = system_resolver

    def names(self) -> list[str]:
        """Returns the names of `image-metadata`'s shards, sorted: PPPPP-KKKKK."""
        files = (name for name in self.metadata.names() if name.startswith("shards/"))
        return [name.removeprefix("shards/").removesuffix(".parquet") for name in files]

    def __call__(self, name: str) -> ShardOutput:
        return self.fetch(name, name)

    def fetch(self, name: str, base: str, keys: Set[str] | None = None) -> ShardOutput:
        """Fetches the rows of shard `base` with these keys, or all of them, into the shard `name`, in key order."""
        table = read_table(self.metadata, f"shards/{base}.parquet")
        if keys is not None:
            table = table.filter(pc.is_in(table.column("key"), pa.array(sorted(keys), pa.string())))
        rule = self.download
        settings = opener_settings(rule, self.resolver)
        settings |= {"per_host": rule.per_host, "refuse": rule.refuse_directives}
        rows = table.select(["url", "digest"]).to_pylist()
        opener = PreparingOpener(resizer=guarded_resizer(rule), rows=rows, **settings)
        with self.out.create(f"{name}.tar") as file, TarWriter(file) as tar:
            ledger = _download(table, rule, opener, tar)
        write_ledger(self.out, f"{name}.parquet", IMAGE_LEDGER, ledger)
        counts = count(ledger, bytes=sum(row.get("bytes", 0) for row in ledger))
        return ShardOutput(counts, (f"{name}.tar", f"{name}.parquet"))


@dataclass(kw_only=True)
class PreparingOpener(GuardedOpener):
    """Fetches under the guards and prepares the picture immediately, in the thread that fetched it.

    It is asked for `row:N` and fetches the address of row N, so that rows with one address have an outcome each.
    rows: url and digest of each. The sha256 is always computed.
    """

    resizer: Any
    rows: Sequence[Mapping[str, Any]]
    # For each row its bytes' columns of the ledger, and their digests: algorithm -> hex.
    fetched: dict[int, tuple[dict[str, Any], dict[str, str]]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)  # row -> why it could not be fetched

    def open(self, fullurl: urllib.request.Request | str, data: object = None, timeout: object = None) -> Answer:
        name = fullurl if isinstance(fullurl, str) else fullurl.full_url
        number = int(name.removeprefix(ROW))
        row = self.rows[number]
        try:
            answer = self.fetch(row["url"])
        except FetchError as error:
            self.reasons[number] = error.reason
            raise
        body = answer.body
        algorithms = {"sha256"} | ({ALGORITHMS[len(row["digest"])]} if row["digest"] else set())
        digests = {name: hashlib.new(name, body).hexdigest() for name in algorithms}
        entry = {"content_type": answer.content_type, "final_url": redacted(answer.final_url)}
        entry["sha256"] = digests["sha256"]
        self.fetched[number] = entry | {"bytes": len(body), "hash": self.resizer.ahead(body)}, digests
        return Answer(answer)


def _download(table: pa.Table, rule: ImageDownload, opener: PreparingOpener, tar: TarWriter) -> list[dict[str, Any]]:
    """Runs img2dataset's Downloader over a table and returns the ledger. Its own files lie in a temporary folder."""
    with without_wandb():
        from img2dataset.downloader import Downloader

    rows = table.select(["caption", "punsafe", "pwatermark", "digest"]).append_column("row_key", table.column("key"))
    rows = rows.append_column("position", pa.array(range(len(table)), pa.int64()))
    rows = rows.append_column("url", pa.array([f"{ROW}{number}" for number in range(len(table))], pa.string()))
    writer = _Writer(tar, opener)
    with tempfile.TemporaryDirectory(prefix="mav-download-") as folder:
        path = os.path.join(folder, "rows.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, rows.schema) as file:
            file.write_table(rows)
        # The opener does what is switched off here: digests in its threads, retries, the user agent and opt-outs.
        downloader = Downloader(
            sample_writer_class=lambda *_: writer, resizer=opener.resizer, thread_count=rule.threads,
            output_folder=folder, column_list=rows.column_names, timeout=rule.timeout_seconds, oom_shard_count=5,
            number_sample_per_shard=max(len(table), 2), save_caption=True, encode_format="jpg", extract_exif=False,
            compute_hash=None, verify_hash_type=None, retries=0, user_agent_token=None,
            disallowed_header_directives=None,
        )  # fmt: skip
        with installed(opener):
            downloader.download_shard((0, path))
    if writer.error is not None:
        raise writer.error
    if len(writer.ledger) != len(table):
        raise RuntimeError(f"{len(table)} rows went in and {len(writer.ledger)} are in the ledger")
    return writer.ledger


class _Writer:
    """img2dataset's sample writer: it receives samples in completion order and writes them in key order.

    img2dataset ignores what a writer raises (a full disk, for example): the first error is kept here to end the shard.
    """

    def __init__(self, tar: TarWriter, opener: PreparingOpener) -> None:
        self._tar, self._opener = tar, opener
        self.ledger: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self._waiting: dict[int, tuple[str, dict[str, bytes] | None]] = {}
        self._next = 0

    def write(self, picture: bytes | None, _key: str, caption: str | None, meta: dict[str, Any]) -> None:
        try:
            if self.error is None:
                self._add(picture, caption, meta)
        except Exception as error:
            self.error = error

    def close(self) -> None:
        """Does nothing: all rows have arrived, so none waits."""

    def _add(self, picture: bytes | None, caption: str | None, meta: dict[str, Any]) -> None:
        key, number, expected = meta["row_key"], meta["position"], meta["digest"]
        url = self._opener.rows[number]["url"]
        fetched, digests = self._opener.fetched.get(number, (None, {}))
        row: dict[str, Any] = {"key": key, "url": url, **(fetched or {})}
        reason = ""
        if picture is None:
            reason = str(meta["error_message"]) if fetched else self._opener.reasons[number]
        if fetched and expected and digests[ALGORITHMS[len(expected)]] != expected:
            reason = "hash_mismatch"
        files = None
        if reason or picture is None or fetched is None:
            row |= {"status": "dropped" if reason == "opted_out" else "failed", "reason": reason}
        else:
            row |= {"status": "ok", "reason": "", "width": meta["width"], "height": meta["height"]}
            metadata = {"key": key, "url": url, "sha256": row["sha256"]} | {name: meta[name] for name in FIELDS}
            files = {"jpg": picture, "json": json_bytes(metadata), "txt": (caption or "").encode()}
        self.ledger.append(row)
        self._waiting[number] = (key, files)
        while self._next in self._waiting:
            key, files = self._waiting.pop(self._next)
            if files is not None:
                self._tar.add(key, files)
            self._next += 1
