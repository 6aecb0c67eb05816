"""A stage without processors says what it waits for; one that no node can hold is refused at once."""

import dataclasses
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import ray

from flows.engine import capacity
from flows.engine.function import run_on_ray
from flows.engine.run import Job, Run
from flows.engine.shard_map import shard_map
from flows.engine.stage import Graph, Outcome, Stage
from flows.engine.store import Store
from flows.services.terminal import Terminal
from flows.training import train
from mav.data.shards import ShardOutput
from mav.errors import UserError
from mav.recipes import Recipe


class Watched(Terminal):
    """Remembers what was said to be waited for, and lets `then` happen."""

    def __init__(self, then: Any) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.said: list[str] = []
        self.then = then

    def progress(self, stage: str, done: float, total: float, **facts: Any) -> None:
        if "waits" in facts:
            self.waits.append(facts["waits"])
            self.then()

    def say(self, text: str, stage: str = "") -> None:
        self.said.append(f"{stage} {text}")


def _job(recipe: Recipe, folder: Path, screen: Terminal, **cluster: Any) -> Job:
    recipe = dataclasses.replace(recipe, cluster=dataclasses.replace(recipe.cluster, **cluster))
    run = Run(recipe, Store(str(folder / "runs")), screen, ExitStack())
    node = Stage("walk", 1, (), lambda job: Outcome(), "walk")(Graph(recipe))
    return Job(node, run, run.store.artifact(node), run.store.work(node))


def _shard(name: str) -> ShardOutput:
    return ShardOutput({"rows_in": 1, "rows_out": 1, "dropped": {}, "failed": {}})


def _answer(report: Any) -> int:
    return 42


@pytest.fixture
def full(
    small_recipe: Recipe, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> tuple[Job, Watched]:
    """A cluster whose two processors are taken until somebody complains."""
    gone, begun = tmp_path / "gone", tmp_path / "begun"

    def hold(number: int) -> None:
        Path(f"{begun}{number}").touch()
        while not gone.exists():
            time.sleep(0.05)

    monkeypatch.setattr(capacity, "SILENT_SECONDS", 0.5)
    task = ray.remote(num_cpus=1, max_retries=0)(hold)
    held = [task.remote(number) for number in range(2)]
    while not all(Path(f"{begun}{number}").exists() for number in range(2)):
        time.sleep(0.05)
    screen = Watched(gone.touch)
    assert len(held) == 2
    return _job(small_recipe, tmp_path, screen), screen


def test_a_pass_says_once_what_it_waits_for(full: tuple[Job, Watched]) -> None:
    job, screen = full
    assert shard_map(job, _shard, ["0", "1"]).counts["rows_out"] == 2
    assert screen.waits == ["for 1 CPU: 0 of 2 CPU free in the cluster"]
    assert screen.said == [f"walk waits {screen.waits[0]}"], "a note beside a bar has no room for it"


def test_a_stage_in_one_task_says_what_it_waits_for(full: tuple[Job, Watched]) -> None:
    job, screen = full
    assert run_on_ray(job, _answer, cpus=2) == 42
    assert screen.waits == ["for 2 CPU: 0 of 2 CPU free in the cluster"]


def test_what_no_node_has_is_refused(small_recipe: Recipe, tmp_path: Path, ray_session: None) -> None:
    def job(**cluster: Any) -> Job:
        return _job(small_recipe, tmp_path, Terminal(), **cluster)

    with pytest.raises(
        UserError, match=r"walk asks for 64 CPU .* at most 2 CPU each: give `--set cluster.cpus_per_shard=2`"
    ):
        shard_map(job(cpus_per_shard=64), _shard, ["0"])
    with pytest.raises(UserError, match=r"1 CPU and 1 GPU .* 0 GPU each: give `--set cluster.gpus_per_worker=0`"):
        train(job(gpus_per_worker=1))
    with pytest.raises(UserError, match=r"1 CPU for each of 3 workers .* give `--set cluster.workers=2`"):
        train(job(workers=3))


@pytest.mark.parametrize(("command", "scaled"), [("ray start --head --no-monitor", True), ("ray start --head", False)])
def test_on_kubernetes_only_an_autoscaler_makes_a_cluster_grow(
    command: str, scaled: bool, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every node of KubeRay has a group, with an autoscaler or without; the head's environment tells."""
    nodes = [node | {"Labels": {"ray.io/node-group": "gpu"}} for node in ray.nodes()]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert not capacity.grows(), "the head of this cluster was not started by KubeRay"
    monkeypatch.setattr(capacity, "_head_start_command", lambda: command)
    assert capacity.grows() is scaled


def test_a_cluster_that_grows_is_waited_for(
    small_recipe: Recipe, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not capacity.grows(), "a local Ray has the nodes it has"
    monkeypatch.setattr(capacity, "grows", lambda: True)
    monkeypatch.setattr(capacity, "SILENT_SECONDS", 0.5)
    screen = Watched(lambda: job.run.stopping.set())
    job = _job(small_recipe, tmp_path, screen)
    with pytest.raises(UserError, match="being stopped"):
        shard_map(job, _shard, ["0"], gpus=1.0, actors=True)
    assert screen.waits == [
        "for 1 CPU and 1 GPU: 2 of 2 CPU and 0 of 0 GPU free in the cluster, no node has them yet, one may be started"
    ]
