"""Passes over shards on a real Ray: killed workers, poison shards, full disks, resumes; nothing lost, nothing twice."""

import errno
import json
import os
import signal
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.engine.markers import Markers
from flows.engine.run import Job, Run
from flows.engine.shard_map import shard_map
from flows.engine.stage import Graph, Outcome, Stage
from flows.engine.store import Store
from flows.services.terminal import Terminal
from mav.data.shards import ShardOutput
from mav.errors import UserError
from mav.recipes import Recipe
from mav.storage import Folder
from mav.storage.ledger import LEDGER

NAMES = [f"{i:05d}" for i in range(12)]


@dataclass(frozen=True)
class Fault:
    """Writes one file a shard; misbehaves on chosen shards, on their first execution or on all."""

    out: Folder
    tries: str  # a folder that records every execution
    kill: tuple[str, ...] = ()
    poison: tuple[str, ...] = ()
    user_error: tuple[str, ...] = ()
    full_disk: tuple[str, ...] = ()

    def __call__(self, name: str) -> ShardOutput:
        executions = len(list(Path(self.tries).glob(f"{name}.*")))
        (Path(self.tries) / f"{name}.{executions}").touch()
        self.out.write_bytes(f"{name}.bin", name.encode() * 100)
        if name in self.kill and executions == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if name in self.poison:
            raise RuntimeError(f"poison in {name}")
        if name in self.user_error:
            raise UserError("The table lacks a column.")
        if name in self.full_disk:
            raise OSError(errno.ENOSPC, "No space left on device")
        lost = int(name) % 3
        return ShardOutput(
            {"rows_in": 10, "rows_out": 10 - lost, "dropped": {"nsfw": lost}, "failed": {}}, (f"{name}.bin",)
        )


@pytest.fixture
def job(small_recipe: Recipe, tmp_path: Path, ray_session: None) -> Job:
    run = Run(small_recipe, Store(str(tmp_path / "runs")), Terminal(), ExitStack())
    node = Stage("walk", 1, (), lambda job: Outcome(), "walk")(Graph(small_recipe))
    (tmp_path / "tries").mkdir()
    return Job(node, run, run.store.artifact(node), run.store.work(node))


def _fault(job: Job, tmp_path: Path, **faults: tuple[str, ...]) -> Fault:
    return Fault(job.out, str(tmp_path / "tries"), **faults)


def _executions(tmp_path: Path) -> int:
    return len(list((tmp_path / "tries").iterdir()))


def test_killed_workers_cost_time_not_rows(job: Job, tmp_path: Path) -> None:
    outcome = shard_map(job, _fault(job, tmp_path, kill=(NAMES[2], NAMES[7])), NAMES)
    assert outcome.counts == {"rows_in": 120, "rows_out": 108, "dropped": {"nsfw": 12}, "failed": {}}
    assert _executions(tmp_path) >= len(NAMES) + 2
    ledger = pq.read_table(job.out.path(LEDGER)).to_pydict()
    assert ledger["shard"] == NAMES
    assert json.loads(ledger["files"][3]) == {"00003.bin": {"bytes": 500, "sha256": job.out.sha256("00003.bin")}}


def test_a_second_pass_does_nothing_and_gives_the_same_bytes(job: Job, tmp_path: Path) -> None:
    one = shard_map(job, _fault(job, tmp_path), NAMES)
    ledger, executions = job.out.sha256(LEDGER), _executions(tmp_path)
    assert executions == len(NAMES)
    two = shard_map(job, _fault(job, tmp_path), NAMES)
    assert _executions(tmp_path) == executions
    assert (two.counts, job.out.sha256(LEDGER)) == (one.counts, ledger)


def test_torn_and_orphaned_markers_are_done_again(job: Job, tmp_path: Path) -> None:
    shard_map(job, _fault(job, tmp_path), NAMES)
    before = _executions(tmp_path)
    job.out.remove(LEDGER)  # as after a pass that was stopped
    Path(job.work.path("markers/00001.json")).write_text('{"shard": "00')
    job.out.remove("00002.bin")
    job.out.write_bytes("00003.bin", b"short")
    outcome = shard_map(job, _fault(job, tmp_path), NAMES)
    assert _executions(tmp_path) == before + 3
    assert outcome.counts["rows_in"] == 120
    assert job.out.size("00003.bin") == 500


def test_what_is_missing_is_noticed_behind_a_whole_ledger(job: Job, tmp_path: Path) -> None:
    one = shard_map(job, _fault(job, tmp_path), NAMES)
    ledger, before = job.out.sha256(LEDGER), _executions(tmp_path)
    job.out.remove("00002.bin")
    job.work.remove("markers/00003.json")
    two = shard_map(job, _fault(job, tmp_path), NAMES)
    assert _executions(tmp_path) == before + 2
    assert (two.counts, job.out.sha256(LEDGER)) == (one.counts, ledger)


