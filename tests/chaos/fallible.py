"""A store in memory whose calls fail: before they took effect, after it, or because their process is gone; for a full
disk, after a long time, with a listing of before, or with a clock that jumps.

In the middle of a call another writer may run to its end, so two writers interleave without threads, and every schedule
can be repeated. The clocks are the world's own: a call that takes a minute takes no time.
"""

import errno
import io
from collections import Counter, deque
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
    machine: str = "here"
    clock: float = 0.0  # by how much its wall clock is off


SLOW_SECONDS = 40.0  # of a call: longer than a holder may be silent
JUMP_SECONDS = 86_400.0


@dataclass
class World:
    """The bytes that are stored, and whose turn it is."""

    files: dict[str, bytes] = field(default_factory=dict)
    before: deque[list[str]] = field(default_factory=lambda: deque(maxlen=3))  # names, of the latest changes
    writers: dict[str, Writer] = field(default_factory=dict)
    stack: list[Writer] = field(default_factory=list)
    seconds: float = 0.0  # since the world began
    struck: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    takes: dict[str, int] = field(default_factory=dict)  # who took the lease; a later one has a higher number
    owner: str = ""  # the last who did and then changed something
    late: list[str] = field(default_factory=list)  # what others changed afterwards, except by a call they were in

    def monotonic(self) -> float:
        return self.seconds

    def time(self) -> float:
        return 1e9 + self.seconds + (self.stack[-1].clock if self.stack else 0.0)

    def token(self) -> str:
        """A new token, the same one in every repetition."""
        self.tokens += 1
        return f"{self.tokens:08x}" * 4

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    @contextmanager
    def change(self, name: str, owner: str | None = None, own: bool = False) -> Iterator[None]:
        """Around every call that changes a file. owner: who had the lease when an operation of several calls began.

        own: whether the file is the writer's alone, whoever has the lease.
        """
        if not self.stack:
            yield
            return
        writer, owner = self.stack[-1], self.owner if owner is None else owner
        with self.call("full"):
            if "/lease/" not in name:
                mine = self.takes.get(writer.name, 0)
                if mine > self.takes.get(self.owner, 0):
                    self.owner = writer.name
                elif mine < self.takes.get(owner, 0) and not own:
                    self.late.append(f"{writer.name} changed {name}, which is {owner}'s")
            self.before.append(sorted(self.files))
            yield

    def names(self) -> list[str]:
        """The names that a listing shows."""
        if self.stack and self.stack[-1].fate.get(self.stack[-1].calls) == "stale" and self.before:
            self.struck["listing of before"] += 1
            return [name for name in self.before[0] if name in self.files]
        return list(self.files)

    @contextmanager
    def call(self, *own: str) -> Iterator[None]:
        """Around every call of the file system: what fate has for it. own: fates of this kind of call alone."""
        if not self.stack:  # the one who looks on
            yield
            return
        writer = self.stack[-1]
        writer.calls += 1
        fate = "dead" if writer.dead else writer.fate.get(writer.calls, "")
        if fate == "meanwhile" and writer.meanwhile and len(self.stack) == 1:
            self.struck["another run meanwhile"] += 1
            writer.meanwhile()
        if fate in ("kill", "dead"):
            self.struck["killed before a call"] += fate == "kill"
            writer.dead = True
            raise Killed
        if fate == "fail":
            self.struck["call failed"] += 1
            raise OSError("storage is away")
        if fate == "full" and fate in own:
            self.struck["disk full"] += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        if fate == "slow":
            self.struck["call took 40 s"] += 1
            self.seconds += SLOW_SECONDS
        if fate == "clock":
            self.struck["clock jumped a day"] += 1
            writer.clock += JUMP_SECONDS * (-1 if writer.calls % 2 else 1)
        yield
        if fate == "kill after":
            self.struck["killed after a call"] += 1
            writer.dead = True
            raise Killed
        if fate == "fail after":
            self.struck["answer lost"] += 1
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
        for name in WORLD.names():
            data = WORLD.files[name]
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
                n: {"name": n, "size": len(WORLD.files[n]), "type": "file"}
                for n in sorted(WORLD.names())
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
        path, owner = self._strip_protocol(path).rstrip("/"), WORLD.owner
        for name in sorted(name for name in WORLD.files if name == path or name.startswith(f"{path}/")):
            with WORLD.change(name, owner):  # one request a file, and any of them may be the last
                WORLD.files.pop(name, None)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        path = self._strip_protocol(path)
        with WORLD.change(path):
            if mode == "create" and path in WORLD.files:
                raise FileExistsError(path)
            WORLD.files[path] = bytes(value)
            if mode == "create" and WORLD.stack:
                WORLD.takes[WORLD.stack[-1].name] = sum(WORLD.takes.values()) + 1

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        """A copy and a removal, in one call each, as object stores do it."""
        one, two, owner = self._strip_protocol(path1), self._strip_protocol(path2), WORLD.owner
        if one not in WORLD.files:
            raise FileNotFoundError(one)
        with WORLD.change(two, owner, _own(two)):
            WORLD.files[two] = WORLD.files[one]
        with WORLD.change(one, owner, _own(one)):
            WORLD.files.pop(one, None)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return _File(self._strip_protocol(path), mode)


def _own(path: str) -> bool:
    """Says whether a file is one that torch writes of a checkpoint, in a folder that is named after its lease."""
    return "/checkpoints/" in path and "-" in path.rpartition("/")[0] and not path.endswith(".json")


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
            with WORLD.change(self.path, own=_own(self.path)):
                WORLD.files[self.path] = self.data.getvalue()
        self.closed = True

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
