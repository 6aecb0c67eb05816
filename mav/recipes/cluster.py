"""TODO-DOC mav/recipes/cluster.py"""

from typing import Literal

from mav.recipes.sections import section


@section
class Cluster:
    """Where a run happens. Enters no fingerprint: the same artifact comes out of a laptop and of a cluster."""

    cpus: int = 0  # of a locally started Ray; 0 = all of this machine
    object_store_mb: int = 200
    dashboard: bool = True
    window: int = 0  # shard tasks in flight; 0 = twice the cluster's CPUs
    cpus_per_shard: float = 1.0
    attempts: int = 4  # of one shard before it is quarantined
    quarantine_floor: float = 0.0  # share of shards that may be quarantined before a stage fails
    fsync: bool = (
        True  # a shard is on the disk before it counts as done; without, a power failure may cost finished shards
    )
    workers: int = 1  # Ray Train workers a training stage
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
    sharding: Literal["ddp", "fsdp"] = "ddp"  # several workers: replicas, or a shard of every parameter on each
    stall_seconds: float = (
        3600.0  # a training that makes no step for so long ends and goes on from its checkpoint; 0 = it may hang
    )
    keep_checkpoints: int = 2  # of a training, while it goes on; the one of the lowest validation loss stays besides
    gpu_stages: int = 1  # GPU stages at once, of all runs on one Prefect server
    parallel_stages: int = 2  # independent stages that may run at once


@section
class Expect:
    """What `mav plan` takes for tables and lists that are not at hand. Enters no fingerprint."""

    image_rows: int = 0  # 0: counted in the tables
    clips: int = 0
