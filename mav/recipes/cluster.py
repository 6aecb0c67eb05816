"""The sections that enter no fingerprint: where a run happens, and how much data `mav plan` assumes."""

from typing import Literal

from mav.recipes.sections import Number, Positive, PositiveNumber, Share, Small, Whole, section


@section
class Cluster:
    """Where a run happens. It enters no fingerprint: a laptop and a cluster make the same artifact."""

    cpus: Whole = 0  # CPUs of a Ray that is started on this machine; 0 = all
    object_store_mb: Positive = 200
    dashboard: bool = True
    window: Whole = 0  # submitted shard tasks; 0 = twice the cluster's CPUs
    cpus_per_shard: PositiveNumber = 1.0
    attempts: Small = 4  # attempts of one shard before it is quarantined
    quarantine_floor: Share = 0.0  # share of shards that may be quarantined before a stage fails
    # With fsync, a shard is on the disk before it counts as done. Without it, a power failure may lose finished shards.
    fsync: bool = True
    workers: Small = 1  # Ray Train workers of a training stage
    # When nodes are lost, a training goes on with the workers that are left, down to so many, and takes new ones in.
    # The same samples make each step, whoever is there.
    min_workers: Whole = 0  # 0 = all of them or none
    cpus_per_worker: Small = 1
    gpus_per_worker: Number = 0.0
    # With several workers: replicas; parameters sharded over all of them; or over those of a node, with nodes alike.
    sharding: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    # A training that makes no step for this long is stopped and resumed from its checkpoint, and an attempt at a shard
    # that takes so long, and 30 times as long as others, is ended and repeated; 0 = never.
    stall_seconds: Number = 3600.0
    keep_checkpoints: Small = 2  # last checkpoints kept; the one with the lowest validation loss is kept as well
    gpu_stages: Small = 1  # GPU stages that may run at once, counted over all runs on one Prefect server
    parallel_stages: Small = 2  # independent stages of one run that may run at once

    @property
    def least_workers(self) -> tuple[int, str]:
        """How many workers a training needs at once, and the key that says so."""
        return (self.min_workers, "min_workers") if self.min_workers else (self.workers, "workers")


@section
class Expect:
    """How many rows and clips `mav plan` assumes where tables and lists are not available. It enters no fingerprint."""

    image_rows: Whole = 0  # 0 = counted in the tables
    clips: Whole = 0  # 0 = counted in the lists
