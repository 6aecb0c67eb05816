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
import io
import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mav.artifact import Folder
from mav.data.drawing import GROUNDS, SENTENCES, Scene, draw_clip, draw_ground, draw_object, random_scene
from mav.data.video_io import encode_mp4
from mav.errors import UserError
from mav.recipe import World

RUDE = (  # mild, and all of them on the default list
    "{caption}, and it sucks",
    "a god damn {colour} {shape}",
    "bollocks: {caption}",
    "{caption}, the bastard",
    "wtf, {caption}",
)
FAULTS = (  # how the server answers for a faulty picture; see mav.data.world_server
    {"kind": "status", "status": 404},
    {"kind": "slow"},
    {"kind": "truncated"},
    {"kind": "oversized"},
    {"kind": "html"},
    {"kind": "opt_out", "header": "noai, noimageai"},
    {"kind": "redirect", "to": "http://10.11.12.13/private.jpg"},
    {"kind": "redirect_loop"},
    {"kind": "redirect_ok"},
    {"kind": "status", "status": 429, "retry_after": 0},
    {"kind": "flaky", "status": 503},
    {"kind": "redirect", "to": "http://192.168.7.7:8080/router.png"},
    {"kind": "opt_out", "header": "somebody-else: noindex"},
)
LIST_FIELDS = ("videoid", "contentUrl", "duration", "page_dir", "name")
LEAST_IMAGES = 16
DIRECTORY = 50  # clips a page_dir


@dataclass
class Picture:
    """A row of the image-text side and the truth about it."""

    scene: Scene
    caption: str | None
    width: int
    height: int
    form: str  # jpg, png or webp
    unsafe: float = 0.0  # strength of the checkered band
    marked: float = 0.0  # strength of the watermark
    punsafe: float | None = 0.0
    pwatermark: float | None = 0.0
    fault: dict[str, Any] | None = None
    name: str = field(default="")


def draw_world(world: World, seed: int, out: Folder) -> dict[str, Any]:
    """Writes the world's files into `out` (tables, site, evaluation sets, prompts, truth) and returns its counts.

    The same world and seed give the same bytes. URLs point at 127.0.0.1:`world.port`, where mav.data.world_server answers. Raises
    UserError for a world too small to hold every kind of row.
    """
    if world.images < LEAST_IMAGES or world.clips < 1:
        raise UserError(f"`world.images` must be at least {LEAST_IMAGES}, so that every kind of row occurs, and `world.clips` at least 1.")
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
    identity = hashlib.sha256(json.dumps([sorted((digests | video_digests).items()), faults], sort_keys=True).encode()).hexdigest()
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


# ------------------------------------------------------------------------------------------------------- image and text


def _pictures(world: World, rng: np.random.Generator) -> list[Picture]:
    n = world.images
    sides = rng.integers(96, 161, size=(n, 2))
    forms = rng.choice(["jpg", "png", "webp"], size=n, p=[0.82, 0.1, 0.08])
    pictures = []
    for index in range(n):
        scene = random_scene(rng, world.colours, world.shapes)
        caption = scene.caption(int(rng.integers(len(SENTENCES))))
        width, height = (int(s) for s in sides[index])
        if rng.uniform() < 0.6:
            height = width
        form = str(forms[index])
        pictures.append(Picture(scene, caption, width, height, form, name=f"images/{index:05d}.{form}"))

    def some(share: float, least: int = 1) -> list[Picture]:
        """The next pictures of one shuffled order: kinds that ask for some never overlap."""
        count = max(round(share * n), least)
        taken, order[:] = order[:count], order[count:]
        return [pictures[i] for i in taken]

    order = [int(i) for i in rng.permutation(n)]
    for number, picture in enumerate(some(0.06, len(FAULTS) if n >= 60 else 1)):
        picture.fault = dict(FAULTS[number % len(FAULTS)])
    for number, picture in enumerate(some(0.06)):
        scene = picture.scene
        picture.caption = RUDE[number % len(RUDE)].format(caption=picture.caption, colour=scene.colour, shape=scene.shape)
    for picture in some(0.02):
        picture.caption = None
    for share, low, high, sign in (
        (0.08, 0.86, 1.0, "unsafe"),
        (0.05, 0.55, 0.77, "unsafe"),
        (0.08, 0.86, 1.0, "marked"),
        (0.05, 0.55, 0.77, "marked"),
    ):
        for picture in some(share):
            setattr(picture, sign, float(rng.uniform(low, high)))
    for picture in pictures:
        noise = rng.normal(0, 0.015, size=2)
        picture.punsafe = float(np.clip(_score(picture.unsafe) + noise[0], 0.0005, 0.9995))
        picture.pwatermark = float(np.clip(_score(picture.marked) + noise[1], 0.0005, 0.9995))
    border = next(p for p in pictures if _score(p.marked) >= 0.6)
    for index in rng.permutation(n)[: round(0.15 * n)]:
        picture = pictures[index]
        if picture is not border:  # both scores are mostly missing together, as in the real tables
            which = rng.uniform()
            picture.punsafe = None if which < 0.8 else picture.punsafe
            picture.pwatermark = None if which < 0.6 or which >= 0.8 else picture.pwatermark
    border.pwatermark = 0.5  # the boundary row: dropped, since the rule says >= 0.5
    return pictures


