"""The lease: of all who want to build one artifact, one does, on any storage; the dead are followed, the living
never."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from botocore.exceptions import EndpointConnectionError

from flows.engine import lease as leases
from flows.engine.lease import LEASE, Lease, exclusive, held, top
from flows.engine.markers import Markers
from mav.errors import TakenOverError, UserError
from mav.storage import Folder
from mav.storage.fence import Fence, lease_numbers


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def work(request: pytest.FixtureRequest) -> Folder:
    if request.param == "local":
        return Folder(str(request.getfixturevalue("tmp_path") / "work"))
    return Folder(f"{request.getfixturevalue('s3')}/lease-{uuid.uuid4().hex}")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.8)


def _abroad(work: Folder, number: int = 1, **facts: object) -> None:
    """As if a process of another machine held the lease."""
    says = {"token": "theirs", "machine": "elsewhere", "process": "1@1", "beats": 0, **facts}
    work.child(LEASE).write_bytes(f"{number:06d}.json", json.dumps(says).encode())


def test_one_builds_the_other_is_refused_and_nothing_stays(work: Folder) -> None:
    with exclusive(work, "clip") as lease:
        assert held(work)
        with pytest.raises(UserError, match="Another run is building clip"), exclusive(work, "clip"):
            raise AssertionError("two hold it")
        lease.clear()
    assert not work.exists()
    assert not held(work)


def test_a_failed_build_lets_the_next_one_in_at_once(work: Folder) -> None:
    for number in (1, 2, 3):
        with pytest.raises(ZeroDivisionError), exclusive(work, "clip"):
            print(1 // 0)
        assert lease_numbers(work.child(LEASE)) == [number], "a number is never given twice"
        assert not held(work)


def test_storage_that_fails_while_a_lease_is_taken_leaves_no_holder(
    work: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(fence: Fence) -> bool:
        raise EndpointConnectionError(endpoint_url="s3")

    with monkeypatch.context() as patch:
        patch.setattr(Fence, "holds", away)
        with pytest.raises(EndpointConnectionError):
            Lease(work, "clip").acquire()
    with exclusive(work, "clip") as lease:  # a second try of the same process
        assert lease.number == 2


def test_a_stage_fails_for_its_own_reason_where_its_lease_cannot_be_released(
    work: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(folder: Folder, name: str, data: bytes) -> None:
        raise EndpointConnectionError(endpoint_url="s3")

    def fails() -> None:
        with monkeypatch.context() as patch, exclusive(work, "clip"):
            patch.setattr(Folder, "write_bytes", away)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not held(work), "its holder is known to have ended"


def test_of_many_at_once_one_wins(work: Folder) -> None:
    start = threading.Barrier(6)

    def take(_: int) -> Lease | None:
        lease = Lease(Folder(work.url), "clip")  # with a file system of its own, as another process would have
        start.wait()
        return lease if lease.acquire() else None

    with ThreadPoolExecutor(6) as pool:
        won = [lease for lease in pool.map(take, range(6)) if lease]
    assert len(won) == 1
    assert json.loads(work.child(LEASE).read_bytes("000001.json"))["token"] == won[0].token
    won[0].release()


def test_a_killed_holder_of_this_machine_is_followed_at_once(work: Folder) -> None:
    code = (
        f"import os; from flows.engine.lease import Lease; from mav.storage.artifact import Folder; "
        f"assert Lease(Folder({work.url!r}), 'x').acquire(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    began = time.monotonic()
    with exclusive(work, "clip"):
        assert lease_numbers(work.child(LEASE)) == [2]
    assert time.monotonic() - began < leases.EXPIRY_SECONDS / 3


@pytest.mark.usefixtures("quick")
def test_a_silent_holder_elsewhere_is_followed_whatever_its_clock_says(work: Folder) -> None:
    for number, hours in enumerate((-1, 1), start=1):
        work.remove()
        _abroad(work, number, time=time.time() + 3600 * hours)
        began = time.monotonic()
        with exclusive(work, "clip"):
            assert lease_numbers(work.child(LEASE)) == [number + 1]
        assert time.monotonic() - began >= leases.EXPIRY_SECONDS


@pytest.mark.usefixtures("quick")
def test_a_holder_elsewhere_that_beats_is_never_followed(work: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock is an hour off and jumps; what counts is that its file changes."""
    theirs = Lease(Folder(work.url), "clip")
    real = leases.machine()
    monkeypatch.setattr(
        leases, "machine", lambda: "elsewhere" if threading.current_thread() is not threading.main_thread() else real
    )
    taking = threading.Thread(target=theirs.acquire)
    taking.start()
    taking.join()
    with monkeypatch.context() as skewed:
        if work.local:  # the S3 server of the tests lives in this process
            skewed.setattr(time, "time", lambda: 1e9)
        with pytest.raises(UserError, match="Another run is building clip"), exclusive(work, "clip"):
            raise AssertionError("a live lease was stolen")
    assert lease_numbers(work.child(LEASE)) == [1]
    theirs.check()
    theirs.release()


