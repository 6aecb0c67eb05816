"""Folders on any fsspec storage (local disk, S3, GCS), whose files appear whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import posixpath
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import has_magic
from typing import IO, Any, Protocol

from fsspec.implementations.local import LocalFileSystem

from mav.storage.urls import storage_of

TEMPORARY = ".tmp-"  # prefix of files that are being written; readers ignore them, `mav clean` removes them
CHUNK = 1 << 20  # bytes read at a time while a file is hashed
SMALL = 16 << 20  # bytes; a smaller remote file is read in one request
OBJECT_STORES = {"s3", "gs", "abfs", "az"}  # these have no directories to create


class Fence(Protocol):
    """Who may write into a folder; see `mav.storage.fence`."""

    @property
    def token(self) -> str:
        """Names the one who may."""

    def check(self) -> None:
        """Raises TakenOverError once another one may."""


def canonical_json(value: Any) -> bytes:
    """Returns the one stored form of a value: sorted, indented, without NaN, so that equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


class Folder:
    """A directory on any storage, with the few operations that artifacts need. File names are relative and use `/`.

    With a `fence`, files appear and are removed only while the fence holds; afterwards TakenOverError is raised.
    """

    def __init__(self, url: str, fence: Fence | None = None) -> None:
        self.fence = fence
        # Listings are not cached: a process on another machine may have written since.
        self.fs, self.root = storage_of(url, use_listings_cache=False)
        self.url = self.root if self.local else self.fs.unstrip_protocol(self.root)

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.url, self.fence)

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    @property
    def local(self) -> bool:
        """Whether the folder is on a disk of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """Returns the full path of a file on the folder's file system."""
        return posixpath.join(self.root, name) if name else self.root

    def child(self, name: str) -> Folder:
        """Returns the folder `name` below this one, behind the same fence."""
        return Folder(posixpath.join(self.url, name), self.fence)

    def exists(self, name: str = "") -> bool:
        """Says whether a file exists, or the folder itself."""
        return bool(self.fs.exists(self.path(name)))

    def size(self, name: str) -> int:
        """Returns the size of a file in bytes."""
        return int(self.fs.size(self.path(name)))

    def names(self) -> list[str]:
        """Lists every finished file below this folder, sorted."""
        return sorted(self.sizes())

    def sizes(self, temporary: bool = False) -> dict[str, int]:
        """Maps every finished file below to its size, from one listing. `temporary` includes half-written files."""
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
        return {n: size for n, size in found.items() if temporary or not posixpath.basename(n).startswith(TEMPORARY)}

    def folders(self) -> list[str]:
        """Lists the names of the folders directly in this one, sorted."""
        try:
            found = self.fs.ls(self.root, detail=True)
        except FileNotFoundError:
            return []
        return sorted(posixpath.basename(info["name"].rstrip("/")) for info in found if info["type"] == "directory")

    def read_bytes(self, name: str) -> bytes:
        """Reads a whole file. Raises FileNotFoundError."""
        if self.local:  # a tenth of the time that fsspec takes
            with open(self.path(name), "rb") as file:
                return file.read()
        data: bytes = self.fs.cat_file(self.path(name))
        return data

    def read_json(self, name: str) -> Any:
        """Reads a JSON file. Raises FileNotFoundError, and ValueError when it is not JSON."""
        return json.loads(self.read_bytes(name))

    def read_json_or_none(self, name: str) -> Any:
        """Reads a JSON file that another process may be replacing or removing; None when it cannot be read now."""
        try:
            return self.read_json(name)
        except (FileNotFoundError, ValueError):
            return None

    def open(self, name: str) -> IO[bytes]:
        """Opens a finished file for reading."""
        handle: IO[bytes] = self.fs.open(self.path(name), "rb")
        return handle

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Writes a file that appears whole or not at all: a temporary name and a rename, or one PUT on object stores.

        A finished file survives a killed process at once, and a power failure after `sync`.
        """
        target = self.path(name)
        parent = posixpath.dirname(target)
        if self.fence and self.local and not os.path.isdir(parent):
            self.fence.check()  # the work of another run may be done and removed
        if OBJECT_STORES.isdisjoint([self.fs.protocol] if isinstance(self.fs.protocol, str) else self.fs.protocol):
            self.fs.makedirs(parent, exist_ok=True)
        temporary = posixpath.join(parent, f"{TEMPORARY}{uuid.uuid4().hex}") if self.local else target
        handle = self.fs.open(temporary, "wb")
        try:
            yield handle
            if self.local:
                handle.close()
            if self.fence:
                self.fence.check()
            if self.local:
                os.replace(temporary, target)
            else:
                handle.close()
        except BaseException:
            if self.local:
                handle.close()
                if os.path.exists(temporary):
                    os.unlink(temporary)
            else:
                if hasattr(handle, "discard"):
                    handle.discard()
                handle.closed = True  # closing it, even by the garbage collector, would publish an incomplete object
            raise

    def sync(self, names: Iterable[str] | None = None) -> None:
        """Flushes these files, and the directories that name them, to a local disk; None: all that the disk has yet to
        write, in one system call.

        Raises OSError when the disk could not write something: it may be lost after a power failure.
        """
        if not self.local or not os.path.isdir(self.root):
            return
        if names is None:
            _flushed(self.root, _syncfs)
            return
        files = [self.path(name) for name in names]
        for file in files:
            _flushed(file, os.fsync)
        for directory in sorted({os.path.dirname(self.root), self.root, *map(os.path.dirname, files)}):
            _flushed(directory, _sync_directory)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes a whole file, atomically."""
        with self.create(name) as file:
            file.write(data)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file in its canonical form, atomically."""
        self.write_bytes(name, canonical_json(value))

    def remove(self, name: str = "") -> None:
        """Removes a file, or the whole folder; of a link only the link. It is no error when nothing is there."""
        path = self.path(name)
        link = self.local and os.path.islink(path)
        if not link and not self.fs.exists(path):
            return
        if self.fence:
            self.fence.check()
        if link:
            os.unlink(path)
        elif self.local or not has_magic(path):
            self.fs.rm(path, recursive=True)
        else:  # other storages would take brackets in the name for a pattern
            for found in self.fs.find(path):
                self.fs.rm_file(found)

    @contextmanager
    def replacing(self) -> Iterator[Folder]:
        """Yields an empty folder beside this one, which takes its place when the block ends well.

        What was here before is then at `NAME.before`, unless the new folder has the same files. A block that fails, or
        a process that is killed, leaves the folder as it was.
        """
        root = self.root.rstrip("/")
        parent, name = Folder(posixpath.dirname(self.url.rstrip("/"))), posixpath.basename(root)
        new, before = parent.child(f"{TEMPORARY}{name}"), parent.child(f"{name}.before")
        new.remove()
        try:
            yield new
        except BaseException:
            new.remove()
            raise
        new.sync()
        if self.exists() and not self._equals(new):
            before.remove()
            self._move_to(before)
        self.remove()
        new._move_to(self)

    def _equals(self, other: Folder) -> bool:
        """Says whether two folders have the same files with the same bytes."""
        sizes = self.sizes()
        return sizes == other.sizes() and all(
            self.sha256(n, size) == other.sha256(n, size) for n, size in sizes.items()
        )

    def _move_to(self, target: Folder) -> None:
        """Moves the folder to a place where nothing is; on a disk at once."""
        if self.local:
            os.replace(self.root, target.root)
            return
        for name in self.names():
            self.fs.cp_file(self.path(name), target.path(name))
        self.remove()

    def sha256(self, name: str, size: int = SMALL) -> str:
        """Returns a file's digest. A known small `size` lets remote storage answer in one request."""
        if not self.local and size < SMALL:
            return hashlib.sha256(self.read_bytes(name)).hexdigest()
        total = hashlib.sha256()
        with self.open(name) as file:
            while chunk := file.read(CHUNK):
                total.update(chunk)
        return total.hexdigest()


_libc = ctypes.CDLL(None, use_errno=True)


def _syncfs(handle: int) -> None:
    """Flushes the file system of an open file. The C library reports a failure by its result alone."""
    if _libc.syncfs(handle) != 0:
        raise OSError(ctypes.get_errno(), f"the disk could not be flushed: {os.strerror(ctypes.get_errno())}")


def _sync_directory(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has nothing to flush for a directory says so
            raise


def _flushed(path: str, flush: Callable[[int], None]) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        flush(handle)
    finally:
        os.close(handle)


def _scan(path: str, prefix: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[tuple[str, int]]:
    """Yields name and size of the files below a path. above: the folders that are being listed, by device and inode."""
    about = os.stat(path)
    here = about.st_dev, about.st_ino
    if here in above:  # a link to a folder that holds it has no end, and one above it leads here again
        return
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_symlink() and not os.path.exists(entry.path):
                continue  # it leads to nothing, or to itself
            if entry.is_dir():
                yield from _scan(entry.path, f"{prefix}{entry.name}/", above | {here})
            else:
                with suppress(FileNotFoundError):  # the file was renamed after it was listed
                    yield f"{prefix}{entry.name}", entry.stat().st_size
