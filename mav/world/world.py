"""Draws the demo world: a small web with known truth.

An image-text side (captioned pictures, listed in LAION-style tables) and a motion side (uncaptioned clips, listed WebVid-style),
with everything the real web does to a downloader: missing, slow, cut and oversized answers, redirects that lead home, opt-outs,
scores that are absent, captions that are rude. Held-out clips form UCF-101-style and MSR-VTT-style evaluation sets.

How a picture and its scores belong together: an unsafe picture carries a black-and-white checkered band, a watermarked one white
diagonal lines, each laid on with a strength in 0..1, and the table's probability grows with the cube of that strength, plus a little
noise. Rows under the threshold therefore still show how the sign looks, so a scorer fitted on the rows that survive the table's
screening can find the sign in rows whose scores are null.
"""

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np

from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.recipes import World
from mav.storage import Folder
from mav.world.drawing import GROUNDS, SENTENCES, Scene, draw_clip, random_scene
from mav.world.pictures import _pictures, _score, _write, _write_images, _write_tables

LIST_FIELDS = ("videoid", "contentUrl", "duration", "page_dir", "name")
LEAST_IMAGES = 16
DIRECTORY = 50  # clips a page_dir


def draw_world(world: World, seed: int, out: Folder) -> dict[str, Any]:
    """Writes the world's files into `out` (tables, site, evaluation sets, prompts, truth) and returns its counts.

    The same world and seed give the same bytes. URLs point at 127.0.0.1:`world.port`, where mav.world.server answers. Raises
    UserError for a world too small to hold every kind of row.
    """
    if world.images < LEAST_IMAGES or world.clips < 1:
        raise UserError(
            f"`world.images` must be at least {LEAST_IMAGES}, so that every kind of row occurs, and `world.clips` at least 1."
        )
    pictures = _pictures(world, np.random.default_rng([seed, 0]))
    digests = _write_images(pictures, out)
    rows = _write_tables(pictures, world, np.random.default_rng([seed, 1]), out)
    clips, video_digests, listed = _write_clips(world, seed, out)
    _write_ucf101(world, seed, out)
    _write_msrvtt(world, seed, out)
    prompts = _prompts(world, np.random.default_rng([seed, 6]))
    out.write_json("prompts.json", prompts)
    faults = {picture.name: picture.fault for picture in pictures if picture.fault}
    out.write_json("site/faults.json", faults)
    identity = hashlib.sha256(
        json.dumps([sorted((digests | video_digests).items()), faults], sort_keys=True).encode()
    ).hexdigest()
    out.write_json("site/identity.json", {"service": "make-a-video demo world", "digest": identity})
    truth = {
        "colours": list(world.colours),
        "shapes": list(world.shapes),
        "size": world.size,
        "clip_fps": world.clip_fps,
        "clips": clips,
        "images": {
            p.name: {
                "colour": p.scene.colour,
                "shape": p.scene.shape,
                "unsafe": _score(p.unsafe) >= 0.5,
                "watermark": _score(p.marked) >= 0.5,
            }
            for p in pictures
        },
    }
    out.write_json("truth.json", truth)
    return {
        "images": len(pictures),
        "image_rows": rows,
        "faults": len(faults),
        "clips": len(clips),
        "clip_rows": listed,
        "prompts": len(prompts),
    }


# --------------------------------------------------------------------------------------------------------------- motion


