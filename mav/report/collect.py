"""Collects what the page shows from the artifacts of the stages. What a run has not made yet is left out."""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mav.data.images.pictures import FORMATS
from mav.data.shards import index_tar, read_at, read_table, tar_names
from mav.data.videos.video_io import encode_mp4, read_frames
from mav.storage import Artifact, Folder
from mav.training.monitoring.board import PICTURES as PICTURES_WHILE
from mav.training.validation import LEVELS

VIDEO_BYTES = 4_000_000  # of all videos on the page, before base64 adds a third
HEAVY = 200_000  # bytes above which a video is reduced to SHOWN pixels
SHOWN = 256
PICTURES = 16
SLIDES, SLIDE_BYTES = 12, 1_000_000  # pictures of a training on the way, and the bytes of all of them
ROW_STAGES = (
    "image-metadata",
    "image-download",
    "image-screen",
    "image-embed",
    "image-select",
    "video-shards",
    "video-select",
)
BENCHMARKS = {"evaluate-ucf101": "ucf101", "evaluate-msrvtt": "msrvtt", "evaluate-interpolation": "interpolation"}


def cards(artifact: Artifact | None) -> list[dict[str, Any]]:
    """Returns the validity cards of the run's benchmarks."""
    return [artifact.folder.read_json(name) for name in sorted(artifact.manifest.files)] if artifact else []


def clips(generate: Artifact | None, oracle: Artifact | None) -> tuple[list[dict[str, Any]], int]:
    """Returns the generated videos that the page has room for, and how many there are in total.

    Each has its twin, prompt, truth and the oracle's verdict (None where there is none).
    """
    if generate is None:
        return [], 0
    rows = generate.folder.read_json("videos.json")
    verdicts = {video["file"]: video for video in oracle.folder.read_json("result.json")["videos"]} if oracle else {}
    shown: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        fps, videos = row.get("fps", 8), {"video": row["file"], "twin": row.get("twin")}
        data = {k: light(generate.folder.read_bytes(name), fps) if name else b"" for k, name in videos.items()}
        size += sum(map(len, data.values()))
        if size > VIDEO_BYTES:
            break
        verdict = verdicts.get(row["file"], {})
        objects = [each for each in (row, row.get("second")) if each and "colour" in each and "shape" in each]
        truth = {name: " and ".join(each[name] or "" for each in objects) for name in ("colour", "shape") if objects}
        urls = {kind: data_url("video/mp4", video) if video else None for kind, video in data.items()}
        shown.append({"prompt": row["prompt"], **urls, "truth": truth})
        shown[-1] |= {name: verdict.get(name) for name in ("colour", "shape")}
    return shown, len(rows)


def pictures(download: Artifact | None, screen: Artifact | None) -> list[dict[str, str]]:
    """Returns a few pictures of the first training shard that screening kept, with their captions."""
    if download is None:
        return []
    name = tar_names(download.folder)[0]
    index, table = index_tar(download.folder, name), f"{name.removesuffix('.tar')}.parquet"
    keys = list(index)
    if screen is not None and screen.folder.exists(table):
        rows = read_table(screen.folder, table, ["key", "kept"]).to_pylist()
        kept = {row["key"] for row in rows if row["kept"]}
        keys = [key for key in keys if key in kept]
    found = []
    with download.folder.open(name) as file:
        for key in keys[:: max(1, len(keys) // PICTURES)][:PICTURES]:
            image, caption = (read_at(file, index[key][kind]) for kind in ("jpg", "txt"))
            found.append({"image": _thumbnail(image), "caption": caption.decode()})
    return found


def curves(artifact: Artifact, name: str = "loss") -> list[tuple[float, float]]:
    """Returns the logged (samples, loss); `validation` is the loss on held-out samples."""
    if "curves.jsonl" not in artifact.manifest.files:
        return []
    rows = [json.loads(line) for line in artifact.folder.read_bytes("curves.jsonl").splitlines() if line.strip()]
    return [(float(r["samples"]), float(r[name])) for r in rows if "samples" in r and r.get(name) is not None]


def by_level(artifact: Artifact) -> dict[str, list[tuple[float, float]]]:
    """Returns the curve of the held-out loss at each noise level, least noise first."""
    return {f"{level:g}": curves(artifact, f"validation/{level}") for level in LEVELS}


def samples_image(artifact: Artifact) -> str | None:
    """Returns the sample sheet of a training stage, if it has one that is small enough."""
    name = next(iter(artifact.files(".png", "samples")), None)
    if name is None or artifact.manifest.files[name]["bytes"] > 400_000:
        return None
    return data_url("image/png", artifact.folder.read_bytes(name))


def shown_while_training(board: Folder | None) -> list[tuple[int, str]]:
    """Returns (samples seen, address) of the pictures that a training left on the way, evenly as many as there is room.

    The first and the last are among them.
    """
    names = sorted(name for name in board.child(PICTURES_WHILE).names() if name.endswith(".png")) if board else []
    if not board or not names:
        return []
    places = sorted({round(i * (len(names) - 1) / max(SLIDES - 1, 1)) for i in range(SLIDES)})
    pictures = [(names[place], board.read_bytes(f"{PICTURES_WHILE}/{names[place]}")) for place in places]
    size = sum(len(data) for _, data in pictures)
    if size > SLIDE_BYTES:  # of large pictures, only the last ones
        pictures = pictures[-max(SLIDE_BYTES * len(pictures) // size, 1) :]
    return [(int(name.removesuffix(".png")), data_url("image/png", data)) for name, data in pictures]


def funnel(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Returns the rows in and out of each data stage, and the reasons of the lost ones, most frequent first."""
    rows = []
    for name in ROW_STAGES:
        counts = artifacts[name].manifest.counts if name in artifacts else {}
        if not counts.get("rows_in"):
            continue
        lost = [(why, n, kind) for kind in ("dropped", "failed") for why, n in counts.get(kind, {}).items() if n]
        reasons = sorted(lost, key=lambda each: (-each[1], each[0]))
        entry = {"rows_in": counts["rows_in"], "rows_out": counts.get("rows_out", 0), "reasons": reasons}
        rows.append({"stage": name, **entry})
    return rows


def results(artifacts: Mapping[str, Artifact]) -> dict[str, dict[str, Any]]:
    """Returns result.json of each finished benchmark, by benchmark."""
    done = {benchmark: artifacts[stage] for stage, benchmark in BENCHMARKS.items() if stage in artifacts}
    return {benchmark: artifact.folder.read_json("result.json") for benchmark, artifact in done.items()}


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def light(data: bytes, fps: float) -> bytes:
    """Encodes a heavy video again at a size that a page can hold; returns light ones unchanged."""
    if len(data) <= HEAVY:
        return data
    frames = read_frames(data)
    height, width = frames.shape[1:3]
    scale = min(1.0, SHOWN / max(height, width))
    size = (round(width * scale), round(height * scale))
    return encode_mp4(np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames]), fps, crf=26)


def _thumbnail(data: bytes) -> str:
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        small = picture.convert("RGB")
        small.thumbnail((144, 144))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=85)
    return data_url("image/jpeg", buffer.getvalue())
