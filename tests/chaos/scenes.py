"""Faults that need a scene of their own: falsified and defective shards, a full disk, storage that fails, clocks that
disagree, a run that wakes up too late."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stand import Flow
from storage import FaultyS3

from flows.engine.store import Store

if TYPE_CHECKING:
    from chaos import Chaos

PATIENCE = 300.0
SHORT = "image-download"  # how far a scene goes that needs no more


def _copy(chaos: Chaos, name: str) -> tuple[Store, Flow]:
    """A runs folder with all that the calm run made."""
    store = Store(str(chaos.base / name))
    shutil.copytree(chaos.calm.root.root, store.root.root)
    return store, chaos.flow(store.root.url)


def _done(chaos: Chaos, store: Store, flow: Flow, kind: str, number: int = 1, until: str = SHORT) -> None:
    chaos.settle(store, Counter({kind: number}), flow, until)
    if store.root.local:
        shutil.rmtree(store.root.root)


def _expect(chaos: Chaos, true: bool, sentence: str) -> None:
    if not true:
        chaos.account.problems.append(sentence)


def flipped_bits(chaos: Chaos) -> None:
    """One bit of a finished shard: `mav verify` names the file, `mav rerun` of its stage makes it whole."""
    store, flow = _copy(chaos, "flipped")
    stages = ("image-metadata", "image-download")
    for stage in stages:
        artifact = store.find(chaos.plan.node(stage))
        assert artifact
        file = Path(artifact.folder.path(chaos.rng.choice(artifact.files())))
        data = bytearray(file.read_bytes())
        data[chaos.rng.randrange(len(data))] ^= 1 << chaos.rng.randrange(8)
        file.write_bytes(data)
        verified = flow("verify", "tiny")
        _expect(
            chaos,
            verified.returncode == 1 and str(file) in verified.stdout,
            f"verify did not name {file}: {verified.stdout}",
        )
        rerun = flow("rerun", "tiny", stage)
        _expect(chaos, rerun.returncode == 0, f"rerun of {stage}: {rerun.stderr[-300:]}")
        problems = list(store.find(chaos.plan.node(stage)).problems())  # type: ignore[union-attr]
        _expect(chaos, not problems, f"{stage} is not whole after its rerun")
    _done(chaos, store, flow, "bit flipped in a finished shard", len(stages), chaos.until)


def defective_shard(chaos: Chaos) -> None:
    """A shard that cannot be read, whoever tries: the stage says which, and goes on where it was once its input is
    mended."""
    store, flow = _copy(chaos, "defective")
    for stage in ("image-screen", "image-embed"):
        store.artifact(chaos.plan.node(stage)).remove()
    images = store.artifact(chaos.plan.node("image-download"))
    name = chaos.rng.choice([name for name in images.names() if name.endswith(".tar")])
    whole = images.read_bytes(name)
    images.write_bytes(name, whole[: len(whole) // 3])
    ended = flow("run", "tiny", "--until", "image-embed")
    _expect(chaos, ended.returncode == 2 and name in ended.stderr, f"{name} was not named: {ended.stderr[-300:]}")
    flow("rerun", "tiny", "image-download")
    mended = flow("run", "tiny", "--until", "image-embed")
    _expect(chaos, mended.returncode == 0, f"not mended: {mended.stderr[-300:]}")
    _done(chaos, store, flow, "defective shard", 1, chaos.until)


def full_disk(chaos: Chaos) -> None:
    """The disk fills in the middle, or can take no more files; with room again the same command goes on."""
    for kind, option, enough in (
        ("full disk", "size=1500k", "size=200m"),
        ("no inode left", "nr_inodes=150", "nr_inodes=9k"),
    ):
        disk = chaos.base / kind.replace(" ", "-")
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(disk)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            chaos.say("no small disk can be mounted here: left out")
            return
        try:
            store = Store(str(disk / "runs"))
            flow = chaos.flow(store.root.url)
            for expected in (2, 0):
                flow.start("run", "tiny", "--until", SHORT)
                code = flow.wait(PATIENCE)
                _expect(chaos, code == expected, f"{kind}: the run ended with {code}, not {expected}")
                subprocess.run(["mount", "-o", f"remount,{enough}", str(disk)], check=True)
            _expect(chaos, "no space is left" in flow.log.read_text(), f"nobody spoke of the {kind}")
            _done(chaos, store, flow, kind)
        finally:
            subprocess.run(["umount", str(disk)], check=False)


def failing_storage(chaos: Chaos) -> None:
    """An S3 server that answers with errors, too late, after it was done, or with listings of before."""
    for kind, faults in (
        ("S3 that fails 5 % of calls and loses 5 % of answers", {"error": 0.05, "lost": 0.05}),
        ("S3 that is 20 s late now and then, its listings of before", {"late": 0.005, "stale": 0.3}),
    ):
        with FaultyS3(chaos.rng.randrange(1 << 30), **faults) as server:
            os.environ.update(server.environment)
            store = Store(f"s3://mav/{len(chaos.flows)}")
            flow = chaos.flow(store.root.url)
            # A cluster has the credentials it was started with: this takes a Ray of its own.
            del flow.environment["RAY_ADDRESS"]
            for _ in range(5):
                flow.start("run", "tiny", "--until", SHORT)
                if not flow.wait(PATIENCE):
                    break
            chaos.say(f"{kind}: {server.failed} of {server.calls} calls")
            server.faults = {}
            _done(chaos, store, flow, kind, len(faults))
        for name in server.environment:
            del os.environ[name]


UPLOADS = """
import sys, torch
from mav.storage import Folder
from mav.training.checkpoint import Checkpoints