@pytest.mark.usefixtures("quick")
def test_who_was_taken_for_dead_gives_up(work: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = Lease(work, "clip")
    assert sleeper.acquire()
    _abroad(work, 2)
    with pytest.raises(UserError, match="took clip over"):
        sleeper.beat()
    with pytest.raises(UserError, match="took clip over"):
        sleeper.check()
    sleeper.release()
    last = top(work.child(LEASE))
    assert last is not None
    assert (last.number, last.content["token"]) == (2, "theirs"), "the other's lease is left alone"


def test_who_lost_the_lease_writes_and_removes_nothing(work: Folder) -> None:
    """Nor does a process that works for it; not even when the numbers have begun again."""
    early = Lease(work, "clip")
    assert early.acquire()
    out = pickle.loads(pickle.dumps(early.fenced(Folder(f"{work.url}-out")))).child("shards")
    out.write_bytes("whole", b"early")

    def write_while_it_is_lost() -> None:
        with out.create("torn") as file:
            file.write(b"early")
            _abroad(work, 2)

    with pytest.raises(TakenOverError, match="took clip over"):
        write_while_it_is_lost()
    for begun_again in (False, True):
        if begun_again:
            work.remove()
            early._end()
            later = Lease(work, "clip")
            assert later.acquire()
            assert (later.number, later.fence.holds()) == (early.number, True)
        for late in (lambda: out.write_bytes("whole", b"late"), lambda: out.remove("whole"), lambda: out.remove()):
            with pytest.raises(TakenOverError, match="took clip over"):
                late()
    later.release()
    assert {name: out.read_bytes(name) for name in out.names()} == {"whole": b"early"}


def test_a_marker_that_was_written_late_is_not_believed(work: Folder) -> None:
    markers = []
    for _ in range(2):
        lease = Lease(work, "walk")
        assert lease.acquire()
        out, folder = lease.fenced(work.child("out")), lease.fenced(work.child("markers"))
        out.write_bytes("00000.tar", b"whole")
        markers.append(Markers(out, folder))
        lease.release()
    early, present = markers
    unfenced = Markers(early.out, Folder(early.folder.url))
    counts = {"rows_in": 1, "rows_out": 1, "dropped": {}, "failed": {}}
    present.commit("00000", counts, ["00000.tar"])
    assert present.compact(["00000"], made=["00000"])["rows_in"] == 1
    marker = present.folder.read_json("00000.json")
    unfenced.folder.write_json("00000.json", marker | {"lease": "of the early one"})
    assert present.compact(["00000"])["rows_in"] == 1, "what was there before the lease was taken counts"
    present.forget_ledger()
    with pytest.raises(OSError, match="wrote shard 00000 after it had lost its lease: run again"):
        present.compact(["00000"], made=["00000"])
    assert present.committed(["00000"]) == set(), "it is made again"
    with pytest.raises(TakenOverError):
        early.commit("00000", counts, [])


@pytest.mark.usefixtures("quick")
def test_storage_that_fails_for_a_moment_is_told_and_loses_no_lease(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    told: list[str] = []
    lease = Lease(Folder(str(tmp_path)), "clip", tell=told.append)
    assert lease.acquire()
    with monkeypatch.context() as broken:
        broken.setattr(Folder, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("away")))
        time.sleep(0.3)
    before = top(lease.folder)
    time.sleep(0.3)
    assert top(lease.folder) != before, "it beats again"
    assert [sentence.partition(",")[0] for sentence in told] == [
        "clip: its lease cannot be renewed now (OSError: away)"
    ], "once an outage"
    lease.release()


@pytest.mark.usefixtures("quick")
def test_an_error_of_the_renewal_that_will_not_pass_reaches_the_stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    lease = Lease(Folder(str(tmp_path)), "clip")
    assert lease.acquire()
    monkeypatch.setattr(Lease, "_record", lambda *_: {}["a mistake"])
    time.sleep(0.5)
    with pytest.raises(KeyError, match="a mistake"):
        lease.check()
    lease._end()


class Forgetful(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """A store that knows no conditional write: it writes over what is there."""

    protocol = "forgetful"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: object) -> None:
        super().pipe_file(path, value)


def test_storage_without_a_conditional_write_is_refused() -> None:
    fsspec.register_implementation("forgetful", Forgetful, clobber=True)
    forgetful = Folder(f"forgetful://lease-{uuid.uuid4().hex}")
    with pytest.raises(UserError, match="ignores conditional writes"):
        Lease(forgetful, "clip").acquire()