@pytest.mark.parametrize("storage", ["memory", pytest.param("s3", marks=pytest.mark.slow)])
def test_markers_are_the_commit_point_on_any_storage(storage: str, request: pytest.FixtureRequest) -> None:
    root = Folder(
        f"memory://{uuid.uuid4().hex}" if storage == "memory" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    )
    out, work = root.child("out"), root.child("work")
    markers = Markers(out, work)
    for name in NAMES[:-1]:
        out.write_bytes(f"{name}.bin", name.encode())
        markers.commit(name, {"rows_in": 1, "rows_out": 1, "dropped": {}, "failed": {}}, (f"{name}.bin",))
    out.write_bytes(f"{NAMES[-1]}.bin", b"never committed")
    assert out.sizes() == dict.fromkeys((f"{name}.bin" for name in NAMES[:-1]), 5) | {f"{NAMES[-1]}.bin": 15}
    assert markers.committed(set(NAMES)) == set(NAMES[:-1])
    out.write_bytes(f"{NAMES[3]}.bin", b"short")
    out.remove(f"{NAMES[4]}.bin")
    left = set(NAMES[:-1]) - {NAMES[4]}
    assert markers.committed(set(NAMES)) == left
    assert markers.compact(NAMES[:-1])["rows_in"] == len(NAMES) - 1
    assert markers.committed(set(NAMES)) == left, "the ledger says the same as the markers"


@dataclass(frozen=True)
class CountsLoads(Fault):
    """Loads something dear once a process, as a network is."""

    def __call__(self, name: str) -> ShardOutput:
        (Path(self.tries) / f"process-{os.getpid()}").touch()
        time.sleep(0.05)
        return super().__call__(name)


def test_actors_live_for_the_pass_and_are_replaced(job: Job, tmp_path: Path) -> None:
    work = CountsLoads(job.out, str(tmp_path / "tries"), kill=(NAMES[5],), poison=(NAMES[6],))
    with pytest.raises(UserError, match="poison in 00006"):
        shard_map(job, work, NAMES, actors=True)
    processes = len(list((tmp_path / "tries").glob("process-*")))
    assert processes <= 3, "two actors, and one in the place of the killed one"
    outcome = shard_map(job, CountsLoads(job.out, str(tmp_path / "tries")), NAMES, actors=True)
    assert outcome.counts == {"rows_in": 120, "rows_out": 108, "dropped": {"nsfw": 12}, "failed": {}}


@dataclass(frozen=True)
class NeedsTwo(CountsLoads):
    """From the seventh shard on, none ends before two processes have been at work."""

    def __call__(self, name: str) -> ShardOutput:
        output = super().__call__(name)
        deadline = time.monotonic() + 50
        while name >= NAMES[6] and len(list(Path(self.tries).glob("process-*"))) < 2:
            if time.monotonic() > deadline:
                raise TimeoutError("nobody came")
            time.sleep(0.05)
        return output


