"""What Ray's metrics say of a run, for Prometheus: every series of `infra/grafana/make-a-video.json` is named here.

They come out of each node's metrics port as `ray_NAME`, counters also as `ray_NAME_total`. Rates (images/s, bytes/s) are Prometheus'
business: `rate(ray_mav_rows_total[5m])`.
"""

import functools
from collections import Counter
from typing import Any

COUNTERS = {
    "mav_rows": ("Rows by what became of them.", ("stage", "fate")),  # fate: out, dropped, failed
    "mav_rows_lost": ("Rows that were dropped or failed, by reason.", ("stage", "reason")),
    "mav_bytes": ("Bytes of finished shards.", ("stage",)),
    "mav_shards": ("Shards that were committed.", ("stage",)),
    "mav_shard_failures": ("Executions of a shard that failed, the next try's business.", ("stage",)),
}
GAUGES = {
    "mav_progress": ("Share of a stage that is done, 0 to 1.", ("stage",)),
    "mav_loss": ("Training loss, mean since the last report.", ("stage",)),
    "mav_samples": ("Samples a network was trained on.", ("stage",)),
    "mav_samples_per_second": ("Training speed.", ("stage",)),
    "mav_steps_per_second": ("Training speed in optimiser steps.", ("stage",)),
    "mav_memory_gb": ("The most memory a training used: of its GPU, or of its process on a CPU.", ("stage",)),
}
TRAINING = ("loss", "samples", "samples_per_second", "steps_per_second", "memory_gb")  # facts of a training's progress


def exported() -> set[str]:
    """Names of all series as Prometheus sees them."""
    return {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}


class Tally:
    """What a walk over shards has to tell; added up in the driver and told now and then, as a telling takes longer than a shard may."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._sums: Counter[tuple[str, str]] = Counter()

    def shard(self, counts: dict[str, Any], size: int) -> None:
        """A shard was committed."""
        self._sums["mav_shards", ""] += 1
        self._sums["mav_bytes", ""] += size
        self._sums["mav_rows", "out"] += counts.get("rows_out", 0)
        for fate in ("dropped", "failed"):
            for reason, number in counts.get(fate, {}).items():
                self._sums["mav_rows", fate] += number
                self._sums["mav_rows_lost", reason] += number

    def failure(self) -> None:
        """An execution failed."""
        self._sums["mav_shard_failures", ""] += 1

    def tell(self, done: float, total: float) -> None:
        """Hands what came together since the last time to Ray."""
        for (name, label), number in self._sums.items():
            _, keys = COUNTERS[name]
            if number:
                _series(name).inc(number, {"stage": self.stage, **dict.fromkeys(keys[1:], label)})
        self._sums.clear()
        _series("mav_progress").set(done / total if total else 1.0, {"stage": self.stage})


def tell_training(facts: dict[str, Any]) -> None:
    """Progress of a stage that runs as one function, from within it; does nothing outside Ray, or for facts that name no stage."""
    import ray

    if "stage" not in facts or not ray.is_initialized():
        return
    tags = {"stage": facts["stage"]}
    if facts.get("total"):
        _series("mav_progress").set(facts.get("samples", 0) / facts["total"], tags)
    for key in TRAINING:
        if facts.get(key) is not None:
            _series(f"mav_{key}").set(float(facts[key]), tags)


@functools.cache
def _series(name: str) -> Any:
    from ray.util import metrics

    kind = metrics.Counter if name in COUNTERS else metrics.Gauge
    about, keys = (COUNTERS | GAUGES)[name]
    return kind(name, description=about, tag_keys=keys)
