"""Draws the demo world: a small web with known truth, and with everything that the real web does to a downloader.

Captioned pictures are listed in LAION-style tables, uncaptioned clips WebVid-style; held-out clips form evaluation
sets. An unsafe picture has a checkered band, a watermarked one white diagonal lines, each of a strength in 0..1. The
table's probability grows with the cube of that strength, so rows under the threshold still show the sign, and a scorer
fitted on them can find it in rows without scores.
"""

import hashlib
import json
from typing import Any

import numpy as np

from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.recipes import World
from mav.storage import Folder
from mav.world.cast import Cast, cast_of
from mav.world.digits import READER_FOLDER, DigitCast
from mav.world.drawing import GROUNDS, PLAIN, Scene, describe, draw_clip, nested, truth_of
from mav.world.idx_files import write_digits
from mav.world.pictures import make_pictures, write_images, write_tables
from mav.world.planted import KINDS, plant

LEAST_IMAGES = 16
DIRECTORY = 50  # clips in a page_dir
PLANTED = 60  # clips for each of a kind that is not to train on, unless the recipe says; there is one at least


def draw_world(world: World, seed: int, out: Folder) -> dict[str, Any]:
    """Writes the world's files into `out` (tables, site, evaluation sets, prompts, truth) and returns its counts.

    The same world and seed give the same bytes. URLs point at 127.0.0.1:`world.port`, where mav.world.server answers.
    Raises UserError for a world too small to hold every kind of row.
    """
    if world.images < LEAST_IMAGES or world.clips < 1:
        raise UserError(
            f"`world.images` must be at least {LEAST_IMAGES}, so that every kind of row occurs, and `world.clips` at "
            "least 1."
        )
    cast = cast_of(world, seed)
    pictures = make_pictures(world, cast, np.random.default_rng([seed, 0]))
    digests = write_images(pictures, out)
    rows = write_tables(pictures, world, np.random.default_rng([seed, 1]), out)
    clips, planted, video_digests, listed = _write_clips(world, cast, seed, out)
    _write_ucf101(world, cast, seed, out)
    _write_msrvtt(world, cast, seed, out)
    prompts = _prompts(world, cast, np.random.default_rng([seed, 6]))
    out.write_json("prompts.json", prompts)
    faults = {picture.name: picture.fault for picture in pictures if picture.fault}
    out.write_json("site/faults.json", faults)
    identity = json.dumps([sorted((digests | video_digests).items()), faults], sort_keys=True).encode()
    digest = hashlib.sha256(identity).hexdigest()
    out.write_json("site/identity.json", {"service": "make-a-video demo world", "digest": digest})
    if isinstance(cast, DigitCast):
        write_digits(out.child(READER_FOLDER), cast.parts.reader)
    truth = {"colours": list(cast.colours), "shapes": list(cast.shapes), "size": world.size, "clips": clips,
             "planted": planted, "clip_fps": world.clip_fps, "images": {p.name: p.truth for p in pictures}}  # fmt: skip
    if world.objects > 1:
        truth["objects"] = world.objects
    out.write_json("truth.json", truth)
    counts = {"images": len(pictures), "image_rows": rows, "faults": len(faults)}
    return counts | {"clips": len(clips), "planted": len(planted), "clip_rows": listed, "prompts": len(prompts)}


