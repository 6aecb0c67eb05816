"""Runs every metric of the protocol `suite` that the weights, references and prompts at hand allow.

What is left out is said in one list, with the file that is needed and its place. Videos that cannot be read are named
and left out of every number. One decoding of a video serves all networks, and its features are kept, so that a killed
suite goes on where it was and memory does not grow with the number of videos.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from mav.errors import UserError
from mav.evaluation.feature_store import Features, Runner, compute, in_process
from mav.evaluation.features import Networks
from mav.evaluation.measure import Report
from mav.evaluation.networks.pixels import LEAST_FRAMES
from mav.evaluation.protocols import Protocol, load_protocol
from mav.evaluation.protocols.titles import kind_of, shown
from mav.evaluation.reading import Entry, require_videos
from mav.evaluation.score import BY_VIDEO, Scorer
from mav.evaluation.sets import BenchmarkSet
from mav.evaluation.suite.agreement import agreement
from mav.evaluation.suite.aside import left_aside, remark
from mav.evaluation.suite.convergence import convergence
from mav.evaluation.suite.listing import listed
from mav.evaluation.suite.ratings import Ratings, read_ratings
from mav.storage import Folder

SUITE, VBENCH = "suite.json", "vbench_eval_results.json"
SHOWN_VIDEOS = 3  # worst and best ones of each metric
# VBench's names of dimensions, in its order; its results hold no others.
VBENCH_DIMENSIONS = (
    "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree",
    "aesthetic_quality", "imaging_quality", "overall_consistency",
)  # fmt: skip
DIFFERENCES = {  # from VBench's own networks, for who compares with its numbers
    "motion_smoothness": "frames between are made by DIS flow, not by AMT",
    "dynamic_degree": "motion is measured by DIS flow, not by RAFT",
    "dynamic_degree_raft": "frames above 512 pixels on the shorter side are first made smaller with antialiasing; a "
    "video with two frames at 8 a second moves if they differ, there always; one with a single such frame is still in "
    "both",
    "overall_consistency": "the mean cosine of frames and text by CLIP ViT-B/32, not by ViCLIP",
    "subject_consistency": "frames are made smaller with antialiasing",
    "background_consistency": "frames are made smaller with antialiasing",
    "aesthetic_quality": "frames are made smaller with antialiasing",
    "imaging_quality": "frames above 512 pixels on the shorter side are first made smaller with antialiasing",
}


def run_suite(
    videos: Folder, networks: Networks, out: Folder, reference: Folder | None = None, prompts: Folder | None = None,
    samples: int = 0, draws: int = 200, seed: int = 0, report: Report = lambda _: None, run: Runner = in_process,
    ratings: Folder | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measures the videos below a folder; writes `suite.json` and, in VBench's form, `vbench_eval_results.json`.

    networks: says where weights are, and the device; its names are not used. reference: any folder of real videos, for
    distances. samples: so many of the videos, evenly; 0 = all. ratings: what people said of the videos
    (`suite.ratings`); only rated ones are then measured, and each metric is compared with the raters. Returns what
    `suite.json` holds. Raises UserError when a folder has no video, none can be read, or the ratings cannot be used.
    """
    entries, filmed = listed(videos, prompts, samples), require_videos(reference) if reference else []
    notes = [] if samples else remark(left_aside(videos, entries))
    rated = read_ratings(ratings, [entry.file for entry in entries]) if ratings else None
    if rated:
        prompted = [(entry.file, entry.prompt or rated.prompts.get(entry.file, "")) for entry in entries]
        entries = [Entry(i, *each) for i, each in enumerate(each for each in prompted if each[0] in rated.files)]
    protocol, missing = allowed(load_protocol("suite"), networks, reference, any(entry.prompt for entry in entries))
    networks = dataclasses.replace(networks, names=protocol.networks)
    real = [Entry(index, name) for index, name in enumerate(filmed)]
    total, done = len(entries) + len(real), 0

    def features(of: list[Entry], folder: Folder) -> Features:
        nonlocal done

        def progress(count: int, _: int) -> None:
            report({"stage": "suite", "samples": done + count, "total": total})

        found = compute(of, folder, protocol.preparation(None), networks, out.child("features"), progress, run)
        done += len(of)
        return found

    ours = features(entries, videos)
    unreadable = [{"file": entries[i].file, "reason": reason} for i, reason in sorted(ours.unusable.items())]
    if not ours.readable:
        first, least = unreadable[0], protocol.frames if networks.prepared else LEAST_FRAMES
        problem = f"None of {len(entries)} videos of {videos.url} can be read ({first['file']}: {first['reason']})"
        raise UserError(f"{problem}: give videos of {least} frames or more.")
    theirs = features(real, reference) if reference else None
    scorer = Scorer(protocol, networks, BenchmarkSet(()), ours, theirs, draws, seed)
    metrics = scorer.metrics()
    each = {
        name: _each(scorer, name)
        for name in metrics
        if kind_of(name) in BY_VIDEO and metrics[name]["value"] is not None
    }
    result = {
        "protocol": dataclasses.asdict(protocol),
        "videos": len(entries),
        "readable": ours.readable,
        "unreadable": unreadable,
        "notes": notes,
        "reference": {"videos": len(real), "readable": theirs.readable, "failed": theirs.failed} if theirs else None,
        "metrics": {name: metric | {"better": shown(name).better} for name, metric in metrics.items()},
        "extremes": {name: extremes(values, shown(name).better) for name, values in each.items()},
        "differences": {name: why for name, why in DIFFERENCES.items() if name in metrics},
        "missing": missing,
        "convergence": {
            name: curve for name in metrics if (curve := convergence(scorer, name, metrics[name])) is not None
        },
        "agreement": None,
        "networks": networks.describe(),
        "seed": seed,
    }
    if rated:
        numbers = {name: dict(values) for name, values in each.items()}
        result["agreement"] = agreement(rated, numbers, _of_systems(scorer, rated))
    out.write_json(SUITE, result)
    out.write_json(VBENCH, vbench(videos, metrics, each))
    return result


