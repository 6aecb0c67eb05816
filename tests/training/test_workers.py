"""Two workers: replicas and shards learn what one learns, save what any number can continue, and end together."""

import dataclasses
import json
import os
import signal
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, save
from small_training import run, small_recipe

from flows.services.ports import reserve_port
from mav.diffusion.noise import Draws
from mav.models.prior import Prior
from mav.recipes import Cluster, Optimisation, PriorConfig
from mav.storage import Folder
from mav.training.checkpoint import Checkpoints
from mav.training.export import CURVES, WEIGHTS, load_network
from mav.training.loop import TrainingTask, train
from mav.training.sharding import NODE_WORKERS

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def work_as(rank: int, port: int, root: str, runs: list[dict]) -> None:
    """One of two processes. It makes the runs in turn; each has `run`'s arguments, `sharding` and `end_at` or none."""
    from mav.training.process.preemption import PreemptedError, _requested, catch_sigterm

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for options in runs:
        catch_sigterm()
        end_at, drained = options.pop("end_at", None), options.pop("drained", False)
        recipe = small_recipe(samples=16, batch_size=4, checkpoint_every=8, **options.pop("optimisation", {}))
        recipe = dataclasses.replace(recipe, cluster=Cluster(workers=2, sharding=options.pop("sharding")))

        def report(line, end_at=end_at, drained=drained):
            if rank == 1 and line["samples"] == end_at:  # one of them is asked to end, both end
                os.kill(os.getpid(), signal.SIGTERM)
            if rank == 1 and drained:
                assert _requested.wait(60)

        try:
            with drain() if rank == 1 and drained else nullcontext():
                run(Folder(root), recipe=recipe, rank=rank, world_size=2, report=report, **options)
        except PreemptedError:
            assert end_at or drained
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@contextmanager
def drain():
    """Ray's word that this process's node will be taken away, and the watch for it."""
    import ray
    from ray._private.state import state

    from flows import training

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "mine"))
        patch.setattr(state, "get_draining_nodes", lambda: {"other": 0, "mine": 0})
        patch.setattr(training, "DRAIN_SECONDS", 0.01)
        with training._ended_when_drained():
            yield


@pytest.fixture
def two_workers(tmp_path):
    def start(*runs: dict) -> Folder:
        torch.multiprocessing.start_processes(
            work_as, (reserve_port(), str(tmp_path), list(runs)), nprocs=2, start_method="forkserver"
        )
        return Folder(str(tmp_path))

    return start


def weights(root: Folder, name: str) -> dict[str, torch.Tensor]:
    return load_network(root.child(name)).network.state_dict()


def losses(root: Folder, name: str) -> list[float]:
    return [
        line["loss"] for line in map(json.loads, root.read_bytes(f"{name}/{CURVES}").splitlines()) if "loss" in line
    ]


@pytest.mark.slow
def test_replicas_and_shards_learn_what_one_worker_learns(two_workers, tmp_path):
    """And one worker continues a checkpoint of shards, shards one of one worker, and both end where the others do."""
    root, stage = Folder(str(tmp_path)), "train-decoder-video"
    sizes = {"samples": 16, "batch_size": 4, "checkpoint_every": 8, "held_out": 4}
    recipe = small_recipe(**sizes)
    run(root, stage, recipe, work="one", out="one")
    run(root, stage, recipe, work="halfway", out="unused")
    Checkpoints(root.child(f"halfway/{stage}"), "", keep=1).forget(16)
    base = {"stage": stage, "optimisation": {"held_out": 4, "sample_every": 8}}  # samples are made by both
    two_workers(
        {**base, "sharding": "ddp", "work": "ddp", "out": "ddp"},
        {**base, "sharding": "fsdp", "work": "fsdp", "out": "fsdp"},
        {**base, "sharding": "fsdp", "work": "halfway", "out": "from-one"},
    )
    Checkpoints(root.child(f"fsdp/{stage}"), "", keep=1).forget(16)
    run(root, stage, recipe, work="fsdp", out="from-two")
    one = weights(root, "one")
    for name in ("ddp", "fsdp", "from-one", "from-two"):
        assert losses(root, name) == pytest.approx(losses(root, "one"), rel=1e-3), name
        for key, value in weights(root, name).items():
            torch.testing.assert_close(value, one[key], rtol=2e-3, atol=2e-4, msg=f"{name}: {key}")


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_one_worker_asked_to_end_ends_both_and_resume_is_bit_equal(sharding, two_workers):
    """By SIGTERM in the first life, by Ray's word that its node will be taken away in the second."""
    base = {"stage": "train-prior", "sharding": sharding, "optimisation": {"log_every": 4}}
    ended = {**base, "work": "ended", "out": "ended"}
    root = two_workers(
        {**base, "work": "whole", "out": "whole"}, {**ended, "end_at": 4}, {**ended, "drained": True}, ended
    )
    assert root.read_bytes(f"ended/{WEIGHTS}") == root.read_bytes(f"whole/{WEIGHTS}")
    assert losses(root, "ended") == pytest.approx(losses(root, "whole"), rel=1e-6)


