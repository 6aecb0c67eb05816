"""What `video-select` kept and dropped, as a contact sheet for each reason."""

import io
import json
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mav.data.shards import index_tar, read_at, read_table
from mav.data.videos.video_io import read_frames
from mav.report.collect import data_url
from mav.storage import Artifact
from mav.storage.ledger import ledgers

SHARDS = 32  # looked through for examples
CLIPS = 6  # of each reason
FRAMES, HEIGHT = 4, 64  # of a clip on its sheet


def sheets(shards: Artifact | None, selection: Artifact | None) -> list[dict[str, Any]]:
    """Returns {"reason", "clips", "sheet"} for each reason of the dropped clips, and for kept ones as reason "kept".

    A row of a sheet is a clip: frames spread from its first to its last.
    """
    if shards is None or selection is None:
        return []
    counts = selection.manifest.counts
    wanted = {"kept": counts.get("rows_out", 0), **counts.get("dropped", {})}
    found: dict[str, list[np.ndarray]] = {reason: [] for reason, number in wanted.items() if number}
    for name in [name for name in selection.files(".parquet") if not ledgers([name])][:SHARDS]:
        rows = read_table(selection.folder, name, ["key", "reason"]).to_pylist()
        chosen: list[tuple[str, str]] = []
        for row in rows:
            reason = row["reason"] or "kept"
            if len(found[reason]) + sum(other == reason for other, _ in chosen) < CLIPS:
                chosen.append((reason, row["key"]))
        if not chosen:
            continue
        tar = f"{name.removesuffix('.parquet')}.tar"
        index = index_tar(shards.folder, tar)
        with shards.folder.open(tar) as file:
            for reason, key in chosen:
                place = next(place for extension, place in index[key].items() if extension != "json")
                metadata = json.loads(read_at(file, index[key]["json"]))
                first, last = metadata.get("first", 0), metadata.get("first", 0) + metadata["frames"] - 1
                spread = np.linspace(first, last, FRAMES).round().astype(int)
                found[reason].append(_strip(read_frames(read_at(file, place), spread)))
    return [{"reason": r, "clips": wanted[r], "sheet": _sheet(rows)} for r, rows in found.items() if rows]


def _strip(frames: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1:3]
    size = max(round(width * HEIGHT / height), 1), HEIGHT
    return np.concatenate([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames], axis=1)


def _sheet(rows: list[np.ndarray]) -> str:
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 2), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(padded)).save(buffer, "JPEG", quality=80)
    return data_url("image/jpeg", buffer.getvalue())