def allowed(
    protocol: Protocol, networks: Networks, reference: Folder | None, prompted: bool
) -> tuple[Protocol, list[dict[str, Any]]]:
    """Returns the protocol with the metrics that can be computed, and what the others need, each need once."""
    needs: dict[str, list[str]] = {}
    lacks = functools.cache(networks.lacks)
    for name, network in protocol.features.items():
        kind = kind_of(name)
        if kind not in BY_VIDEO and reference is None:
            needs.setdefault("Name a folder of real videos with --reference, to compare with.", []).append(name)
        if kind == "overall_consistency" and not prompted:
            remedy = "name the videos as their prompts, or a list of prompts with --prompts"
            needs.setdefault(f"Nothing says the prompts: {remedy}.", []).append(name)
        measured = not any(name in names for names in needs.values())
        for why in lacks(network, measured):
            needs.setdefault(why, []).append(name)
    left_out = {name for names in needs.values() for name in names}
    kept = {name: network for name, network in protocol.features.items() if name not in left_out}
    missing = [{"metrics": names, "needs": need} for need, names in needs.items()]
    return dataclasses.replace(protocol, features=kept), missing


def _each(scorer: Scorer, metric: str) -> list[tuple[str, float]]:
    """Returns (file, number) of each readable video."""
    indices, numbers = scorer.each(metric)
    return [(scorer.ours.entries[index].file, float(number)) for index, number in zip(indices, numbers, strict=True)]


def _of_systems(scorer: Scorer, rated: Ratings) -> dict[str, dict[str, float]]:
    """Returns, for every metric that is a distance of sets, that of each system's videos. What has none is left out."""
    distances = [name for name in scorer.protocol.features if kind_of(name) not in BY_VIDEO]
    found: dict[str, dict[str, float]] = {name: {} for name in distances}
    for system in sorted(set(rated.files.values())) if distances else ():
        chosen = (entry.index for entry in scorer.ours.entries if rated.files[entry.file] == system)
        one = dataclasses.replace(
            scorer, protocol=scorer.protocol.only(distances), ours=scorer.ours.of(chosen), draws=1
        )
        for name, metric in one.metrics().items():
            if metric["value"] is not None:
                found[name][system] = metric["value"]
    return found


def extremes(values: list[tuple[str, float]], better: str) -> dict[str, list[dict[str, Any]]]:
    """Returns the worst and the best videos of a metric, the worst and the best first; none where all are equal.

    Of fewer than six videos, none is in both lists. Equal numbers are in the order of the files.
    """
    if len({number for _, number in values}) < 2:
        return {"worst": [], "best": []}
    sign, count = (-1 if better == "lower" else 1), min(SHOWN_VIDEOS, max(len(values) // 2, 1))
    ranked = sorted(values, key=lambda value: (sign * value[1], value[0]))
    parts = {"worst": ranked[:count], "best": ranked[::-1][:count]}
    return {side: [{"file": file, "value": number} for file, number in part] for side, part in parts.items()}


def vbench(
    videos: Folder, metrics: dict[str, dict[str, Any]], each: dict[str, list[tuple[str, float]]]
) -> dict[str, list[Any]]:
    """Returns the dimensions as VBench writes them: {dimension: [mean, [{"video_path", "video_results"}, ...]]}.

    There, the dynamic degree of a video is true or false, RAFT's where it was measured, and of the imaging quality only
    the mean is divided by 100.
    """
    forms: dict[str, Callable[[float], Any]] = {"dynamic_degree": bool, "imaging_quality": lambda value: 100 * value}
    measured = {name: f"{name}_raft" if f"{name}_raft" in each else name for name in VBENCH_DIMENSIONS}
    return {
        name: [
            metrics[ours]["value"],
            [
                {"video_path": videos.path(file), "video_results": forms.get(name, float)(value)}
                for file, value in each[ours]
            ],
        ]
        for name, ours in measured.items()
        if ours in each
    }
