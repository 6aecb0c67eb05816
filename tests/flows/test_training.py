"""A training that is stopped, or whose node is taken away."""

import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows.engine.run import Job
from flows.training import MAX_FAILURES, STOP, _fit, restarted
from mav.errors import UserError
from mav.storage import Folder


def test_a_training_whose_run_is_stopped_saves_before_the_run_ends(tmp_path):
    work, saved = Folder(str(tmp_path)), []

    def require_running() -> None:
        raise UserError("The run is being stopped")

    def fit() -> None:
        """As the workers do: train until they are told to end, then save."""
        while not work.exists(STOP):
            time.sleep(0.05)
        time.sleep(0.2)
        saved.append(True)

    job: Any = SimpleNamespace(work=work)
    with pytest.raises(UserError, match="being stopped"):
        _fit(cast(Job, job), SimpleNamespace(fit=fit), require_running)
    assert saved


def test_what_a_training_fails_of_is_raised(tmp_path):
    def fit() -> None:
        raise RuntimeError("the workers are gone")

    job: Any = SimpleNamespace(work=Folder(str(tmp_path)))
    with pytest.raises(RuntimeError, match="are gone"):
        _fit(cast(Job, job), SimpleNamespace(fit=fit), lambda: None)


@pytest.mark.parametrize("preempted", [0, 10])
@pytest.mark.parametrize("saved", [True, False])
def test_a_training_comes_to_its_end_however_often_its_machines_are_taken_away(tmp_path, preempted, saved):
    """With a checkpoint in each life, or with Ray's word in each that a node will be taken away."""
    work, lives, drained = Folder(str(tmp_path)), [], set[str]()

    def once() -> int:
        lives.append(True)
        if len(lives) <= preempted:
            if saved:
                work.write_bytes(f"{len(lives)}/facts.json", b"{}")
            else:
                drained.add(f"node {len(lives)}")
            raise RuntimeError("the workers are gone")
        return len(lives)

    assert restarted(once, work, drained, RuntimeError) == preempted + 1


def test_a_training_that_comes_no_further_fails(tmp_path):
    work, lives = Folder(str(tmp_path)), []

    def once() -> None:
        lives.append(True)
        if len(lives) == 1:
            work.write_bytes("1/facts.json", b"{}")
        raise RuntimeError("the workers are gone")

    with pytest.raises(RuntimeError, match="are gone"):
        restarted(once, work, {"a node that was drained before"}, RuntimeError)
    assert len(lives) == 1 + MAX_FAILURES


DRAINED = """
import sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

cluster = Cluster(
    initialize_head=True,
    head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20},
)
cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
ray.init(cluster.address, log_to_driver=False)

@ray.remote(num_cpus=1, max_retries=0)
def train(begun, saved):
    from flows.training import _ended_when_drained
    from mav.training.process.preemption import TerminationRequest, catch_termination_signals

    with catch_termination_signals(), _ended_when_drained():
        requested = TerminationRequest(1)
        Path(begun).write_text(ray.get_runtime_context().get_node_id())
        while not requested():
            time.sleep(0.1)
        Path(saved).touch()

begun, saved = Path(sys.argv[1]) / "begun", Path(sys.argv[1]) / "saved"
training = train.remote(str(begun), str(saved))
while not begun.exists() or not begun.read_text():
    time.sleep(0.1)
reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
client = ray._raylet.GcsClient(address=cluster.address)
accepted, _ = client.drain_node(begun.read_text(), reason, "", int(time.time() * 1000) + 60_000)
assert accepted
ray.get(training, timeout=50)
assert saved.exists()
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_training_saves_when_ray_drains_its_node(tmp_path):
    """In a process of its own: it joins a cluster of its own."""
    done = subprocess.run([sys.executable, "-c", DRAINED, str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
