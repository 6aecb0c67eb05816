"""Floors and deadlines change in the middle of a stage: what is finished stays, and the ledger tells of it."""

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.engine.run import Job, Run
from flows.engine.shard_map import shard_map
from flows.engine.stage import Graph, Outcome, Stage
from flows.engine.store import Store
from flows.services.terminal import Terminal
from mav.data.shards import ShardOutput
from mav.errors import UserError
from mav.recipes import Recipe
from mav.storage import Folder
from mav.storage.ledger import read_ledger

NAMES = [f"{i:05d}" for i in range(12)]


@dataclass(frozen=True)
class Half:
    """While the network is away, nothing of every second shard comes through. Some shards cannot be made at all."""

    out: Folder
    tries: str  # a folder that records every execution
    away: bool = True
    poison: str = ""

    def __call__(self, name: str) -> ShardOutput:
        executions = len(list(Path(self.tries).glob(f"{name}.*")))
        (Path(self.tries) / f"{name}.{executions}").touch()
        self.out.write_bytes(f"{name}.bin", name.encode())
        if name == self.poison:
            raise RuntimeError("poison")
        lost = 10 if self.away and int(name) % 2 else 0
        counts = {"rows_in": 10, "rows_out": 10 - lost, "dropped": {}, "failed": {"dns": lost} if lost else {}}
        return ShardOutput(counts, (f"{name}.bin",))


@pytest.fixture
def job(small_recipe: Recipe, tmp_path: Path, ray_session: None) -> Job:
    run = Run(small_recipe, Store(str(tmp_path / "runs")), Terminal(), ExitStack())
    (tmp_path / "tries").mkdir()
    return under(Job(None, run, None, None), 30.0)  # type: ignore[arg-type]


def under(job: Job, seconds: float) -> Job:
    """Returns the job of a stage that fetches, with this deadline."""
    section = dataclasses.replace(job.recipe.image_download, deadline_seconds=seconds)
    recipe = dataclasses.replace(job.recipe, image_download=section)
    node = Stage("fetch", 1, ("image_download.deadline_seconds",), lambda job: Outcome(), "fetch")(Graph(recipe))
    assert node is not None
    run = dataclasses.replace(job.run, recipe=recipe)
    return Job(node, run, run.store.artifact(node), run.store.work(node))


@pytest.fixture
def half(job: Job, tmp_path: Path) -> Half:
    return Half(job.out, str(tmp_path / "tries"))


def _executions(half: Half) -> int:
    return len(list(Path(half.tries).iterdir()))


def test_below_its_floor_a_stage_makes_only_the_bad_shards_again(job: Job, half: Half) -> None:
    with pytest.raises(UserError, match="which makes only the shards below the floor again"):
        shard_map(job, half, NAMES, success_floor=0.9)
    before = _executions(half)
    outcome = shard_map(job, dataclasses.replace(half, away=False), NAMES, success_floor=0.9)
    assert _executions(half) == before + len(NAMES) // 2
    assert outcome.counts["failed"] == {}


def test_a_lowered_floor_keeps_every_shard(job: Job, half: Half) -> None:
    with pytest.raises(UserError, match=r"or lower `fetch.success_floor` and run again, which keeps all of them"):
        shard_map(job, half, NAMES, success_floor=0.9)
    before = _executions(half)
    outcome = shard_map(job, half, NAMES, success_floor=0.4)
    assert _executions(half) == before
    assert outcome.counts["failed"] == {"dns": 60}
    assert [shard["shard"] for shard in read_ledger(job.out)] == NAMES


def test_a_changed_deadline_keeps_shards_and_the_ledger_tells_their_own(job: Job, half: Half) -> None:
    longer = under(job, 60.0)
    assert job.node.fingerprint == longer.node.fingerprint, "a deadline is not part of what is made"
    with pytest.raises(UserError, match="poison"):
        shard_map(job, dataclasses.replace(half, poison=NAMES[4]), NAMES)
    before = _executions(half)
    shard_map(longer, half, NAMES)
    assert _executions(half) == before + 1
    told = {shard["shard"]: shard.get("deadlines") for shard in read_ledger(longer.out)}
    assert told == {n: None if n == NAMES[4] else {"image_download.deadline_seconds": 30.0} for n in NAMES}
    assert all("deadlines" not in shard["counts"] for shard in read_ledger(longer.out))


def test_without_a_change_the_ledger_names_no_deadline(job: Job, half: Half) -> None:
    shard_map(job, half, NAMES)
    assert all("deadlines" not in shard for shard in read_ledger(job.out))
