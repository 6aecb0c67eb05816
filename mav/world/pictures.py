"""TODO-DOC mav/world/pictures.py"""

import hashlib
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mav.recipes import World
from mav.storage import Folder
from mav.world.drawing import SENTENCES, Scene, draw_ground, draw_object, random_scene

RUDE = (  # mild, and all of them on the default list
    "{caption}, and it sucks",
    "a god damn {colour} {shape}",
    "bollocks: {caption}",
    "{caption}, the bastard",
    "wtf, {caption}",
)
FAULTS = (  # how the server answers for a faulty picture; see mav.world.server
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
        picture.caption = RUDE[number % len(RUDE)].format(
            caption=picture.caption, colour=scene.colour, shape=scene.shape
        )
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
    options: dict[str, dict[str, Any]] = {
        "jpg": {"quality": 92},
        "png": {"compress_level": 1},
        "webp": {"quality": 90, "method": 0},
    }
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
        punsafe, pwatermark = (
            pa.array([p.punsafe for p in part], pa.float32()),
            pa.array([p.pwatermark for p in part], pa.float32()),
        )
        if name == "joined":
            similarity = pa.array(np.round(rng.uniform(0.28, 0.4, len(part)), 6))
            hashes = pa.array([_hash(base + p.name, p.caption) for p in part], pa.int64())
            table = pa.table({"URL": url, "TEXT": caption, "WIDTH": width, "HEIGHT": height, "similarity": similarity,
                              "hash": hashes, "punsafe": punsafe, "pwatermark": pwatermark})  # fmt: skip
        else:
            table = pa.table(
                {
                    "url": url,
                    "caption": caption,
                    "width": width,
                    "height": height,
                    "punsafe": punsafe,
                    "pwatermark": pwatermark,
                }
            )
        with out.create(f"laion/{name}.parquet") as file:
            pq.write_table(table, file, row_group_size=256)
    return rows


def _hash(url: str, caption: str | None) -> int:
    """A stand-in for LAION's 64-bit row hash: what matters is that equal pairs have equal numbers."""
    return int.from_bytes(
        hashlib.blake2b((url + (caption or "")).encode(), digest_size=8).digest(), "little", signed=True
    )