def _write_clips(
    world: World, cast: Cast, seed: int, out: Folder
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, str], int]:
    """Writes the uncaptioned clips and their list with one repeated row: a few clips are broken, a few not to train on.

    Returns the truth about the good clips and about the last kind, the sha256 of each file, and the rows in the list.
    """
    rng = np.random.default_rng([seed, 2])
    broken = ["html", "truncated", "empty", "missing"] * max(world.clips // 120, 1)
    kinds = np.array(["good"] * world.clips + broken)[rng.permutation(world.clips + len(broken))].tolist()
    kinds += sorted([*KINDS] * (world.planted_clips or max(world.clips // PLANTED, 1)), key=[*KINDS].index)
    seconds = int(world.clip_frames / world.clip_fps)
    lines, truth, planted, digests = [], [], [], {}
    for index, kind in enumerate(kinds):
        first = index // DIRECTORY * DIRECTORY
        videoid, page_dir = f"{1_000_001 + 37 * index}", f"{first + 1:06d}_{first + DIRECTORY:06d}"
        name = f"videos/{page_dir}/{videoid}.mp4"
        url = f"http://127.0.0.1:{world.port}/{name}"
        lines.append(f"{videoid},{url},PT00H00M{seconds:02d}S,{page_dir},stock footage {index:04d}")
        rng = np.random.default_rng([seed, 3, index])
        if kind == "html":
            heading = "<h1>This video is no longer available</h1>"
            data = f"<!DOCTYPE html>\n<html><title>403 Forbidden</title>{heading}</html>\n".encode()
        elif kind == "empty":
            data = b""
        elif kind in KINDS:
            clip = plant(kind, world, cast, rng)
            data = encode_mp4(clip.frames, world.clip_fps)
            planted.append({"videoid": videoid, "kind": kind, "reasons": clip.reasons, "changes": clip.changes})
        elif kind != "missing":
            scene = cast.scene(rng)
            data = _clip(scene, world)
            data = data[: len(data) // 2] if kind == "truncated" else data
        if kind != "missing":
            out.write_bytes(f"site/{name}", data)
            digests[name] = hashlib.sha256(data).hexdigest()
        if kind == "good":
            objects = [{"colour": thing.colour, "shape": thing.shape, "radius": thing.radius,
                        "centre": list(thing.centre), "velocity": list(thing.velocity)}
                       for thing in scene.objects]  # fmt: skip
            truth.append({"videoid": videoid, "ground": scene.ground, **nested(objects)})
    # WebVid-10M repeats 25 of its ids; this list repeats one, before those that are not to train on.
    at = len(lines) - len(planted)
    lines.insert(at, lines[0])
    header = "videoid,contentUrl,duration,page_dir,name"
    out.write_bytes("webvid/clips.csv", ("\n".join([header, *lines]) + "\n").encode())
    return truth, planted, digests, len(lines)


def _clip(scene: Scene, world: World) -> bytes:
    return encode_mp4(draw_clip(scene, world.size, world.clip_frames, world.clip_fps), world.clip_fps)


def _write_ucf101(world: World, cast: Cast, seed: int, out: Folder) -> None:
    """Writes UCF-101 as distributed: a folder a class, lists with CRLF line ends, one sentence a class.

    A class is a colour and a shape, or two of them, or a digit. `truth.json` says where the objects of each clip are
    in every frame.
    """
    kinds = cast.kinds
    names = ["And".join((colour or "").capitalize() + shape.capitalize() for colour, shape in each) for each in kinds]
    listed, truth = [], {}
    for index in range(world.evaluation_clips):
        turn, number = divmod(index, len(names))
        path = f"{names[number]}/v_{names[number]}_g{turn // 4 + 1:02d}_c{turn % 4 + 1:02d}.mp4"
        scene = cast.held_out(np.random.default_rng([seed, 4, index]), index)
        out.write_bytes(f"ucf101/{path}", _clip(scene, world))
        moments = [frame / world.clip_fps for frame in range(world.clip_frames)]
        truth[path] = nested([{"radius": t.radius, "centres": [*map(t.centre_at, moments)]} for t in scene.objects])
        listed.append(f"{path} {number + 1}\r\n")
    out.write_json("ucf101/truth.json", truth)
    out.write_bytes("ucf101/classInd.txt", "".join(f"{i} {name}\r\n" for i, name in enumerate(names, 1)).encode())
    out.write_bytes("ucf101/trainlist01.txt", "".join(sorted(listed)).encode())
    prompts = "".join(f"{describe(each, '', PLAIN, cast.sentences)}\n" for each in kinds)
    out.write_bytes("ucf101/class_prompts.txt", prompts.encode())


def _write_msrvtt(world: World, cast: Cast, seed: int, out: Folder) -> None:
    """Writes MSR-VTT's layout, for evaluation only: clips and a captions.json with two sentences a clip."""
    videos: list[dict[str, Any]] = []
    sentences: list[dict[str, Any]] = []
    for index in range(world.evaluation_clips):
        scene, video = cast.held_out(np.random.default_rng([seed, 5, index]), index), f"video{index}"
        out.write_bytes(f"msrvtt/videos/{video}.mp4", _clip(scene, world))
        videos.append({"video_id": video, "id": index, "category": 0, "split": "test", "start time": 0.0,
                       "end time": world.clip_frames / world.clip_fps})  # fmt: skip
        for sentence in (index, index + 1):
            sentences.append({"video_id": video, "sen_id": len(sentences), "caption": scene.caption(sentence)})
    about = {"description": "MSR-VTT-style, demo world"}
    out.write_json("msrvtt/captions.json", {"info": about, "videos": videos, "sentences": sentences})


def _prompts(world: World, cast: Cast, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Returns a prompt for each of the kinds, in varied sentences; at least 24, at most 36.

    An entry has the colour and the shape that it asks for, and under `second` those of a second object.
    """
    kinds = cast.kinds
    prompts = []
    for index in range(min(max(24, len(kinds)), 36)):
        each, sentence = kinds[index % len(kinds)], index // world.objects + index // len(kinds)
        ground = GROUNDS[int(rng.integers(len(GROUNDS)))]
        prompts.append({"prompt": describe(each, ground, sentence, cast.sentences), **truth_of(each)})
    return prompts