def _write_clips(world: World, seed: int, out: Folder) -> tuple[list[dict[str, Any]], dict[str, str], int]:
    """The uncaptioned clips, a few broken ones among them, and their list with one repeated row."""
    rng = np.random.default_rng([seed, 2])
    broken = ["html", "truncated", "empty", "missing"] * max(world.clips // 120, 1)
    kinds = np.array(["good"] * world.clips + broken)[rng.permutation(world.clips + len(broken))]
    seconds = world.clip_frames / world.clip_fps
    lines, truth, digests = [], [], {}
    for index, kind in enumerate(kinds):
        videoid, page_dir = (
            f"{1_000_001 + 37 * index}",
            f"{index // DIRECTORY * DIRECTORY + 1:06d}_{(index // DIRECTORY + 1) * DIRECTORY:06d}",
        )
        name = f"videos/{page_dir}/{videoid}.mp4"
        url = f"http://127.0.0.1:{world.port}/{name}"
        lines.append(f"{videoid},{url},PT00H00M{int(seconds):02d}S,{page_dir},stock footage {index:04d}")
        scene = random_scene(np.random.default_rng([seed, 3, index]), world.colours, world.shapes)
        if kind == "html":
            data = b"<!DOCTYPE html>\n<html><title>403 Forbidden</title><h1>This video is no longer available</h1></html>\n"
        elif kind == "empty":
            data = b""
        elif kind != "missing":
            data = _clip(scene, world)
            data = data[: len(data) // 2] if kind == "truncated" else data
        if kind != "missing":
            digests[name] = _write(out, f"site/{name}", data)
        if kind == "good":
            truth.append({"videoid": videoid, "colour": scene.colour, "shape": scene.shape, "ground": scene.ground, "radius": scene.radius,
                          "centre": list(scene.centre), "velocity": list(scene.velocity)})  # fmt: skip
    lines.append(lines[0])  # WebVid-10M repeats 25 of its ids; this list one
    out.write_bytes("webvid/clips.csv", ("\n".join([",".join(LIST_FIELDS), *lines]) + "\n").encode())
    return truth, digests, len(lines)


def _clip(scene: Scene, world: World) -> bytes:
    return encode_mp4(draw_clip(scene, world.size, world.clip_frames, world.clip_fps), world.clip_fps)


def _kinds(world: World) -> list[tuple[str, str]]:
    return [(colour, shape) for colour in world.colours for shape in world.shapes]


def _held_out(world: World, seed: int, stream: int, index: int) -> tuple[Scene, str, str]:
    """Scene number `index` of an evaluation set: colours and shapes in turn, all else drawn from a stream no training scene uses."""
    colour, shape = _kinds(world)[index % len(_kinds(world))]
    scene = random_scene(np.random.default_rng([seed, stream, index]), world.colours, world.shapes)
    return replace(scene, colour=colour, shape=shape), colour, shape


def _write_ucf101(world: World, seed: int, out: Folder) -> None:
    """UCF-101 as distributed: a folder a class, lists with CRLF line ends, and one sentence a class; a class is a colour and a shape."""
    names = [colour.capitalize() + shape.capitalize() for colour, shape in _kinds(world)]
    listed = []
    for index in range(world.evaluation_clips):
        scene, _, _ = _held_out(world, seed, 4, index)
        number, turn = index % len(names), index // len(names)
        name = names[number]
        path = f"{name}/v_{name}_g{turn // 4 + 1:02d}_c{turn % 4 + 1:02d}.mp4"
        out.write_bytes(f"ucf101/{path}", _clip(scene, world))
        listed.append(f"{path} {number + 1}\r\n")
    out.write_bytes("ucf101/classInd.txt", "".join(f"{i} {name}\r\n" for i, name in enumerate(names, 1)).encode())
    out.write_bytes("ucf101/trainlist01.txt", "".join(sorted(listed)).encode())
    out.write_bytes(
        "ucf101/class_prompts.txt", "".join(f"a {colour} {shape}\n" for colour, shape in _kinds(world)).encode()
    )


def _write_msrvtt(world: World, seed: int, out: Folder) -> None:
    """MSR-VTT's layout: clips and a captions.json with several sentences a clip. For evaluation only: training never reads it."""
    videos: list[dict[str, Any]] = []
    sentences: list[dict[str, Any]] = []
    for index in range(world.evaluation_clips):
        scene, _, _ = _held_out(world, seed, 5, index)
        video = f"video{index}"
        out.write_bytes(f"msrvtt/videos/{video}.mp4", _clip(scene, world))
        videos.append({"video_id": video, "id": index, "category": 0, "split": "test", "start time": 0.0,
                       "end time": world.clip_frames / world.clip_fps})  # fmt: skip
        for sentence in (index, index + 1):
            sentences.append({"video_id": video, "sen_id": len(sentences), "caption": scene.caption(sentence)})
    out.write_json(
        "msrvtt/captions.json",
        {"info": {"description": "MSR-VTT-style, demo world"}, "videos": videos, "sentences": sentences},
    )


def _prompts(world: World, rng: np.random.Generator) -> list[dict[str, str]]:
    """Every colour with every shape, in turn over the ways to say it; at least 24, at most 36."""
    kinds = _kinds(world)
    wanted = min(max(24, len(kinds)), 36)
    prompts = []
    for index in range(wanted):
        colour, shape = kinds[index % len(kinds)]
        sentence = SENTENCES[(index + index // len(kinds)) % len(SENTENCES)]
        ground = GROUNDS[int(rng.integers(len(GROUNDS)))]
        prompts.append(
            {"prompt": sentence.format(colour=colour, shape=shape, ground=ground), "colour": colour, "shape": shape}
        )
    return prompts
