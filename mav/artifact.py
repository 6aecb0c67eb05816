"""Artifacts: what a stage makes. A directory on any fsspec storage whose `manifest.json` is written last.

Files in storage are the truth. No manifest, no artifact; a manifest names every file with its size and sha256, those of shards through
their ledgers (`mav.ledger`), so a reader can check what it reads and `verify` can find a changed byte anywhere, the manifest itself
included (it carries its own digest and is stored in one canonical form).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import posixpath
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mav.errors import UserError
from mav.ledger import Marker, ledgers, read_ledger

MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"  # prefix of names still being written; readers ignore them, `clean` removes them
CHUNK = 1 << 20
OBJECT_STORES = {"s3", "gs", "abfs", "az"}  # no directories to make; each question is a request
SMALL = 16 << 20  # bytes fetched from other storage in one request


@dataclass(frozen=True)
class Manifest:
    """What an artifact is made of and where it came from."""

    stage: str
    version: int
    fingerprint: str
    recipe: str  # name of the recipe it was first built under
    config: dict[str, Any]  # the stage's own sections
    inputs: dict[str, str]  # input stage -> fingerprint
    files: dict[str, dict[str, Any]]  # relative name -> {"bytes", "sha256"}, without those that its ledgers name
    counts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    finished: str = ""  # UTC, ISO 8601
    software: dict[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The one stored form: sorted keys, and a digest over everything else."""
        body: dict[str, Any] = dict(self.__dict__)
        body["digest"] = hashlib.sha256(_canonical(body)).hexdigest()
        return _canonical(body)

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Manifest:
        """Reads and checks a manifest. Raises UserError when a byte of it was changed."""
        try:
            body = json.loads(data)
            manifest = cls(**{key: value for key, value in body.items() if key != "digest"})
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{name} is not a readable manifest ({error}): rerun its stage.") from None
        if manifest.to_bytes() != data:
            raise UserError(f"{name} was changed after it was written: rerun its stage.")
        return manifest

    @property
    def content(self) -> str:
        """sha256 over the files alone, ledgers included: equal for two runs that made the same bytes, whenever they ran."""
        return hashlib.sha256(_canonical(self.files)).hexdigest()


def _canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


class Folder:
    """A directory on any storage, with the few operations artifacts need. Names are relative and use `/`."""

    def __init__(self, url: str) -> None:
        # No listing is remembered: another process, on another machine, may have written since.
        self.fs, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self.url = self.fs.unstrip_protocol(self.root) if not isinstance(self.fs, LocalFileSystem) else self.root

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.url,)

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def path(self, name: str) -> str:
        """Full path on the folder's file system."""
        return posixpath.join(self.root, name) if name else self.root

    def child(self, name: str) -> Folder:
        return Folder(posixpath.join(self.url, name))

    @property
    def local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def exists(self, name: str = "") -> bool:
        return bool(self.fs.exists(self.path(name)))

    def size(self, name: str) -> int:
        return int(self.fs.size(self.path(name)))

    def names(self) -> list[str]:
        """Every finished file below, relative and sorted."""
        return sorted(self.sizes())

    def sizes(self, temporary: bool = False) -> dict[str, int]:
        """Every finished file below and its size, in one listing; with `temporary`, those half written too."""
        if self.local:
            found = dict(_scan(self.root, "")) if os.path.isdir(self.root) else {}
        else:
            prefix = len(self.fs._strip_protocol(self.root).rstrip("/")) + 1
            try:
                found = {path[prefix:]: int(info["size"]) for path, info in self.fs.find(self.root, detail=True).items()}
            except FileNotFoundError:
                found = {}
        return {name: size for name, size in found.items() if temporary or not posixpath.basename(name).startswith(TEMPORARY)}

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, sorted; what lies below them is not listed."""
        try:
            found = self.fs.ls(self.root, detail=True)
        except FileNotFoundError:
            return []
        return sorted(posixpath.basename(info["name"].rstrip("/")) for info in found if info["type"] == "directory")

    def read_bytes(self, name: str) -> bytes:
        data: bytes = self.fs.cat_file(self.path(name))
        return data

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def open(self, name: str) -> IO[bytes]:
        """Opens a finished file for reading."""
        handle: IO[bytes] = self.fs.open(self.path(name), "rb")
        return handle

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Writes a file that appears whole or not at all: temporary name, then rename (one PUT on object stores).

        It survives a killed process at once, and a power failure after `sync`.
        """
        target = self.path(name)
        parent = posixpath.dirname(target)
        if OBJECT_STORES.isdisjoint([self.fs.protocol] if isinstance(self.fs.protocol, str) else self.fs.protocol):
            self.fs.makedirs(parent, exist_ok=True)
        temporary = posixpath.join(parent, f"{TEMPORARY}{uuid.uuid4().hex}") if self.local else target
        handle = self.fs.open(temporary, "wb")
        try:
            yield handle
            handle.close()
            if self.local:
                os.replace(temporary, target)
        except BaseException:
            if self.local:
                handle.close()
                if os.path.exists(temporary):
                    os.unlink(temporary)
            else:
                if hasattr(handle, "discard"):
                    handle.discard()
                handle.closed = True  # closing, even by the garbage collector, would publish what there is of it
            raise

    def sync(self) -> None:
        """Brings all that was written here to the disk, in one call rather than one a file: before a commit point."""
        if self.local and os.path.isdir(self.root):
            directory = os.open(self.root, os.O_RDONLY)
            try:
                ctypes.CDLL(None, use_errno=True).syncfs(directory)
            finally:
                os.close(directory)

    def write_bytes(self, name: str, data: bytes) -> None:
        with self.create(name) as file:
            file.write(data)

    def write_json(self, name: str, value: Any) -> None:
        """Sorted, indented, NaN refused: equal values are equal bytes."""
        self.write_bytes(name, _canonical(value))

    def remove(self, name: str = "") -> None:
        """Removes a file, or the whole folder; nothing there is fine."""
        path = self.path(name)
        if self.fs.exists(path):
            self.fs.rm(path, recursive=True)

    def sha256(self, name: str, size: int = SMALL) -> str:
        """`size`, where it is known, saves other storage a question."""
        if not self.local and size < SMALL:
            return hashlib.sha256(self.read_bytes(name)).hexdigest()
        total = hashlib.sha256()
        with self.open(name) as file:
            while chunk := file.read(CHUNK):
                total.update(chunk)
        return total.hexdigest()


