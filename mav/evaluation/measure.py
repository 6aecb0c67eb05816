"""Measures the videos of any system in a folder as a named protocol says (`mav evaluate`)."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mav.errors import UserError
from mav.evaluation.feature_store import Runner, compute, in_process
from mav.evaluation.features import Networks
from mav.evaluation.intervals import LEAST_EXTRAPOLATED
from mav.evaluation.protocols import Preparation, Protocol
from mav.evaluation.reading import Entry, find_videos
from mav.evaluation.score import Scorer
from mav.evaluation.sets import BenchmarkSet
from mav.evaluation.suite.aside import left_aside, remark
from mav.storage import Folder

RESULT = "result.json"
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """How an evaluation is done, as far as the protocol leaves it open."""

    preparation: Preparation
    samples: int  # number of expected videos, the denominator
    draws: int = 200
    seed: int = 0
    endless: bool = False


def measure(
    protocol: Protocol, settings: Settings, videos: Folder, asked: BenchmarkSet, real: Folder | None,
    networks: Networks, out: Folder, cache: Folder, report: Report = lambda _: None, run: Runner = in_process,
) -> dict[str, Any]:  # fmt: skip
    """Computes every metric of the protocol on a folder of videos; writes `result.json` and returns it.

    The features of our videos are stored under `out`. Those of the real ones are stored under `cache`, where every
    evaluation with the same list, preparation and weights finds them. Raises UserError when nothing can be measured.
    """
    weights, prepared = networks.describe(), settings.preparation
    entries, beside = find_videos(videos, asked.prompts, settings.samples)

    def progress(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: report({"stage": stage, "samples": done, "total": total})

    # The features of both sides.
    ours = compute(entries, videos, prepared, networks, out.child("features"), progress("generated"), run)
    theirs, listed = None, [Entry(i, path) for i, path in enumerate(asked.real)]
    if real is not None and listed:
        theirs = compute(listed, real, prepared, networks, cache, progress("real"), run)
    # The metrics.
    scorer = Scorer(protocol, networks, asked, ours, theirs, settings.draws, settings.seed, settings.endless)
    metrics, failed, departures = scorer.metrics(), ours.failed, []
    if protocol.samples and settings.samples != protocol.samples:
        departures = [f"{settings.samples:,} videos instead of the protocol's {protocol.samples:,}"]
    remarks = [*asked.notes, *departures]
    if any(metric.get("endless", 0.0) is None for metric in metrics.values()):
        remarks.append(f"nothing is extrapolated, which takes {LEAST_EXTRAPOLATED} readable videos")
    remarks += remark(left_aside(videos, entries))
    if all(metric["value"] is None for metric in metrics.values()):
        reason = next(iter(metrics.values()))["reason"]
        counts = ", ".join(f"{count} {why}" for why, count in failed.items())
        raise UserError(f"Nothing can be measured on {videos.url}: {reason}{f' ({counts})' if counts else ''}.")
    # The result, with everything that a reader needs to judge it.
    result = {
        "benchmark": protocol.benchmark,
        "protocol": dataclasses.asdict(protocol),
        "preparation": dataclasses.asdict(prepared),
        "samples": settings.samples,
        "readable": ours.readable,
        "failed": failed,
        "beside": beside,  # number of files that belong to no expected video
        "real": theirs.readable if theirs else 0,
        "real_listed": len(listed),
        "real_failed": theirs.failed if theirs else {},
        "notes": remarks,
        "metrics": metrics,
        "networks": weights,
        "features": {  # the networks as the three fields that the report prints
            "name": ", ".join(network["name"] for network in weights.values()),
            "sha256": " ".join(network["sha256"] for network in weights.values()),
            "note": "; ".join(dict.fromkeys(network["note"] for network in weights.values())),
        },
        "comparable": all(each["comparable"] for each in weights.values()) and not departures,
    }
    out.write_json(RESULT, result)
    return result


def flat(result: dict[str, Any]) -> dict[str, Any]:
    """Returns only the numbers of a result, as a manifest stores them."""
    protocol = result["protocol"]
    found: dict[str, Any] = {"protocol": f"{protocol['name']} v{protocol['version']}", "samples": result["samples"]}
    for name, metric in result["metrics"].items():
        if metric["value"] is not None:
            ends = {f"{name}_{end}": metric[end] for end in ("low", "high") if metric[end] is not None}
            found |= {name: metric["value"], **ends}
    return found