def _score(strength: float) -> float:
    """The probability a table gives a sign of this strength: it is sure of strong signs only, so visible ones survive its threshold."""
    return 0.03 + 0.94 * strength**3


def paint(picture: Picture) -> np.ndarray:
    """uint8 (height, width, 3): the scene in the central square, then the signs of its truth."""
    height, width = picture.height, picture.width
    side, full = min(height, width), max(height, width)
    canvas = draw_ground(picture.scene.ground, picture.scene.ground_seed, full)[:height, :width]
    top, left = (height - side) // 2, (width - side) // 2
    square = slice(top, top + side), slice(left, left + side)
    canvas[square] = draw_object(canvas[square], picture.scene, picture.scene.centre)
    if picture.unsafe:
        cell = max(side // 10, 1)
        y, x = np.mgrid[0 : 2 * cell, 0:width]
        checker = 255.0 * ((y // cell + x // cell) % 2)[..., None]
        start = top if picture.scene.ground_seed % 2 else top + side - 2 * cell
        band = slice(start, start + 2 * cell)
        canvas[band] = canvas[band] * (1 - picture.unsafe) + checker * picture.unsafe
    if picture.marked:
        y, x = np.mgrid[0:height, 0:width]
        period = side / 3.0
        lines = np.minimum((x + y) % period, (x - y) % period) < max(side * 0.03, 1.0)
        cover = (0.7 * picture.marked * lines)[..., None]
        canvas = canvas * (1 - cover) + 255.0 * cover
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _write_images(pictures: list[Picture], out: Folder) -> dict[str, str]:
    options: dict[str, dict[str, Any]] = {"jpg": {"quality": 92}, "png": {"compress_level": 1}, "webp": {"quality": 90, "method": 0}}
    digests = {}
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(paint(picture)).save(
            buffer, format={"jpg": "JPEG"}.get(picture.form, picture.form.upper()), **options[picture.form]
        )
        digests[picture.name] = _write(out, f"site/{picture.name}", buffer.getvalue())
    return digests


def _write(out: Folder, name: str, data: bytes) -> str:
    out.write_bytes(name, data)
    return hashlib.sha256(data).hexdigest()


def _write_tables(pictures: list[Picture], world: World, rng: np.random.Generator, out: Folder) -> int:
    """Two thirds of the rows in the joined form, the rest in Re-LAION's; each table repeats a few of its own rows.

    WIDTH and HEIGHT are as they should be in both: only the plain LAION-2B-en tables have them swapped.
    """
    base = f"http://127.0.0.1:{world.port}/"
    cut = (2 * len(pictures)) // 3
    rows = 0
    for name, part in (("joined", pictures[:cut]), ("relaion", pictures[cut:])):
        part = part + [part[int(i)] for i in rng.choice(len(part), size=max(len(part) // 50, 1), replace=False)]
        rows += len(part)
        url = pa.array([base + p.name for p in part])
        caption = pa.array([p.caption for p in part], pa.string())
        width, height = pa.array([p.width for p in part], pa.int32()), pa.array([p.height for p in part], pa.int32())
        punsafe, pwatermark = pa.array([p.punsafe for p in part], pa.float32()), pa.array([p.pwatermark for p in part], pa.float32())
        if name == "joined":
            similarity = pa.array(np.round(rng.uniform(0.28, 0.4, len(part)), 6))
            hashes = pa.array([_hash(base + p.name, p.caption) for p in part], pa.int64())
            table = pa.table({"URL": url, "TEXT": caption, "WIDTH": width, "HEIGHT": height, "similarity": similarity,
                              "hash": hashes, "punsafe": punsafe, "pwatermark": pwatermark})  # fmt: skip
        else:
            table = pa.table(
                {"url": url, "caption": caption, "width": width, "height": height, "punsafe": punsafe, "pwatermark": pwatermark}
            )
        with out.create(f"laion/{name}.parquet") as file:
            pq.write_table(table, file, row_group_size=256)
    return rows


def _hash(url: str, caption: str | None) -> int:
    """A stand-in for LAION's 64-bit row hash: what matters is that equal pairs have equal numbers."""
    return int.from_bytes(hashlib.blake2b((url + (caption or "")).encode(), digest_size=8).digest(), "little", signed=True)


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
    out.write_bytes("ucf101/class_prompts.txt", "".join(f"a {colour} {shape}\n" for colour, shape in _kinds(world)).encode())


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
    out.write_json("msrvtt/captions.json", {"info": {"description": "MSR-VTT-style, demo world"}, "videos": videos, "sentences": sentences})


def _prompts(world: World, rng: np.random.Generator) -> list[dict[str, str]]:
    """Every colour with every shape, in turn over the ways to say it; at least 24, at most 36."""
    kinds = _kinds(world)
    wanted = min(max(24, len(kinds)), 36)
    prompts = []
    for index in range(wanted):
        colour, shape = kinds[index % len(kinds)]
        sentence = SENTENCES[(index + index // len(kinds)) % len(SENTENCES)]
        ground = GROUNDS[int(rng.integers(len(GROUNDS)))]
        prompts.append({"prompt": sentence.format(colour=colour, shape=shape, ground=ground), "colour": colour, "shape": shape})
    return prompts