def _scan(path: str, prefix: str) -> Iterator[tuple[str, int]]:
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _scan(entry.path, f"{prefix}{entry.name}/")
            else:
                with suppress(FileNotFoundError):  # renamed since it was listed
                    yield f"{prefix}{entry.name}", entry.stat().st_size


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and its manifest."""

    folder: Folder
    manifest: Manifest

    @classmethod
    def open(cls, url: str | Folder) -> Artifact:
        """Raises UserError when there is none or its manifest was changed; FileNotFoundError never escapes."""
        folder = url if isinstance(url, Folder) else Folder(url)
        try:
            data = folder.read_bytes(MANIFEST)
        except FileNotFoundError:
            raise UserError(f"There is no finished artifact at {folder.url}: run its stage first.") from None
        return cls(folder, Manifest.from_bytes(data, folder.path(MANIFEST)))

    @classmethod
    def publish(cls, folder: Folder, **facts: Any) -> Artifact:
        """Digests the files of the folder, then writes the manifest: from here on the artifact exists.

        What a ledger names was digested where it was written, so that terabytes of shards are not read again.
        """
        sizes = folder.sizes()
        sizes.pop(MANIFEST, None)
        for ledger in ledgers(sizes):
            for marker in read_ledger(folder, ledger, counts=False):
                for name in marker["files"]:
                    sizes.pop(name, None)
        files = {name: {"bytes": size, "sha256": folder.sha256(name, size)} for name, size in sorted(sizes.items())}
        manifest = Manifest(files=files, **facts)
        folder.sync()
        folder.write_bytes(MANIFEST, manifest.to_bytes())
        folder.sync()
        return cls(folder, manifest)

    def shards(self, counts: bool = True) -> Iterator[Marker]:
        """What its ledgers say of each shard, retry passes after the stage itself; nothing for a stage without shards."""
        for ledger in ledgers(self.manifest.files):
            yield from read_ledger(self.folder, ledger, counts)

    def facts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every file with its bytes and sha256, one at a time: the manifest's, then those of the shards."""
        yield from self.manifest.files.items()
        for marker in self.shards(counts=False):
            yield from ((name, facts) for name, facts in marker["files"].items() if name not in self.manifest.files)

    def files(self, suffix: str = "", prefix: str = "") -> list[str]:
        """Names of the artifact's files, sorted."""
        return sorted(n for n, _ in self.facts() if n.endswith(suffix) and n.startswith(prefix))

    def problems(self, full: bool = True) -> Iterator[str]:
        """One sentence for each file missing, changed or unexpected, and for counts that do not add up; `full` re-reads every byte."""
        present = self.folder.sizes()
        present.pop(MANIFEST, None)
        told = ledgers(self.manifest.files)
        broken = [
            problem for name in told for problem in self._problem(name, self.manifest.files[name], present.get(name), full=True)
        ]  # what a changed ledger says of shards is worth nothing
        yield from broken
        for name, facts in self.manifest.files.items() if broken else self.facts():
            size = present.pop(name, None)
            if name not in told:
                yield from self._problem(name, facts, size, full)
        if broken:
            return
        for name in sorted(present):
            yield f"{self.folder.path(name)} is not part of the artifact"
        yield from (f"{self.folder.path(MANIFEST)}: {problem}" for problem in unbalanced(self.manifest.counts))
        yield from (f"shard {shard['shard']}: {problem}" for shard in self.shards() for problem in unbalanced(shard["counts"]))

    def _problem(self, name: str, facts: Mapping[str, Any], size: int | None, full: bool) -> Iterator[str]:
        path = self.folder.path(name)
        if size is None:
            yield f"{path} is missing"
        elif size != facts["bytes"]:
            yield f"{path} has {size} bytes instead of {facts['bytes']}"
        elif full and self.folder.sha256(name, size) != facts["sha256"]:
            yield f"{path} was changed: its sha256 is not the one it was written with"


def unbalanced(counts: Mapping[str, Any]) -> Iterator[str]:
    """Checks rows_in = rows_out + sum(dropped) + sum(failed), of an artifact or of one of its shards."""
    if "rows_in" in counts:
        accounted = counts.get("rows_out", 0) + sum(counts.get("dropped", {}).values()) + sum(counts.get("failed", {}).values())
        if counts["rows_in"] != accounted:
            yield f"{counts['rows_in']} rows came in but {accounted} are accounted for"


def add_counts(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums counts of shards, key by key; nested mappings are summed alike."""
    total: dict[str, Any] = {"rows_in": 0, "rows_out": 0, "dropped": {}, "failed": {}}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, Mapping):
                bucket = total.setdefault(key, {})
                for reason, number in value.items():
                    bucket[reason] = bucket.get(reason, 0) + number
            else:
                total[key] = total.get(key, 0) + value
    for key in ("dropped", "failed"):
        total[key] = dict(sorted(total[key].items()))
    return total
