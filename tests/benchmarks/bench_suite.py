"""Everything that is said of a folder of videos, beside the slowest part of it alone.

`mav evaluate suite` runs with I3D's size of weights, made up, and with what needs none. Peer: the slower of its two
networks alone, on the same videos. All runs in one process of one thread and is counted in processor time, so that
neither waiting nor other work counts.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from bench_evaluation import load, make_videos, weights
from harness import cost, report

VIDEOS = 200  # of 16 frames at 256 pixels


def processor_seconds(videos: Path, folder: Path, keep: Path) -> dict[str, float]:
    """Returns the seconds of the suite, and of each of its networks alone."""
    from mav.evaluation.feature_store import compute
    from mav.evaluation.features import Networks
    from mav.evaluation.protocols import load_protocol
    from mav.evaluation.suite.listing import listed
    from mav.evaluation.suite.run import run_suite
    from mav.storage import Folder

    source, seconds = Folder(str(videos)), {}
    began = time.process_time()
    found = run_suite(source, Networks((), str(folder)), Folder(str(keep / "suite")), reference=source)
    seconds["suite"] = time.process_time() - began
    entries, preparation = listed(source, None, 0), load_protocol("suite").preparation(None)
    for name in found["networks"]:
        began = time.process_time()
        compute(entries, source, preparation, Networks((name,), str(folder)), Folder(str(keep / "alone")))
        seconds[name] = time.process_time() - began
    return seconds


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        videos, folder = Path(root) / "videos", Path(root) / "weights"
        videos.mkdir()
        folder.mkdir()
        make_videos(videos, count)
        weights(folder)
        load(str(folder))
        seconds = processor_seconds(videos, folder, Path(root))
    slowest = max((name for name in seconds if name != "suite"), key=seconds.__getitem__)
    row = cost(
        f"suite of {count} videos", seconds["suite"], seconds[slowest], f"{slowest} alone", "s of processor time"
    )
    report("suite", [row], seconds=seconds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else VIDEOS)
