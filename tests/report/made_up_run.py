"""A whole made-up run: artifacts of every stage with plausible contents."""

import io
import json

import numpy as np
import pyarrow as pa
from PIL import Image

from flows.make_a_video import make_a_video
from mav.data.shards import TarWriter, write_rows, write_table
from mav.data.videos.video_io import encode_mp4
from mav.evaluation.protocols import load_protocol
from mav.recipes.reader import load_recipe
from mav.report.page import StageView
from mav.storage import Artifact, Folder
from mav.study.study import freeze_study
from mav.world.drawing import PALETTE, SHAPES, draw, draw_clip, random_scene

SIZES = "cascade={frames: 8, frame_skip: 2, base_size: 16, low_size: 32, high_size: 64}"
RECIPE = load_recipe("tiny", ("name=made-up", SIZES))
GRAPH = {
    node.name: [up.name for up in node.inputs] for node in make_a_video(RECIPE).nodes.values() if node.name != "report"
}


def make_run(root, videos=6, size=32, frames=8):
    """Artifacts of every stage, with plausible contents."""
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, tuple(PALETTE), SHAPES) for _ in range(max(videos, 20))]
    folders = {name: Folder(f"{root}/{name}") for name in GRAPH}
    counts, metrics = {}, {}

    def rows_of(stage, rows_in, dropped=None, failed=None):
        lost = sum((dropped or {}).values()) + sum((failed or {}).values())
        counts[stage] = {
            "rows_in": rows_in,
            "rows_out": rows_in - lost,
            "dropped": dropped or {},
            "failed": failed or {},
        }

    rows_of("image-metadata", 1502, {"nsfw": 98, "watermark": 71, "toxic": 84, "no_caption": 9})
    edges = [f"{edge / 20:.2f}" for edge in range(20)] + ["unknown"]
    spread = dict(
        zip(edges, [700, 300, 150, 80, 40, 20, 10, 10, 10, 10, 20, 20, 20, 10, 10, 5, 5, 5, 5, 5, 72], strict=True)
    )
    counts["image-metadata"] |= {
        "toxic_words": {"first": 50, "second": 34},
        "punsafe_histogram": spread,
        "pwatermark_histogram": spread,
    }
    rows_of("image-download", 1240, {"opt_out": 12}, {"http_404": 22, "truncated": 18, "time_out": 15})
    rows_of("image-screen", 1173, {"nsfw": 24, "watermark": 18})
    rows_of("image-embed", 1131)
    rows_of("image-select", 1131, {"near_duplicate": 7})
    rows_of("video-shards", 251, {"duplicate": 1}, {"not_a_video": 10})
    rows_of("video-select", 240, {"cut": 3, "still": 1})
    found = {"planted": 4, "dropped": 3, "found": 3, "precision": 1.0, "recall": 0.75, "f1": 0.8571}
    metrics["image-select"] = {"filters": {"near_duplicate": found}}
    metrics["video-select"] = {"filters": {"cut": found, "still": dict.fromkeys(found, 0) | {"precision": None}}}

    with folders["image-download"].create("00000-00000.tar") as file, TarWriter(file) as tar:
        for i, scene in enumerate(scenes[:20]):
            buffer = io.BytesIO()
            Image.fromarray(draw(scene, 64)).save(buffer, "JPEG")
            tar.add(f"{i:015d}", {"jpg": buffer.getvalue(), "txt": scene.caption(i).encode(), "json": b"{}"})
    with folders["video-shards"].create("00000.tar") as file, TarWriter(file) as tar:
        for i in range(10):
            metadata = {"fps": 24.0, "frames": 12, "width": 32, "height": 32, "seconds": 0.5, "videoid": str(i)}
            metadata |= {"times": [0]} if i else {}
            tar.add(
                f"{i:010d}",
                {"mp4": encode_mp4(draw_clip(scenes[i], 32, 12, 24), 24), "json": json.dumps(metadata).encode()},
            )
    ledger = [{"key": "0", "status": "failed", "fps": None, "frames": None}]
    ledger += [{"key": str(i), "status": "ok", "fps": 24.0, "frames": 12} for i in range(1, 11)]
    columns = {"key": "string", "status": "string", "fps": "double", "frames": "int32"}
    write_rows(folders["video-shards"], "00000.parquet", columns, ledger)
    reasons = ["cut", None, "still", *[None] * 7]
    table = pa.table({"key": [f"{i:010d}" for i in range(10)], "reason": pa.array(reasons, pa.string())})
    write_table(folders["video-select"], "00000.parquet", table)
    kept = pa.table({"key": [f"{i:015d}" for i in range(20)], "kept": [i != 0 for i in range(20)]})
    write_table(folders["image-screen"], "00000-00000.parquet", kept)

    for number, name in enumerate(n for n in GRAPH if n == "clip" or n.startswith("train-")):
        steps = np.arange(1, 121) * 128
        losses = (
            0.05 * (number + 1) + 1.5 * np.exp(-steps / 3000) + rng.normal(0, 0.02, len(steps)) * np.exp(-steps / 20000)
        )
        rows = [{"samples": int(s), "loss": float(v)} for s, v in zip(steps, losses, strict=True)]
        for row in rows[29::30] if name == "train-prior" else []:
            row |= {"validation": row["loss"] + 0.1, "validation/0.125": row["loss"]}
        folders[name].write_bytes("curves.jsonl", "\n".join(map(json.dumps, rows)).encode())
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([draw(scene, 16) for scene in scenes[:16]], axis=1)).save(buffer, "PNG")
    folders["train-decoder"].write_bytes("samples.png", buffer.getvalue())

    rows, seen = [], []
    for i, scene in enumerate(scenes[:videos]):
        row = {
            "index": i,
            "prompt": scene.caption(i),
            "seed": i,
            "fps": 16.0,
            "colour": scene.colour,
            "shape": scene.shape,
        }
        row |= {"file": f"videos/{i:05d}.mp4", "twin": f"time-off/{i:05d}.mp4"}
        rows.append(row)
        folders["generate"].write_bytes(row["file"], encode_mp4(draw_clip(scene, size, frames, 16), 16, crf=8))
        jumping = np.stack([draw(s, size) for s in rng.permutation(np.array(scenes, object))[:frames]])
        folders["generate"].write_bytes(row["twin"], encode_mp4(jumping, 16, crf=8))
        seen.append(
            {
                "file": row["file"],
                "prompt": row["prompt"],
                "colour": True,
                "shape": i % 3 != 2,
                "frames_without_object": 0,
            }
        )
    folders["generate"].write_json("videos.json", rows)
    verdict = {
        "colour": 0.958, "shape": 0.667, "speed_ratio": 1.24, "motion_ratio_time_off": 7.1,
        "shape_by_name": {"circle": 1.0, "cross": 0.25}, "direction_cosine": 0.61, "direction_cosine_clips": 0.97,
        "reversals": 0.12, "reversals_clips": 0.01, "area_change": -0.11, "saturation_change": -0.02,
        "frame_rate_obeyed": None, "persistence": 0.8,
        "chance_colour": 1 / 6, "chance_shape": 0.25,
        "intervals": {"colour": [0.875, 1.0], "shape": [0.48, 0.83], "speed_ratio": [0.98, 1.51],
                      "motion_ratio_time_off": [5.9, 8.3], "direction_cosine": [0.5, 0.7],
                      "direction_cosine_clips": [0.95, 0.99], "reversals": [0.08, 0.2], "reversals_clips": [0.0, 0.02],
                      "area_change": [-0.15, -0.07], "saturation_change": [-0.03, 0.0], "frame_rate_obeyed": None,
                      "persistence": [0.7, 0.9]},
        "videos": seen, "training_displacement": 0.021, "count": videos,
    }  # fmt: skip
    folders["oracle"].write_json("result.json", verdict)

    note = "demo encoder: not comparable with published numbers"
    features = {"name": "demo encoder (the run's own CLIP)", "sha256": "ab" * 32, "note": note}

    def result(stage, protocol, values, encoder=features):
        estimates = {n: {"value": v, "low": v * 0.8, "high": v * 1.2} | more for n, v, more in values}
        data = {
            "benchmark": load_protocol(protocol).benchmark,
            "protocol": vars(load_protocol(protocol)),
            "samples": 24,
            "real": 95,
        }
        data |= {"real_failed": {"unreadable": 1}, "metrics": estimates, "features": encoder, "comparable": False}
        folders[stage].write_json("result.json", data)

    result(
        "evaluate-ucf101",
        "ucf101-demo",
        [("fvd", 0.31, {"real_halves": 0.06}), ("is", 9.4, {"real": 17.2}), ("recall", 0.437, {})],
    )
    result(
        "evaluate-msrvtt",
        "msrvtt-demo",
        [("fid", 0.21, {"real_halves": 0.03}), ("clipsim", 0.61, {"real": 0.7, "shuffled": 0.11})],
    )
    result(
        "evaluate-interpolation",
        "interpolation-demo",
        [("psnr", 27.1, {}), ("psnr_blend", 24.3, {}), ("psnr_gain", 2.8, {})],
        None,
    )
    values = {"value": 0.2, "low": 0.1, "high": 0.3}
    point = {"corruption": "strobing", "metric": "fvd", "spearman": 1.0, "rises": True}
    seen = point | {"seen_from": 0.4, "points": [{"strength": 0.4, "worse": True, **values}]}
    for name in ("ucf101", "msrvtt"):
        folders["evaluate-card"].write_json(
            f"{name}.json",
            {"protocol": {"name": f"{name}-demo", "version": 2}, "judged": 16, "reference": 16, "real": {"fvd": values},
             "rows": [seen], "corruptions": {"strobing": "share by which every second frame is darkened"},
             "not_judged": {}},
        )  # fmt: skip
    lacks = {"protocol": {"name": "interpolation-demo"}, "skipped": "No metric can be judged with <2> clips."}
    folders["evaluate-card"].write_json("interpolation.json", lacks)
    metrics["human-study"] = freeze_study(RECIPE, {"generate": folders["generate"]}, folders["human-study"])

    views = []
    for number, (name, inputs) in enumerate(GRAPH.items()):
        manifest = {
            "stage": name,
            "version": 1,
            "fingerprint": f"{number:02d}" * 32,
            "recipe": "made-up",
            "config": {},
            "inputs": {},
        }
        manifest |= {
            "counts": counts.get(name, {}),
            "metrics": metrics.get(name, {}),
            "software": {"torch": "2.13.0", "ray": "2.60.0"},
        }
        manifest["seconds"] = 3.0 * (number % 7) ** 2 + 2
        artifact = Artifact.publish(folders[name], finished="2026-01-01T00:00:00+00:00", **manifest)
        views.append(StageView(name, manifest["fingerprint"], list(inputs), artifact, "done", manifest["seconds"]))
    return views
