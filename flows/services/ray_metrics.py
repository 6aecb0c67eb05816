"""The metrics that a run hands to Ray for Prometheus; `infra/grafana/make-a-video.json` shows every one of them.

Each node's metrics port exports them as `ray_NAME`, counters also as `ray_NAME_total`. Prometheus computes rates, such
as `rate(ray_mav_rows_total[5m])`.
"""

import functools
from collections import Counter
from typing import Any

COUNTERS = {
    "mav_rows": ("Rows by what became of them.", ("stage", "fate")),  # fate: out, dropped, failed
    "mav_rows_lost": ("Rows that were dropped or failed, by reason.", ("stage", "reason")),
    "mav_bytes": ("Bytes of finished shards.", ("stage",)),
    "mav_shards": ("Shards that were committed.", ("stage",)),
    "mav_shard_failures": ("Attempts at a shard that failed.", ("stage",)),
}
GAUGES = {  # named after the values of a training's progress, but for the first
    "mav_progress": ("Share of a stage that is done, 0 to 1.", ("stage",)),
    "mav_loss": ("Training loss, mean since the last report.", ("stage",)),
    "mav_samples": ("Samples a network was trained on.", ("stage",)),
    "mav_samples_per_second": ("Training speed.", ("stage",)),
    "mav_steps_per_second": ("Training speed in optimiser steps.", ("stage",)),
    "mav_utilisation": ("Share of the device's matrix rate that a training's model FLOPs are.", ("stage",)),
    "mav_data_wait": ("Share of its time that a training waits for data.", ("stage",)),
    "mav_memory_gb": ("The most memory a training used: of its GPU, or of its process on a CPU.", ("stage",)),
}


class ShardMetrics:
    """Sums the counts of finished shards in the driver and hands them to Ray when `flush` is called.

    A call into Ray's metrics may take longer than a short shard, so it is not made for every shard.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._sums: Counter[tuple[str, str]] = Counter()

    def committed(self, counts: dict[str, Any], size: int) -> None:
        """Adds a shard that was committed: its row counts and its bytes."""
        self._sums["mav_shards", ""] += 1
        self._sums["mav_bytes", ""] += size
        self._sums["mav_rows", "out"] += counts.get("rows_out", 0)
        for fate in ("dropped", "failed"):
            for reason, number in counts.get(fate, {}).items():
                self._sums["mav_rows", fate] += number
                self._sums["mav_rows_lost", reason] += number

    def failed(self) -> None:
        """Adds an attempt that failed."""
        self._sums["mav_shard_failures", ""] += 1

    def flush(self, done: float, total: float) -> None:
        """Hands the sums since the last call to Ray, and the stage's progress."""
        for (name, label), number in self._sums.items():
            _, keys = COUNTERS[name]
            if number:
                _series(name).inc(number, {"stage": self.stage, **dict.fromkeys(keys[1:], label)})
        self._sums.clear()
        _series("mav_progress").set(done / total if total else 1.0, {"stage": self.stage})


def report_training(progress: dict[str, Any]) -> None:
    """Sets the gauges of a training from its progress. Does nothing outside Ray, or without "stage" in the progress."""
    import ray

    if "stage" not in progress or not ray.is_initialized():
        return
    tags = {"stage": progress["stage"]}
    if progress.get("total"):
        _series("mav_progress").set(progress.get("samples", 0) / progress["total"], tags)
    for name in GAUGES:
        if (value := progress.get(name.removeprefix("mav_"))) is not None:
            _series(name).set(float(value), tags)


@functools.cache
def _series(name: str) -> Any:
    from ray.util import metrics

    kind = metrics.Counter if name in COUNTERS else metrics.Gauge
    description, keys = (COUNTERS | GAUGES)[name]
    return kind(name, description=description, tag_keys=keys)
