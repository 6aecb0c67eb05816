"""Cuts, fades and dissolves: what is found of a known truth, and clips a second, beside PySceneDetect.

Both read the same files: real clips whose changes were read by eye, clips spliced from their shots (MAV_REAL_DATA), and
the demo worlds' planted and good clips. Ours scores the frames as `video-shards` does, which decodes them anyway, and
takes the threshold of `video-select`; the peer has its own defaults. The peer is optional: bring `scenedetect` into
PYTHONPATH. Without it the table shows ours alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from cut_truth import NEITHER, REAL, Change
from harness import Row, in_turn, rate, report

from mav.data.videos.probe import TimedFrames, opened, video_stream
from mav.data.videos.scores import ClipScorer, small_pictures
from mav.data.videos.scores.cuts import Cut, find_cuts
from mav.data.videos.shown import target_size
from mav.data.videos.transcode import _planes
from mav.data.videos.video_io import encode_mp4, read_frames
from mav.recipes import VideoSelect, VideoShards, World
from mav.world.cast import Cast, ShapeCast
from mav.world.digits import DigitCast
from mav.world.drawing import draw_clip
from mav.world.planted import KINDS, plant

THRESHOLD, SHORT_SIDE = VideoSelect().cut, VideoShards().short_side
TOLERANCE = 2  # frames by which a change may be found beside where it is
SPLICED, SIZE, FPS = 60, (320, 180), 25.0  # clips of two to four shots each, pixels, frames a second
SHOT = (50, 100)  # frames of a shot of theirs
GRADUAL = (8, 26)  # frames of a dissolve, and of a fade out and in together
PLANTED, GOOD = 20, 100  # clips of each kind, and without a fault
NONE = "none: scenedetect is not installed"


@dataclass(frozen=True)
class Clip:
    """A video file and its changes of the shot: (first frame, last frame), equal for a cut.

    neither: what may be found, and need not.
    """

    path: str
    truth: tuple[Change, ...]
    neither: tuple[Change, ...] = ()


# ------------------------------------------------------------------------------------------------------------ the clips


def real(data: Path) -> list[Clip]:
    """The real clips as they are."""
    return [Clip(str(data / name), changes, NEITHER.get(name, ())) for name, changes in REAL.items()]


def spliced(data: Path, folder: Path) -> list[Clip]:
    """Clips joined from shots of different real clips by cuts, dissolves and fades through black, equally often."""
    rng, filmed = np.random.default_rng(0), [name for name in REAL if not name.startswith("cuts/")]
    shots = [found for name in filmed if (found := list(_shots(data / name, REAL[name])))]
    clips = []
    for number in range(SPLICED):
        frames, truth = np.zeros((0, SIZE[1], SIZE[0], 3), np.uint8), []
        for source in rng.permutation(len(shots))[: rng.integers(2, 5)]:
            shot = shots[source][rng.integers(len(shots[source]))]
            length = int(rng.integers(SHOT[0], min(SHOT[1], len(shot)) + 1))
            first = int(rng.integers(len(shot) - length + 1))
            frames, change = _joined(frames, shot[first : first + length], rng)
            truth += change
        clips.append(_written(folder / f"spliced{number:03d}.mp4", frames, FPS, truth))
    return clips


def _shots(path: Path, changes: Sequence[Change]) -> Iterator[np.ndarray]:
    """Yields the long shots between a clip's changes, some frames away from them."""
    frames = read_frames(path.read_bytes(), None, lambda frame: cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA))
    starts = [0, *(last + TOLERANCE for _, last in changes)]
    ends = [*(first - TOLERANCE for first, _ in changes), len(frames)]
    yield from (frames[a:b] for a, b in zip(starts, ends, strict=True) if b - a >= SHOT[0])


