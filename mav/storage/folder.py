"""TODO-DOC mav/storage/folder.py"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

TEMPORARY = ".tmp-"  # prefix of names still being written; readers ignore them, `clean` removes them
CHUNK = 1 << 20
OBJECT_STORES = {"s3", "gs", "abfs", "az"}  # no directories to make; each question is a request
SMALL = 16 << 20  # bytes fetched from other storage in one request


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
                found = {
                    path[prefix:]: int(info["size"]) for path, info in self.fs.find(self.root, detail=True).items()
                }
            except FileNotFoundError:
                found = {}
        return {
            name: size
            for name, size in found.items()
            if temporary or not posixpath.basename(name).startswith(TEMPORARY)
        }

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
