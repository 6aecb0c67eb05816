"""Faults that need a scene of their own: falsified and poisoned shards, a full disk, storage that fails, clocks that
disagree."""

from __future__ import annotations

import os
import shutil
import subprocess
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
            verified.returncode == 1 and str(file) in verified.stderr,
            f"verify did not name {file}: {verified.stderr}",
        )
        rerun = flow("rerun", "tiny", stage)
        _expect(chaos, rerun.returncode == 0, f"rerun of {stage}: {rerun.stderr[-300:]}")
        problems = list(store.find(chaos.plan.node(stage)).problems())  # type: ignore[union-attr]
        _expect(chaos, not problems, f"{stage} is not whole after its rerun")
    _done(chaos, store, flow, "bit flipped in a finished shard", len(stages), chaos.until)


def poison(chaos: Chaos) -> None:
    """A shard that cannot be read, whoever tries: the stage says which, and goes on where it was once its input is
    mended."""
    store, flow = _copy(chaos, "poison")
    for stage in ("image-screen", "image-embed"):
        store.artifact(chaos.plan.node(stage)).remove()
    images = store.artifact(chaos.plan.node("image-download"))
    name = chaos.rng.choice([name for name in images.names() if name.endswith(".tar")])
    whole = images.read_bytes(name)
    images.write_bytes(name, whole[: len(whole) // 3])
    poisoned = flow("run", "tiny", "--until", "image-embed")
    _expect(
        chaos, poisoned.returncode == 2 and name in poisoned.stderr, f"{name} was not named: {poisoned.stderr[-300:]}"
    )
    flow("rerun", "tiny", "image-download")
    mended = flow("run", "tiny", "--until", "image-embed")
    _expect(chaos, mended.returncode == 0, f"not mended: {mended.stderr[-300:]}")
    _done(chaos, store, flow, "poison shard", 1, chaos.until)


def full_disk(chaos: Chaos) -> None:
    """The disk fills in the middle; with room again the same command goes on."""
    disk = chaos.base / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], check=False, capture_output=True
    ).returncode:
        chaos.say("no small disk can be mounted here: left out")
        return
    try:
        store = Store(str(disk / "runs"))
        flow = chaos.flow(store.root.url)
        for kilobytes in (1500, 200_000):
            subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)
            flow.start("run", "tiny", "--until", SHORT)
            code = flow.wait(PATIENCE)
            _expect(chaos, code == (0 if kilobytes > 100_000 else 2), f"with {kilobytes} kB the run ended with {code}")
        _expect(chaos, "no space is left" in flow.log.read_text(), "nobody spoke of the full disk")
        _done(chaos, store, flow, "full disk")
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def failing_storage(chaos: Chaos) -> None:
    """An S3 server that answers one call of ten with an error, and one that now and then does not answer at all."""
    for kind, faults in (
        ("storage that fails 10 % of calls", {"errors": 0.1}),
        ("storage that times out", {"hangs": 0.007}),
    ):
        with FaultyS3(chaos.rng.randrange(1 << 30), **faults) as server:
            os.environ.update(server.environment)
            store = Store(f"s3://mav/{len(chaos.flows)}")
            flow = chaos.flow(store.root.url)
            del flow.environment[
                "RAY_ADDRESS"
            ]  # a cluster has the credentials it was started with: this takes a Ray of its own
            for _ in range(5):
                flow.start("run", "tiny", "--until", SHORT)
                if not flow.wait(PATIENCE):
                    break
            chaos.say(f"{kind}: {server.failed} of {server.calls} calls")
            server.errors = server.hangs = 0.0
            _done(chaos, store, flow, kind)
        for name in server.environment:
            del os.environ[name]


def skewed_clocks(chaos: Chaos) -> None:
    """A run whose clock is an hour off takes nothing from one that is at work; it goes on once that one was killed."""
    for hours in (-1, 1):
        store = Store(str(chaos.base / f"skew{hours}"))
        flow, skewed = chaos.flow(store.root.url), chaos.flow(store.root.url)
        clock = chaos.base / f"clock{hours}"
        clock.mkdir()
        (clock / "sitecustomize.py").write_text(
            f"import time\n_time = time.time\ntime.time = lambda: _time() + {3600 * hours}\n"
        )
        skewed.environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(clock), os.environ.get("PYTHONPATH", "")]))
        flow.start("run", "tiny", "--until", SHORT)
        while flow.alive and not list(Path(store.root.root).glob("work/*/*/lease/*.json")):
            time.sleep(0.05)
        os.kill(flow.process.pid, 19)  # type: ignore[union-attr] # SIGSTOP: it is alive and does not beat
        refused = skewed("run", "tiny", "--until", SHORT)
        _expect(
            chaos,
            refused.returncode == 2 and "Another run" in refused.stderr,
            f"{hours} h: not refused: {refused.stderr[-300:]}",
        )
        os.kill(flow.process.pid, 18)  # type: ignore[union-attr]
        time.sleep(chaos.rng.uniform(0, 3))
        flow.kill()
        went_on = skewed("run", "tiny", "--until", SHORT)
        _expect(chaos, went_on.returncode == 0, f"{hours} h: {went_on.stderr[-300:]}")
        _done(chaos, store, flow, "clock an hour off")


SCENES: list[Callable[[Chaos], None]] = [flipped_bits, poison, full_disk, failing_storage, skewed_clocks]