def _joined(before: np.ndarray, after: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Change]]:
    if not len(before):
        return after, []
    kind, length, at = rng.integers(3), int(rng.integers(GRADUAL[0], GRADUAL[1] // 2)) * 2, len(before)
    if kind == 0:
        return np.concatenate([before, after]), [(at, at)]
    share = (np.arange(1, length + 1) / (length + 1))[:, None, None, None]
    if kind == 1:
        mixed = (before[-length:] * (1 - share) + after[:length] * share + 0.5).astype(np.uint8)
        return np.concatenate([before[:-length], mixed, after[length:]]), [(at - length, at - 1)]
    half = length // 2
    out, into = before[-half:] * (1 - share[1::2]), after[:half] * share[1::2]
    dark = np.concatenate([out, into]).astype(np.uint8)
    return np.concatenate([before[:-half], dark, after[half:]]), [(at - half, at + half - 1)]


def planted(cast: Cast, world: World, folder: Path) -> list[Clip]:
    """The world's clips: of each kind that it plants, and good ones."""
    rng, clips = np.random.default_rng(0), []
    for kind in KINDS:
        for number in range(PLANTED):
            clip = plant(kind, world, cast, rng)
            clips.append(_written(folder / f"{kind}{number}.mp4", clip.frames, world.clip_fps, clip.changes))
    for number in range(GOOD):
        frames = draw_clip(cast.scene(rng), world.size, world.clip_frames, world.clip_fps)
        clips.append(_written(folder / f"good{number}.mp4", frames, world.clip_fps, ()))
    return clips


def _written(path: Path, frames: np.ndarray, fps: float, truth: Sequence[Change]) -> Clip:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_mp4(frames, fps, crf=23))
    return Clip(str(path), tuple(truth))


# -------------------------------------------------------------------------------------------------------- ours, theirs


def planes(path: str) -> Iterator[np.ndarray]:
    """The frames of a file as `video-shards` hands them to its encoder."""
    reformatter = VideoReformatter()
    with opened(Path(path).read_bytes()) as container:
        source = TimedFrames(container, video_stream(container))
        for _, frame in source:
            yield _planes(reformatter, frame, *target_size(frame, source.pixel_aspect, SHORT_SIDE))


def cuts_of(frames: Iterator[np.ndarray] | Sequence[np.ndarray]) -> list[Cut]:
    """Our changes of the shot, from nothing but what they need."""
    found = find_cuts(np.stack([small_pictures(frame)[1] for frame in frames]))
    return [cut for cut in found if cut.score > THRESHOLD]


def our_changes(path: str) -> list[int]:
    return [cut.frame for cut in cuts_of(planes(path))]


def their_changes(path: str, detectors: Sequence[str] = ("AdaptiveDetector",), **settings: int) -> list[int]:
    import scenedetect

    video, manager = scenedetect.open_video(path), scenedetect.SceneManager()
    for name in detectors:
        manager.add_detector(getattr(scenedetect, name)(**settings))
    manager.detect_scenes(video)
    return [cut.frame_num for cut in manager.get_cut_list(show_warning=False)]


def their_score(frames: Sequence[np.ndarray]) -> None:
    """Their detector over frames that are decoded, BGR, each reduced to a width of 256 pixels as they do it."""
    import scenedetect
    from scenedetect.scene_manager import compute_downscale_factor

    detector, tick = scenedetect.AdaptiveDetector(), scenedetect.FrameTimecode(0, 25.0)
    factor = compute_downscale_factor(frames[0].shape[1])
    size = [max(1, round(side / factor)) for side in frames[0].shape[1::-1]]
    for number, frame in enumerate(frames):
        detector.process_frame(tick + number, cv2.resize(frame, size) if factor > 1 else frame)


# ------------------------------------------------------------------------------------------------------------- figures


def agreement(clips: Sequence[Clip], find: Callable[[str], list[int]]) -> dict[str, float]:
    """Precision, recall and F1 over all changes, and the recall of cuts and of gradual changes by themselves.

    What is found again within a change counts neither way.
    """
    meant = found = right = 0
    kinds: dict[str, list[bool]] = {"cuts": [], "gradual": []}
    for clip in clips:
        places = find(clip.path)
        hits = [any(_within(place, (change,)) for place in places) for change in clip.truth]
        for (first, last), hit in zip(clip.truth, hits, strict=True):
            kinds["cuts" if first == last else "gradual"].append(hit)
        seen = sum(hits)
        meant, right = meant + len(clip.truth), right + seen
        found += seen + sum(not _within(place, clip.truth + clip.neither) for place in places)
    shares = {"precision": right / max(found, 1), "recall": right / max(meant, 1), "f1": 2 * right / (meant + found)}
    shares |= {f"recall of {kind}": sum(hits) / max(len(hits), 1) for kind, hits in kinds.items()}
    return {name: round(share, 4) for name, share in shares.items()} | {"changes": meant, "found": found}


def _within(place: int, changes: Sequence[Change]) -> bool:
    return any(first - TOLERANCE <= place <= last + TOLERANCE for first, last in changes)


def clips_a_second(paths: Sequence[str], work: Callable[[Any], object], read: Callable[[str], Any] = str) -> float:
    """By the seconds of processor time of all threads; what `read` does with a path before does not count."""
    seconds = 0.0
    for path in paths:
        given = read(path)
        began = time.process_time()
        work(given)
        seconds += time.process_time() - began
    return len(paths) / seconds


def all_scores(path: str) -> None:
    scorer = ClipScorer()
    for frame in planes(path):
        scorer.add(frame)
    scorer.scores(FPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    there, data = importlib.util.find_spec("scenedetect") is not None, Path(os.environ.get("MAV_REAL_DATA", ""))
    peers: dict[str, Callable[[str], list[int]]] = {
        "AdaptiveDetector": their_changes,
        "AdaptiveDetector, shots of any length": partial(their_changes, min_scene_len=1),
        "ContentDetector": partial(their_changes, detectors=["ContentDetector"]),
        "Adaptive- and ThresholdDetector": partial(their_changes, detectors=["AdaptiveDetector", "ThresholdDetector"]),
    }
    rows, facts = [], {}
    with tempfile.TemporaryDirectory() as place:
        folder, world = Path(place), World()
        sets = {"the world's clips": planted(ShapeCast(world), world, folder / "shapes")}
        if os.environ.get("MAV_REAL_DATA"):
            digits = World(kind="digits", files=str(data / "mnist"))
            sets |= {"the world of digits": planted(DigitCast.of(digits, 0), digits, folder / "digits")}
            sets |= {"real clips": real(data), "clips spliced of them": spliced(data, folder)}
        for name, clips in sets.items():
            ours = agreement(clips, our_changes)
            facts[f"{name}, ours"] = ours
            for peer, find in peers.items() if there else ():
                theirs = facts[f"{name}, {peer}"] = agreement(clips, find)
                ratio = ours["f1"] / theirs["f1"] if theirs["f1"] else np.inf
                rows.append(Row(f"F1, {name}", ours["f1"], theirs["f1"], peer, ratio, "F1"))
            if not there:
                rows.append(rate(f"F1, {name}", ours["f1"], np.nan, NONE, "F1"))
            print(f"{name}: {ours}", flush=True)
        timed = [clip.path for clip in sets.get("real clips", sets["the world's clips"][:GOOD])]
        rows += _speeds(timed, there, given.rounds)
    report("cuts", rows, **facts, rounds=given.rounds)


def _speeds(paths: Sequence[str], there: bool, rounds: int) -> list[Row]:
    def pictures(path: str) -> np.ndarray:
        return np.ascontiguousarray(read_frames(Path(path).read_bytes())[..., ::-1])

    measures = {
        "cuts": lambda: clips_a_second(paths, cuts_of, lambda path: list(planes(path))),
        "decode, cuts": lambda: clips_a_second(paths, our_changes),
        "decode, all scores": lambda: clips_a_second(paths, all_scores),
    }
    if there:
        measures["theirs"] = lambda: clips_a_second(paths, their_score, pictures)
        measures["theirs, decode"] = lambda: clips_a_second(paths, their_changes)
    speeds = in_turn(measures, rounds)
    alone, whole = speeds.get("theirs", np.nan), speeds.get("theirs, decode", np.nan)
    peer = "AdaptiveDetector" if there else NONE
    return [
        rate("cuts, of decoded frames", speeds["cuts"], alone, peer, "clips/s"),
        rate("decoding and cuts", speeds["decode, cuts"], whole, peer, "clips/s"),
        rate("decoding and all scores", speeds["decode, all scores"], whole, f"{peer}, cuts alone", "clips/s"),
    ]


if __name__ == "__main__":
    main()
