"""Gathers what the page shows from the stages' artifacts. Whatever a run has not made yet is simply absent."""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mav.data.shards import index_tar, read_at, read_table, tar_names
from mav.data.videos.video_io import encode_mp4, read_frames
from mav.storage import Artifact

VIDEO_BYTES = 4_000_000  # of all videos on the page, before base64 adds a third
HEAVY = 200_000  # a video above it is shown at SHOWN pixels
SHOWN = 256
PICTURES = 16
ROW_STAGES = ("image-metadata", "image-download", "image-screen", "image-embed", "video-shards")
BENCHMARKS = {"evaluate-ucf101": "ucf101", "evaluate-msrvtt": "msrvtt", "evaluate-interpolation": "interpolation"}


def clips(generate: Artifact | None, oracle: Artifact | None) -> tuple[list[dict[str, Any]], int]:
    """Generated videos as far as the page's size allows, each with its twin, its prompt, the truth and what the oracle says (None where it
    was not asked); and how many there are in all."""
    if generate is None:
        return [], 0
    rows = generate.folder.read_json("videos.json")
    seen = {video["file"]: video for video in oracle.folder.read_json("result.json")["videos"]} if oracle else {}
    shown: list[dict[str, Any]] = []
    spent = 0
    for row in rows:
        data = light(generate.folder.read_bytes(row["file"]), row.get("fps", 8))
        twin = light(generate.folder.read_bytes(row["twin"]), row.get("fps", 8)) if row.get("twin") else b""
        spent += len(data) + len(twin)
        if spent > VIDEO_BYTES:
            break
        said = seen.get(row["file"], {})
        truth = {name: row[name] for name in ("colour", "shape") if name in row}
        urls = {name: data_url("video/mp4", d) if d else None for name, d in (("video", data), ("twin", twin))}
        shown.append(
            {"prompt": row["prompt"], **urls, "truth": truth, "colour": said.get("colour"), "shape": said.get("shape")}
        )
    return shown, len(rows)


def pictures(download: Artifact | None, screen: Artifact | None) -> list[dict[str, str]]:
    """A few pictures of the training set with their captions, spread over the first shard; only such as screening kept."""
    if download is None:
        return []
    names = tar_names(download.folder)
    kept = _kept(screen, names[0].removesuffix(".tar"))
    found = []
    index = index_tar(download.folder, names[0])
    keys = [key for key in index if kept is None or key in kept]
    with download.folder.open(names[0]) as file:
        for key in keys[:: max(1, len(keys) // PICTURES)][:PICTURES]:
            places = index[key]
            found.append(
                {"image": _thumbnail(read_at(file, places["jpg"])), "caption": read_at(file, places["txt"]).decode()}
            )
    return found


def _kept(screen: Artifact | None, shard: str) -> set[str] | None:
    if screen is None or not screen.folder.exists(f"{shard}.parquet"):
        return None
    return {
        row["key"] for row in read_table(screen.folder, f"{shard}.parquet", ["key", "kept"]).to_pylist() if row["kept"]
    }


def curves(artifact: Artifact, name: str = "loss") -> list[tuple[float, float]]:
    """(samples, loss) as logged; `validation` is the loss on held-out samples."""
    if "curves.jsonl" not in artifact.manifest.files:
        return []
    lines = [json.loads(line) for line in artifact.folder.read_bytes("curves.jsonl").splitlines() if line.strip()]
    return [
        (float(line["samples"]), float(line[name]))
        for line in lines
        if "samples" in line and line.get(name) is not None
    ]


def samples_image(artifact: Artifact) -> str | None:
    """A training stage's sample sheet, if it drew one."""
    name = next(iter(artifact.files(".png", "samples")), None)
    if name is None or artifact.manifest.files[name]["bytes"] > 400_000:
        return None
    return data_url("image/png", artifact.folder.read_bytes(name))


def funnel(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """For each data stage: rows in and out, and why the others went, most frequent first."""
    rows = []
    for name in ROW_STAGES:
        counts = artifacts[name].manifest.counts if name in artifacts else {}
        if not counts.get("rows_in"):
            continue
        reasons = [
            (reason, number, kind)
            for kind in ("dropped", "failed")
            for reason, number in counts.get(kind, {}).items()
            if number
        ]
        reasons.sort(key=lambda r: (-r[1], r[0]))
        rows.append(
            {"stage": name, "rows_in": counts["rows_in"], "rows_out": counts.get("rows_out", 0), "reasons": reasons}
        )
    return rows


def results(artifacts: Mapping[str, Artifact]) -> dict[str, dict[str, Any]]:
    """result.json of each benchmark that was run, by benchmark."""
    return {
        benchmark: artifacts[stage].folder.read_json("result.json")
        for stage, benchmark in BENCHMARKS.items()
        if stage in artifacts
    }


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def light(data: bytes, fps: float) -> bytes:
    """A heavy video at a size a page can carry; light ones as they are."""
    if len(data) <= HEAVY:
        return data
    frames = read_frames(data)
    scale = min(1.0, SHOWN / max(frames.shape[1:3]))
    size = (round(frames.shape[2] * scale), round(frames.shape[1] * scale))
    return encode_mp4(np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames]), fps, crf=26)


def _thumbnail(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as picture:
        small = picture.convert("RGB")
        small.thumbnail((144, 144))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=85)
    return data_url("image/jpeg", buffer.getvalue())
