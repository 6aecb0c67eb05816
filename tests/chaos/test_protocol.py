"""The shard protocol under thousands of random fault schedules, in process: files, markers, ledger, manifest, lease, two writers.

The file system is a store in memory whose calls fail: before they took effect, after it (the answer was lost), or because the
process is gone, from when on every call of it fails. In the middle of a call another writer may run to its end, whatever that is: so two
writers interleave without threads, and every schedule can be repeated. What runs is the product: `build`, `shard_map`, `Markers`,
`Lease`, `Artifact`; only Ray is replaced, by a loop.
"""

import io
import os
import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec import register_implementation
from fsspec.spec import AbstractFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.engine import build as building
from flows.engine import heartbeat, lease, markers, shard_map
from flows.engine.build import build
from flows.engine.run import Job, Run
from flows.engine.shard_task import ShardTask
from flows.engine.stage import Graph, Node, Stage
from flows.engine.store import Store
from flows.services.terminal import Terminal
from mav.data.shards import ShardOutput
from mav.errors import UserError
from mav.recipes import Recipe
from mav.storage import Folder

SHARDS = [f"{i:05d}" for i in range(3)]
SCHEDULES = int(os.environ.get("MAV_SCHEDULES", "1000"))
RESUMES = 40


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


class Loop:
    """Stands in for the pass on Ray: the same attempts, retries and accounts, one after the other."""

    def __init__(self, job: Job, work: Any, markers: Any, todo: Sequence[str], done: int, *_: Any) -> None:
        self.task = ShardTask(work, markers, fsync=False)
        self.todo, self.done, self.attempts = todo, done, job.recipe.cluster.attempts
        self.job = job

    def run(self) -> dict[str, str]:
        quarantined = {}
        for name in self.todo:
            for _ in range(self.attempts):
                result = self.task.attempt(name, 0.0)
                if result.fatal is not None:
                    raise result.fatal
                if not result.problem:
                    self.done += 1
                    break
            else:
                quarantined[name] = result.problem
            self.job.report(self.done, len(self.todo))
        return quarantined


@dataclass(frozen=True)
class Work:
    """Two files a shard, the same bytes whoever writes them."""

    out: Folder

    def __call__(self, name: str) -> ShardOutput:
        self.out.write_bytes(f"{name}.tar", name.encode() * 7)
        self.out.write_bytes(f"{name}.txt", name.encode())
        return ShardOutput(
            {"rows_in": 3, "rows_out": 2, "dropped": {"nsfw": 1}, "failed": {}}, (f"{name}.tar", f"{name}.txt")
        )


class Quiet(Terminal):
    """Shows nothing."""

    def start(self, *_: Any) -> None: ...
    def progress(self, *_: Any, **__: Any) -> None: ...
    def end(self, *_: Any) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def in_process() -> Iterator[None]:
    """Ray is a loop; a writer is a process of this machine, known by its name and gone when it is dead."""
    register_implementation("fallible", Fallible, clobber=True)

    def process(pid: int | None = None) -> str:
        who = WORLD.stack[-1] if pid is None and WORLD.stack else WORLD.writers.get(str(pid))
        return f"{who.name}@0" if who and not who.dead else ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_map, "_ShardPass", Loop)
        patch.setattr(lease, "process", process)
        for module in (lease, heartbeat):
            patch.setattr(
                module, "threading", SimpleNamespace(Thread=_NoThread, Event=threading.Event, Lock=threading.Lock)
            )
        patch.setattr(markers, "ThreadPoolExecutor", _NoPool)
        patch.setattr(building, "software", dict)
        yield


class _NoThread:
    """Beats are calls too, but not at times that no seed decides."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def start(self) -> None: ...
    def join(self) -> None: ...


class _NoPool:
    """One read after the other."""

    def __init__(self, *_: Any) -> None: ...
    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None: ...
    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        return map(function, items)


def node_of(recipe: Recipe) -> Node:
    return Stage("walk", 1, (), lambda job: shard_map.shard_map(job, Work(job.out), SHARDS), "walk")(Graph(recipe))


def run(writer: Writer, node: Node, recipe: Recipe, store: Store) -> str:
    """One attempt of a writer to build: "done", or how it ended."""
    WORLD.stack.append(writer)
    try:
        build(node, Run(recipe, store, Quiet(), ExitStack()))
        return "done"
    except Killed:
        return "killed"
    except UserError as error:
        return "refused" if "Another run" in str(error) else f"failed: {error}"
    except OSError as error:
        return f"failed: {error}"
    finally:
        WORLD.stack.pop()
        writer.dead = True  # its process ends, whatever it left


def schedule(rng: random.Random, name: str) -> Writer:
    """A writer with its fate: from a calm life to one fault in three calls."""
    rate = rng.choice((0.0, 0.02, 0.05, 0.1, 0.3))
    kinds = ("fail", "fail after", "kill", "kill after", "meanwhile")
    fate = {call: rng.choice(kinds) for call in range(1, 200) if rng.random() < rate}
    return Writer(name, fate)


def damage(rng: random.Random) -> None:
    """Between two runs a shard's file or marker is lost or cut short."""
    name = rng.choice(
        [name for name in sorted(WORLD.files) if "/markers/" in name or name.endswith((".tar", ".txt"))] or [""]
    )
    if rng.random() < 0.5:
        WORLD.files.pop(name, None)
    elif name:
        WORLD.files[name] = WORLD.files[name][:-1]


@pytest.fixture(scope="module")
def calm(small_recipe: Recipe, in_process: None) -> tuple[str, dict[str, Any]]:
    """Content and counts of an undisturbed run."""
    WORLD.__init__()  # type: ignore[misc]
    store, node = Store(f"fallible://{uuid.uuid4().hex}"), node_of(small_recipe)
    assert run(Writer("1"), node, small_recipe, store) == "done"
    artifact = store.find(node)
    assert artifact
    return artifact.manifest.content, artifact.manifest.counts


@settings(
    max_examples=SCHEDULES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(seed=st.integers(0, 2**48))
def test_any_schedule_of_faults_ends_in_the_same_bytes(
    small_recipe: Recipe, calm: tuple[str, dict[str, Any]], seed: int
) -> None:
    rng = random.Random(seed)
    WORLD.__init__()  # type: ignore[misc]
    store, node = Store(f"fallible://{seed}"), node_of(small_recipe)
    names = iter(range(1, 10_000))
    outcomes: list[str] = []

    def writer(calm_life: bool = False) -> Writer:
        made = schedule(rng, str(next(names)))
        made.fate = {} if calm_life else made.fate
        WORLD.writers[made.name] = made
        return made

    def other() -> None:
        outcomes.append("other " + run(writer(), node, small_recipe, store))

    for attempt in range(RESUMES):
        mine = writer(calm_life=attempt > RESUMES // 2)
        mine.meanwhile = other
        outcomes.append(run(mine, node, small_recipe, store))
        if outcomes[-1] == "done":
            break
        if rng.random() < 0.2 and not store.find(node):
            damage(rng)
    WORLD.stack.clear()
    assert outcomes[-1] == "done", outcomes
    artifact = store.find(node)
    assert artifact, "nothing is lost"
    assert list(artifact.problems()) == [], outcomes
    assert (artifact.manifest.content, artifact.manifest.counts) == calm, outcomes
    assert build(node, Run(small_recipe, store, Quiet(), ExitStack())).manifest == artifact.manifest, (
        "it is not built twice"
    )