work, first = Folder(sys.argv[1]), int(sys.argv[2])
checkpoints = Checkpoints(work, "id", 0, 1, keep=2)
tensors = {"weights": torch.zeros(3 << 20)}  # 12 MB, three parts
before = checkpoints.restore(tensors)
done = before["steps"] if before else 0
assert (done == first) and bool((tensors["weights"] == done).all()), (done, first)
for step in range(first + 1, first + 4):
    tensors["weights"].fill_(step)
    checkpoints.save(step, tensors, {"steps": step})
    checkpoints.wait()
"""


def hanging_uploads(chaos: Chaos) -> None:
    """Parts of large checkpoints hang on their way; every save is whole in the end, and is what the next life finds."""
    lives = 2
    with FaultyS3(chaos.rng.randrange(1 << 30), part=0.2) as server:
        blocks = {"FSSPEC_S3": '{"default_block_size": 5242880}'}  # the smallest part: no file of `tiny` has two
        for life in range(lives):
            command = [sys.executable, "-c", UPLOADS, "s3://mav/uploads", str(3 * life)]
            done = subprocess.run(
                command, env=os.environ | server.environment | blocks, capture_output=True, text=True, timeout=PATIENCE,
                check=False,
            )  # fmt: skip
            _expect(chaos, done.returncode == 0, f"uploads: {done.stderr[-300:]}")
        chaos.say(f"hanging uploads: {server.failed} of {server.calls} calls")
        _expect(chaos, server.failed > 0, "no upload hung")
    kind = "parts of checkpoints that hang on their way to S3"
    chaos.landed[kind] += server.failed
    chaos.resumed[kind] += server.failed * (done.returncode == 0)


def _elsewhere(chaos: Chaos, flow: Flow, name: str, code: str) -> None:
    """Lets this code run first in every process of a flow."""
    place = chaos.base / name
    place.mkdir()
    (place / "sitecustomize.py").write_text(code)
    flow.environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(place), os.environ.get("PYTHONPATH", "")]))


def _leases(store: Store, stage: str = "*") -> set[str]:
    return {str(file) for file in Path(store.root.root).glob(f"work/{stage}/*/lease/[0-9]*.json")}


def _at_work(flow: Flow, store: Store, stage: str = "*") -> None:
    while flow.alive and not _leases(store, stage):
        time.sleep(0.05)


def skewed_clocks(chaos: Chaos) -> None:
    """A run whose clock is an hour off, or jumps so far, takes nothing from one that is at work; it goes on once that
    one was killed."""
    for kind, change in (
        ("clock an hour ahead", "_time() + 3600"),
        ("clock that jumps a day back", "_time() - 86400 * (time.monotonic() > _jump)"),
        ("clock that jumps a day ahead", "_time() + 86400 * (time.monotonic() > _jump)"),
    ):
        store = Store(str(chaos.base / kind.replace(" ", "-")))
        flow, skewed = chaos.flow(store.root.url), chaos.flow(store.root.url)
        jump = chaos.rng.uniform(10, 20)
        code = f"import time\n_time, _jump = time.time, time.monotonic() + {jump}\ntime.time = lambda: {change}\n"
        _elsewhere(chaos, skewed, f"{kind} ", code)
        flow.start("run", "tiny", "--until", SHORT)
        _at_work(flow, store)
        os.kill(flow.process.pid, signal.SIGSTOP)  # type: ignore[union-attr] # it is alive and does not beat
        refused = skewed("run", "tiny", "--until", SHORT)
        known = refused.returncode == 2 and "Another run" in refused.stderr
        _expect(chaos, known, f"{kind}: not refused: {refused.stderr[-300:]}")
        os.kill(flow.process.pid, signal.SIGCONT)  # type: ignore[union-attr]
        time.sleep(chaos.rng.uniform(0, 3))
        flow.kill()
        went_on = skewed("run", "tiny", "--until", SHORT)
        _expect(chaos, went_on.returncode == 0, f"{kind}: {went_on.stderr[-300:]}")
        _done(chaos, store, flow, kind)


def taken_over(chaos: Chaos) -> None:
    """A run falls silent in the middle of a stage, one that takes itself for another machine builds it, and the first
    wakes up: it changes nothing more, and says why."""
    kind = "a run that wakes up after another took its stage"
    code = "import os\n_read = os.readlink\nos.readlink = lambda p, **k: 'x' if 'ns/pid' in str(p) else _read(p, **k)\n"
    for number in range(2):
        store = Store(str(chaos.base / f"taken{number}"))
        flow, other = chaos.flow(store.root.url), chaos.flow(store.root.url)
        other.log = chaos.base / f"taken{number}.log"
        _elsewhere(chaos, other, f"machine{number}", code)
        flow.start("run", "tiny", "--until", SHORT)
        held = set[str]()
        while flow.alive and not held:
            _at_work(flow, store, SHORT)
            time.sleep(chaos.rng.uniform(0, 2))
            os.kill(flow.process.pid, signal.SIGSTOP)  # type: ignore[union-attr]
            held = _leases(store, SHORT)
            if not held:  # the stage was done
                os.kill(flow.process.pid, signal.SIGCONT)  # type: ignore[union-attr]
        other.start("run", "tiny", "--until", SHORT)
        while other.alive and _leases(store, SHORT) <= held:  # a new one has a higher number
            time.sleep(0.2)
        os.kill(flow.process.pid, signal.SIGCONT)  # type: ignore[union-attr]
        first, second = flow.wait(PATIENCE), other.wait(PATIENCE)
        if second:  # the first run's web of the demo, from which it fetched, has ended with it
            other.start("run", "tiny", "--until", SHORT)
            second = other.wait(PATIENCE)
        _expect(chaos, first == 2 and second == 0, f"{kind}: they ended with {first} and {second}")
        _expect(chaos, "took" in flow.log.read_text(), "the first was not told")
        _done(chaos, store, flow, kind)


SCENES: list[Callable[[Chaos], None]] = [
    flipped_bits, defective_shard, full_disk, hanging_uploads, taken_over, failing_storage, skewed_clocks,
]  # fmt: skip
