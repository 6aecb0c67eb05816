"""A store in memory whose calls fail: before they took effect, after it, or because their process is gone.

In the middle of a call another writer may run to its end, so two writers interleave without threads, and every schedule
can be repeated.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fsspec.spec import AbstractFileSystem


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Writer:
    """A process that builds the stage; `fate` says what happens at its n-th call of the file system."""

    name: str
    fate: dict[int, str] = field(default_factory=dict)
    calls: int = 0
    dead: bool = False
    meanwhile: Callable[[], None] | None = None


@dataclass
class World:
    """The bytes that are stored, and whose turn it is."""

    files: dict[str, bytes] = field(default_factory=dict)
    writers: dict[str, Writer] = field(default_factory=dict)
    stack: list[Writer] = field(default_factory=list)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around every call of the file system: what fate has for it."""
        if not self.stack:  # the one who looks on
            yield
            return
        writer = self.stack[-1]
        writer.calls += 1
        fate = "dead" if writer.dead else writer.fate.get(writer.calls, "")
        if fate == "meanwhile" and writer.meanwhile and len(self.stack) == 1:
            writer.meanwhile()
        if fate in ("kill", "dead"):
            writer.dead = True
            raise Killed
        if fate == "fail":
            raise OSError("storage is away")
        yield
        if fate == "kill after":
            writer.dead = True
            raise Killed
        if fate == "fail after":
            raise TimeoutError("the answer was lost")


WORLD = World()


class Fallible(AbstractFileSystem):
    """A store of whole objects, as S3: a file appears at its last byte, `create` refuses to write over another."""

    protocol = "fallible"
    cachable = False

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        with WORLD.call():
            return self._ls(self._strip_protocol(path).rstrip("/"), detail)

    def _ls(self, path: str, detail: bool) -> list[Any]:
        if path in WORLD.files:
            return [{"name": path, "size": len(WORLD.files[path]), "type": "file"}] if detail else [path]
        found: dict[str, dict[str, Any]] = {}
        for name, data in WORLD.files.items():
            if name.startswith(f"{path}/"):
                rest = name[len(path) + 1 :]
                entry = f"{path}/{rest.partition('/')[0]}"
                kind = "directory" if "/" in rest else "file"
                found[entry] = {"name": entry, "size": 0 if kind == "directory" else len(data), "type": kind}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def find(self, path: str, detail: bool = False, **_: Any) -> Any:
        with WORLD.call():
            root = self._strip_protocol(path).rstrip("/")
            found = {
                n: {"name": n, "size": len(d), "type": "file"}
                for n, d in sorted(WORLD.files.items())
                if n.startswith(f"{root}/")
            }
        return found if detail else list(found)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """There are no directories."""

    def exists(self, path: str, **_: Any) -> bool:
        with WORLD.call():
            path = self._strip_protocol(path).rstrip("/")
            return path in WORLD.files or any(name.startswith(f"{path}/") for name in WORLD.files)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        path = self._strip_protocol(path).rstrip("/")
        for name in sorted(name for name in WORLD.files if name == path or name.startswith(f"{path}/")):
            with WORLD.call():  # one request a file, and any of them may be the last
                WORLD.files.pop(name, None)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        with WORLD.call():
            path = self._strip_protocol(path)
            if mode == "create" and path in WORLD.files:
                raise FileExistsError(path)
            WORLD.files[path] = bytes(value)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return _File(self._strip_protocol(path), mode)


class _File:
    """An open object: what was written goes out in one call when it is closed."""

    def __init__(self, path: str, mode: str) -> None:
        self.path, self.mode, self.closed = path, mode, False
        with WORLD.call():
            if mode == "rb" and path not in WORLD.files:
                raise FileNotFoundError(path)
            self.data = io.BytesIO(WORLD.files[path] if mode == "rb" else b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def close(self) -> None:
        if not self.closed and self.mode == "wb":
            with WORLD.call():
                WORLD.files[self.path] = self.data.getvalue()
        self.closed = True

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
