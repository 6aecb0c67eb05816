"""`image-download`: screened rows to WebDataset tars, through img2dataset's Downloader and Resizer.

img2dataset fetches with a thread pool, decodes, resizes and encodes. Ours are the opener it fetches through (mav.data.fetching.guards), which
also has each picture prepared in the thread that fetched it (mav.data.images.pictures), and the writer: samples reach the tar in the order of
their keys whoever finished first, and every row ends in the ledger with a status and a reason.
"""

import functools
import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mav.data.fetching.addresses import Resolver, system_resolver
from mav.data.fetching.guards import Answer, GuardedOpener, installed, opener_settings
from mav.data.fetching.rules import FetchError
from mav.data.images.pictures import guarded_resizer
from mav.data.shards import IMAGE_LEDGER, ShardOutput, TarWriter, count, json_bytes, read_table, write_ledger
from mav.recipes import ImageDownload
from mav.storage import Folder

ALGORITHMS = {32: "md5", 64: "sha256", 128: "sha512"}  # of a digest, by its length in hex


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
        return self.fetch(name, name)

    def fetch(self, name: str, base: str, keys: Set[str] | None = None) -> ShardOutput:
        """Fetches the rows of shard `base`, or those with these keys, in the order of their keys, into the shard `name`."""
        table = read_table(self.metadata, f"shards/{base}.parquet")
        if keys is not None:
            table = table.filter(pc.is_in(table.column("key"), pa.array(sorted(keys), pa.string())))
        rule = self.download
        opener = PreparingOpener(
            resizer=guarded_resizer(rule),
            algorithms=_algorithms(table),
            per_host=rule.per_host,
            refuse=rule.refuse_directives,
            **opener_settings(rule, self.resolver),
        )
        ledger: list[dict[str, Any]] = []
        with self.out.create(f"{name}.tar") as file, TarWriter(file) as tar:
            _download(table, rule, opener, tar, ledger)
        write_ledger(self.out, f"{name}.parquet", IMAGE_LEDGER, ledger)
        return ShardOutput(
            count(ledger, bytes=sum(row.get("bytes", 0) for row in ledger)), (f"{name}.tar", f"{name}.parquet")
        )


@dataclass(frozen=True)
class Facts:
    """What the ledger says of the bytes of a URL."""

    size: int
    content_type: str
    final_url: str
    digests: dict[str, str]  # algorithm -> hex


@dataclass(kw_only=True)
class PreparingOpener(GuardedOpener):
    """Fetches under the guards and prepares the picture at once, in the thread that fetched it.

    algorithms: url -> names of the digests its rows are checked by, beside sha256, which every row has.
    """

    resizer: Any
    algorithms: dict[str, set[str]] = field(default_factory=dict)
    facts: dict[str, Facts] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # url -> why it could not be had

    def open(self, fullurl: urllib.request.Request | str, data: object = None, timeout: object = None) -> Answer:
        url = fullurl if isinstance(fullurl, str) else fullurl.full_url
        try:
            answer = self.fetch(url)
        except FetchError as error:
            self.reasons[url] = error.reason
            raise
        body = answer.body
        digests = {name: hashlib.new(name, body).hexdigest() for name in {"sha256"} | self.algorithms.get(url, set())}
        self.facts[url] = Facts(len(body), answer.content_type, answer.final_url, digests)
        self.resizer.ahead(body)
        return Answer(answer)


def _algorithms(table: pa.Table) -> dict[str, set[str]]:
    wanted: dict[str, set[str]] = {}
    for url, digest in zip(table.column("url").to_pylist(), table.column("digest").to_pylist(), strict=True):
        if digest:
            wanted.setdefault(url, set()).add(ALGORITHMS[len(digest)])
    return wanted


def _download(
    table: pa.Table, rule: ImageDownload, opener: PreparingOpener, tar: TarWriter, ledger: list[dict[str, Any]]
) -> None:
    """Runs img2dataset's Downloader over a table. It takes an Arrow file and leaves a statistics file: both in a folder that goes."""
    from img2dataset.downloader import Downloader

    rows = table.select(["url", "caption", "punsafe", "pwatermark", "digest"])
    rows = rows.append_column("row_key", table.column("key")).append_column(
        "position", pa.array(range(len(table)), pa.int64())
    )
    errors: list[Exception] = []
    with tempfile.TemporaryDirectory(prefix="mav-download-") as folder:
        path = os.path.join(folder, "rows.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
        downloader = Downloader(
            sample_writer_class=functools.partial(_Writer, tar, opener, ledger, errors),
            resizer=opener.resizer,
            thread_count=rule.threads,
            save_caption=True,
            extract_exif=False,
            output_folder=folder,
            column_list=rows.column_names,
            timeout=rule.timeout_seconds,
            number_sample_per_shard=max(len(table), 2),
            oom_shard_count=5,
            compute_hash=None,  # the opener takes digests, in its threads
            verify_hash_type=None,  # and the writer compares, where there is something to compare with
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
        self,
        tar: TarWriter,
        opener: PreparingOpener,
        ledger: list[dict[str, Any]],
        errors: list[Exception],
        *_of_img2dataset: Any,
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
        fetched, expected = self._opener.facts.get(url), meta["digest"]
        row: dict[str, Any] = {"key": key, "url": url}
        if fetched:
            row |= {"bytes": fetched.size, "content_type": fetched.content_type, "final_url": fetched.final_url}
            row["sha256"] = fetched.digests["sha256"]
        reason = ""
        if picture is None:  # what has not reached the opener, urllib could not make sense of
            reason = str(meta["error_message"]) if fetched else self._opener.reasons.get(url, "bad_url")
        if fetched and expected and fetched.digests[ALGORITHMS[len(expected)]] != expected:
            reason = "hash_mismatch"
        files = None
        if reason or picture is None or fetched is None:
            row |= {"status": "dropped" if reason == "opted_out" else "failed", "reason": reason}
        else:
            row |= {"status": "ok", "reason": "", "width": meta["width"], "height": meta["height"]}
            known = ("url", "width", "height", "original_width", "original_height", "punsafe", "pwatermark")
            facts = {"key": key, "sha256": row["sha256"]} | {name: meta[name] for name in known}
            files = {"jpg": picture, "json": json_bytes(facts), "txt": (caption or "").encode()}
        self._ledger.append(row)
        self._waiting[meta["position"]] = (key, files)
        while self._next in self._waiting:
            key, files = self._waiting.pop(self._next)
            if files is not None:
                self._tar.add(key, files)
            self._next += 1
