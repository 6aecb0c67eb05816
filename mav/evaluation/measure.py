"""`mav evaluate`: anybody's videos in a folder, measured as a named protocol says."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mav.errors import UserError
from mav.evaluation.features import Networks
from mav.evaluation.protocols import Preparation, Protocol
from mav.evaluation.reading import Entry, find_videos
from mav.evaluation.score import Scorer
from mav.evaluation.sets import BenchmarkSet
from mav.evaluation.store import Runner, compute, in_process
from mav.storage import Folder

RESULT = "result.json"
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """How an evaluation is done; none of it is part of a protocol."""

    preparation: Preparation
    samples: int  # videos expected: the denominator
    draws: int = 200
    seed: int = 0
    endless: bool = False


def measure(
    protocol: Protocol,
    settings: Settings,
    videos: Folder,
    asked: BenchmarkSet,
    real: Folder | None,
    networks: Networks,
    out: Folder,
    cache: Folder,
    report: Report = lambda _: None,
    run: Runner = in_process,
) -> dict[str, Any]:
    """Every metric of the protocol on a folder of videos; writes `result.json` and returns it.

    Features of our videos are kept under `out`, those of the real ones under `cache`, where any evaluation with the same list,
    preparation and weights finds them. Raises UserError when nothing can be measured.
    """
    weights = networks.facts()
    entries, beside = find_videos(videos, asked.prompts, settings.samples)

    def progress(what: str) -> Callable[[int, int], None]:
        return lambda done, total: report({"stage": what, "samples": done, "total": total})

    ours = compute(entries, videos, settings.preparation, networks, out.child("features"), progress("generated"), run)
    theirs, listed = None, [Entry(i, path) for i, path in enumerate(asked.real)]
    if real is not None and listed:
        theirs = compute(listed, real, settings.preparation, networks, cache, progress("real"), run)
    scorer = Scorer(protocol, networks, asked, ours, theirs, settings.draws, settings.seed, settings.endless)
    metrics = scorer.metrics()
    failed, departures = ours.failed, []
    if protocol.samples and settings.samples != protocol.samples:
        departures = [f"{settings.samples:,} videos instead of the protocol's {protocol.samples:,}"]
    if all(facts["value"] is None for facts in metrics.values()):
        reason = next(iter(metrics.values()))["reason"]
        told = ", ".join(f"{count} {reason}" for reason, count in failed.items())
        raise UserError(f"Nothing can be measured on {videos.url}: {reason}{f' ({told})' if told else ''}.")
    result = {
        "benchmark": protocol.benchmark,
        "protocol": dataclasses.asdict(protocol),
        "preparation": dataclasses.asdict(settings.preparation),
        "samples": settings.samples,
        "readable": ours.readable,
        "failed": failed,
        "beside": beside,  # files that belong to no expected video
        "real": theirs.readable if theirs else 0,
        "real_listed": len(listed),
        "real_failed": theirs.failed if theirs else {},
        "notes": [*asked.notes, *departures],
        "metrics": metrics,
        "networks": weights,
        "features": _one_line(weights),
        "comparable": all(each["comparable"] for each in weights.values()) and not departures,
    }
    out.write_json(RESULT, result)
    return result


def _one_line(weights: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The networks of a result in the three fields that a page prints."""
    return {
        "name": ", ".join(facts["name"] for facts in weights.values()),
        "sha256": " ".join(facts["sha256"] for facts in weights.values()),
        "note": "; ".join(dict.fromkeys(facts["note"] for facts in weights.values())),
    }


def flat(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers alone, as a manifest carries them."""
    protocol = result["protocol"]
    found: dict[str, Any] = {"protocol": f"{protocol['name']} v{protocol['version']}", "samples": result["samples"]}
    for name, facts in result["metrics"].items():
        if facts["value"] is not None:
            found |= {name: facts["value"], f"{name}_low": facts["low"], f"{name}_high": facts["high"]}
    return found