@pytest.mark.slow
def test_actors_come_when_the_cluster_has_grown(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.engine.shard_map._ShardPass._slots", lambda shards: 2 if shards.done else 1)
    outcome = shard_map(job, NeedsTwo(job.out, str(tmp_path / "tries")), NAMES, actors=True)
    assert outcome.counts["rows_in"] == 120


@dataclass(frozen=True)
class Hangs(Fault):
    """One execution of shard 00007 never ends: it is stopped, or waits for the other copy's marker, spoils its bytes,
    and sleeps."""

    execution: int = 0  # which of them
    markers: str = ""  # where to wait for the other copy; nothing: the process is stopped

    def __call__(self, name: str) -> ShardOutput:
        number = len(list(Path(self.tries).glob(f"{name}.*")))
        output = super().__call__(name)
        if name == NAMES[7] and number < self.execution:
            deadline = time.monotonic() + 60  # until there is another, however slow the machine
            while not (Path(self.tries) / "hangs").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
        if name == NAMES[7] and number == self.execution:
            (Path(self.tries) / "hangs").write_text(str(os.getpid()))
            if not self.markers:
                os.kill(os.getpid(), signal.SIGSTOP)
            while not os.path.exists(f"{self.markers}/{name}.json"):
                time.sleep(0.001)
            self.out.write_bytes(f"{name}.bin", b"spoilt")
            time.sleep(3600)
        return output


HUNG = [(0, False, False), (0, False, True), (0, True, False), (0, True, True), (1, False, False), (1, True, True)]


@pytest.mark.slow
@pytest.mark.parametrize(("execution", "spoils", "actors"), HUNG)
def test_a_worker_that_hangs_is_ended_once_its_shard_is_there(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, execution: int, spoils: bool, actors: bool
) -> None:
    monkeypatch.setattr("flows.engine.shard_map.STRAGGLER_FLOOR_SECONDS", 0.5)
    markers = job.work.path("markers") if spoils else ""
    work = Hangs(job.out, str(tmp_path / "tries"), execution=execution, markers=markers)
    outcome = shard_map(job, work, NAMES, actors=actors)
    assert outcome.counts == {"rows_in": 120, "rows_out": 108, "dropped": {"nsfw": 12}, "failed": {}}
    assert job.out.read_bytes("00007.bin") == b"00007" * 100
    told = json.loads(pq.read_table(job.out.path(LEDGER)).to_pydict()["files"][7])
    assert told["00007.bin"]["sha256"] == job.out.sha256("00007.bin")
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{(tmp_path / 'tries/hangs').read_text()}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{(tmp_path / 'tries/hangs').read_text()}")


def test_a_lone_actor_is_not_given_a_slow_shard_twice(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second copy would wait behind the first, and ending it would end what the actor has loaded."""

    @dataclass(frozen=True)
    class Slow(CountsLoads):
        def __call__(self, name: str) -> ShardOutput:
            time.sleep(2.0 if name == NAMES[7] else 0.0)
            return super().__call__(name)

    monkeypatch.setattr("flows.engine.shard_map.STRAGGLER_FLOOR_SECONDS", 0.5)
    monkeypatch.setattr("flows.engine.shard_map._ShardPass._slots", lambda shards: 1)
    outcome = shard_map(job, Slow(job.out, str(tmp_path / "tries")), NAMES, actors=True)
    assert outcome.counts["rows_in"] == 120
    assert len(list((tmp_path / "tries").glob("process-*"))) == 1
    assert _executions(tmp_path) == len(NAMES) + 1, "each once, and the process's mark"


def test_gpus_that_are_not_there_are_named(job: Job, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gpus_per_worker=0"):
        shard_map(job, _fault(job, tmp_path), NAMES, gpus=1.0, actors=True)


def test_a_poison_shard_is_set_aside_and_named(job: Job, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"1 of 12 shards failed 3 times, shard 00004 with: RuntimeError: poison in 00004"
    ):
        shard_map(job, _fault(job, tmp_path, poison=(NAMES[4],)), NAMES)
    assert len(list((tmp_path / "tries").glob("00004.*"))) == 3
    outcome = shard_map(job, _fault(job, tmp_path), NAMES)
    assert outcome.counts["rows_in"] == 120
    assert _executions(tmp_path) == len(NAMES) + 3, "the eleven good shards were kept"


def test_a_users_error_stops_at_once(job: Job, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks a column"):
        shard_map(job, _fault(job, tmp_path, user_error=(NAMES[0],)), NAMES)
    assert len(list((tmp_path / "tries").glob("00000.*"))) == 1


def test_a_full_disk_is_not_tried_again(job: Job, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        shard_map(job, _fault(job, tmp_path, full_disk=(NAMES[0],)), NAMES)
    assert caught.value.errno == errno.ENOSPC


def test_a_shard_under_the_floor_is_tried_again(job: Job, tmp_path: Path) -> None:
    """As when a killed driver takes the network with it: the orphaned worker must not commit what it could not
    fetch."""

    @dataclass(frozen=True)
    class Offline(Fault):
        def __call__(self, name: str) -> ShardOutput:
            first = not list(Path(self.tries).glob(f"{name}.*"))
            output = super().__call__(name)
            failed = {"rows_in": 10, "rows_out": 0, "dropped": {}, "failed": {"reset": 10}}
            return ShardOutput(failed, ()) if first else output

    outcome = shard_map(job, Offline(job.out, str(tmp_path / "tries")), NAMES, success_floor=0.5)
    assert outcome.counts["failed"] == {}
    assert _executions(tmp_path) == 2 * len(NAMES)


def test_the_floor_names_the_reasons(job: Job, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class AllFail(Fault):
        def __call__(self, name: str) -> ShardOutput:
            return ShardOutput({"rows_in": 5, "rows_out": 0, "dropped": {}, "failed": {"dns": 4, "http_404": 1}}, ())

    with pytest.raises(UserError, match=r"0 of 60 rows came through.*dns 48, http_404 12.*lower `walk.success_floor`"):
        shard_map(job, AllFail(job.out, str(tmp_path / "tries")), NAMES, success_floor=0.5)
    with pytest.raises(UserError, match=r"shard 00000 with: only 0 of 5 rows came through .failed: dns 4, http_404 1"):
        shard_map(job, AllFail(job.out, str(tmp_path / "tries")), NAMES, shard_floor=0.25)