def task_in_float64() -> TrainingTask:
    """A prior that learns to map numbers, in float64: sums in another order differ by nothing that counts."""
    torch.manual_seed(0)
    network = Prior(PriorConfig(embedding_dim=8, text_context=4, width=16, depth=2, heads=2)).double()

    class Source:
        def batch(self, first: int, count: int) -> dict[str, torch.Tensor]:
            draws = Draws(("rows", n) for n in range(first, first + count))
            return {"x": draws.normal(8).double(), "text": draws.normal(8).double()}

        def __len__(self) -> int:
            return 64

    def loss(wrapped: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = len(batch["x"])
        time = torch.full((rows,), 500.0, dtype=torch.float64)
        given = {"tokens": torch.ones(rows, 4, dtype=torch.long), "text_embedding": batch["text"]}
        return (wrapped(batch["x"], time, keep=batch["text"][:, 0] > 0, **given) - batch["x"]).square().mean()

    return TrainingTask("train-prior", network, Source(), loss)


def exactly_as(rank: int, world_size: int, port: int, root: str, runs: list[tuple[str, str, int]]) -> None:
    """One of several processes, two to a node. It makes the runs (name, sharding, samples) in turn."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), NODE_WORKERS: "2"}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    for name, sharding, samples in runs:
        twenty_steps(Folder(root), name, sharding, samples, rank, world_size)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def twenty_steps(root: Folder, name: str, sharding: str = "ddp", samples: int = 160, rank: int = 0, world: int = 1):
    o = Optimisation(samples=samples, batch_size=8, accumulation=2, learning_rate=1e-3, checkpoint_every=80)
    task, cluster = task_in_float64(), Cluster(sharding=sharding, workers=4)
    if rank and sharding != "ddp":
        task.network.to("meta")  # what the other ranks build has no values
    train(task, o, 0, root.child(f"work/{name}"), rank=rank, world_size=world, cluster=cluster)
    if rank == 0:
        root.write_bytes(f"{name}.safetensors", save(dict(task.network.state_dict())))
    elif sharding != "ddp":
        assert all(value.is_meta for value in task.network.parameters())  # it is whole on one rank alone


@pytest.mark.slow
def test_two_three_and_four_workers_learn_exactly_what_one_learns(tmp_path):
    """For every kind of sharding, with accumulation; also two that go on after ten steps of four, and three of four."""
    root = Folder(str(tmp_path))
    twenty_steps(root, "one")
    for world_size, runs in (
        (4, [("ddp 4", "ddp", 160), ("fsdp 4", "fsdp", 160), ("hsdp 4", "hsdp", 160), ("resumed", "hsdp", 80)]),
        (2, [("fsdp 2", "fsdp", 160), ("hsdp 2", "hsdp", 160), ("resumed", "fsdp", 160)]),
        (3, [("ddp 3 of 4", "ddp", 160), ("fsdp 3 of 4", "fsdp", 160)]),
    ):
        torch.multiprocessing.start_processes(
            exactly_as, (world_size, reserve_port(), str(tmp_path), runs), nprocs=world_size, start_method="forkserver"
        )
    names = [name for name in root.names() if name.endswith(".safetensors")]
    assert len(names) == 9
    one = load(root.read_bytes("one.safetensors"))
    for name in names:
        for key, value in load(root.read_bytes(name)).items():
            torch.testing.assert_close(value, one[key], rtol=0, atol=1e-6, msg=f"{name}: {key}")


@pytest.mark.slow
def test_shards_in_bfloat16(two_workers):
    """The policy for GPUs, here on gloo: parameters are gathered in bfloat16, master weights stay float32."""
    base = {"stage": "train-decoder", "optimisation": {"precision": "bfloat16"}}
    root = two_workers(
        {**base, "sharding": "fsdp", "work": "fsdp", "out": "fsdp"},
        {**base, "sharding": "ddp", "work": "ddp", "out": "ddp"},
    )
    assert losses(root, "fsdp") == pytest.approx(losses(root, "ddp"), rel=0.05)
    assert all(value.dtype == torch.float32 for value in weights(root, "fsdp").values())
