"""The demo world's image-text side: pictures with captions, scores and faults, and the tables that list them."""

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mav.recipes import World
from mav.storage import Folder
from mav.world.cast import Cast
from mav.world.drawing import Scene, draw_ground, draw_objects, truth_of

# Mild insults, all of them on the default word list.
RUDE = ("{caption}, and it sucks", "a god damn {name}", "bollocks: {caption}", "{caption}, the bastard",
        "wtf, {caption}")  # fmt: skip
# How the server (mav.world.server) answers for a faulty picture.
FAULTS = (
    {"kind": "status", "status": 404}, {"kind": "slow"}, {"kind": "truncated"}, {"kind": "oversized"}, {"kind": "html"},
    {"kind": "opt_out", "header": "noai, noimageai"}, {"kind": "redirect", "to": "http://10.11.12.13/private.jpg"},
    {"kind": "redirect_loop"}, {"kind": "redirect_ok"}, {"kind": "status", "status": 429, "retry_after": 0},
    {"kind": "flaky", "status": 503}, {"kind": "redirect", "to": "http://192.168.7.7:8080/router.png"},
    {"kind": "opt_out", "header": "somebody-else: noindex"},
)  # fmt: skip
COPIES = 150  # pictures for each copy of a kind; there is one at least
SIGNS = ((0.08, 0.86, 1.0, "unsafe"), (0.05, 0.55, 0.77, "unsafe"),  # share of pictures, lowest and highest strength
         (0.08, 0.86, 1.0, "marked"), (0.05, 0.55, 0.77, "marked"))  # fmt: skip


@dataclass
class Picture:
    """A row of the image-text side and the truth about it.

    form: jpg, png or webp. unsafe, marked: strengths of the checkered band and of the watermark. original: the picture
    that this is a copy of, changed as `copied` says.
    """

    name: str
    scene: Scene
    caption: str | None
    width: int
    height: int
    form: str
    unsafe: float = 0.0
    marked: float = 0.0
    punsafe: float | None = 0.0
    pwatermark: float | None = 0.0
    fault: dict[str, Any] | None = None
    original: "Picture | None" = None
    copied: str = ""

    @property
    def truth(self) -> dict[str, Any]:
        signs = {"unsafe": _score(self.unsafe) >= 0.5, "watermark": _score(self.marked) >= 0.5}
        copy = {"copy_of": self.original.name, "copied": self.copied} if self.original else {}
        return truth_of(self.scene.kinds) | signs | copy


def make_pictures(world: World, cast: Cast, rng: np.random.Generator) -> list[Picture]:
    """Returns the rows of the image-text side: scenes, captions, signs, scores and faults, all from `rng`."""
    n = world.images
    sides = rng.integers(96, 161, size=(n, 2))
    forms = rng.choice(["jpg", "png", "webp"], size=n, p=[0.82, 0.1, 0.08])
    pictures = []
    for index, form in enumerate(forms):
        scene = cast.scene(rng)
        caption = scene.caption(int(rng.integers(len(cast.sentences))))
        width, height = (int(s) for s in sides[index])
        if rng.uniform() < 0.6:
            height = width
        pictures.append(Picture(f"images/{index:05d}.{form}", scene, caption, width, height, str(form)))

    # Faults, rude and missing captions, and signs: `some` takes from one shuffled order, so these kinds never overlap.
    order = [int(i) for i in rng.permutation(n)]

    def some(share: float, least: int = 1) -> list[Picture]:
        count = max(round(share * n), least)
        taken, order[:] = order[:count], order[count:]
        return [pictures[i] for i in taken]

    for number, picture in enumerate(some(0.06, len(FAULTS) if n >= 60 else 1)):
        picture.fault = dict(FAULTS[number % len(FAULTS)])
    for number, picture in enumerate(some(0.06)):
        picture.caption = RUDE[number % len(RUDE)].format(caption=picture.caption, name=picture.scene.name)
    for picture in some(0.02):
        picture.caption = None
    for share, low, high, sign in SIGNS:
        for picture in some(share):
            setattr(picture, sign, float(rng.uniform(low, high)))

    # Scores, of which some are missing: mostly both together, as in the real tables.
    for picture in pictures:
        noise = rng.normal(0, 0.015, size=2)
        picture.punsafe = float(np.clip(_score(picture.unsafe) + noise[0], 0.0005, 0.9995))
        picture.pwatermark = float(np.clip(_score(picture.marked) + noise[1], 0.0005, 0.9995))
    border = next(p for p in pictures if _score(p.marked) >= 0.6)
    for index in rng.permutation(n)[: round(0.15 * n)]:
        picture = pictures[index]
        if picture is not border:
            which = rng.uniform()
            picture.punsafe = None if which < 0.8 else picture.punsafe
            picture.pwatermark = None if which < 0.6 or which >= 0.8 else picture.pwatermark
    border.pwatermark = 0.5  # the boundary row: it is dropped, because the rule says >= 0.5

    # Near duplicates of pictures that nothing is wrong with, under other captions; they come last.
    for index, kind in enumerate([*COPYING] * max(n // COPIES, 1)):
        original = pictures[order[index % len(order)]]
        caption = original.scene.caption(int(rng.integers(len(cast.sentences))))
        copy = Picture(f"images/{n + index:05d}.jpg", original.scene, caption, 0, 0, "jpg", original=original)
        copy.copied, copy.punsafe, copy.pwatermark = kind, original.punsafe, original.pwatermark
        copy.height, copy.width = paint(copy).shape[:2]
        pictures.append(copy)
    return pictures


def _score(strength: float) -> float:
    """Returns a table's probability of a sign. It is high for strong signs only, so visible ones can pass."""
    return 0.03 + 0.94 * strength**3


def paint(picture: Picture) -> np.ndarray:
    """Returns uint8 (height, width, 3): the scene in the central square, then the signs of its truth."""
    if picture.original:
        return COPYING[picture.copied](paint(picture.original))
    height, width = picture.height, picture.width
    side, full = min(height, width), max(height, width)
    canvas = draw_ground(picture.scene.ground, picture.scene.ground_seed, full)[:height, :width]
    top, left = (height - side) // 2, (width - side) // 2
    square = slice(top, top + side), slice(left, left + side)
    canvas[square] = draw_objects(canvas[square], picture.scene)
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


def _encoded(pixels: np.ndarray) -> np.ndarray:
    """Returns a picture at three quarters of its size, as a JPEG of poor quality leaves it."""
    buffer, (height, width) = io.BytesIO(), pixels.shape[:2]
    Image.fromarray(pixels).resize((width * 3 // 4, height * 3 // 4)).save(buffer, "JPEG", quality=60)
    return np.asarray(Image.open(buffer))


def _cropped(pixels: np.ndarray) -> np.ndarray:
    """Returns a picture without a fiftieth of its height and of its width."""
    height, width = pixels.shape[:2]
    return pixels[height // 100 + 1 : height - height // 100, width // 100 + 1 : width - width // 100]


def _mirrored(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[:, ::-1])


COPYING = {"encoded": _encoded, "cropped": _cropped, "mirrored": _mirrored}  # how a picture is copied


def write_images(pictures: list[Picture], out: Folder) -> dict[str, str]:
    """Writes every picture into `site` and returns the sha256 of each file."""
    options: dict[str, dict[str, Any]] = {
        "jpg": {"format": "JPEG", "quality": 92},
        "png": {"format": "PNG", "compress_level": 1},
        "webp": {"format": "WEBP", "quality": 90, "method": 0},
    }
    digests = {}
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(paint(picture)).save(buffer, **options[picture.form])
        out.write_bytes(f"site/{picture.name}", buffer.getvalue())
        digests[picture.name] = hashlib.sha256(buffer.getvalue()).hexdigest()
    return digests


def write_tables(pictures: list[Picture], world: World, rng: np.random.Generator, out: Folder) -> int:
    """Writes two thirds of the rows in the joined form, the rest in Re-LAION's, and returns the number of rows.

    Copies have a table of their own, so that the others are the same with them and without. Each table repeats a few of
    its rows. WIDTH and HEIGHT are correct in both: only plain LAION-2B-en tables swap them.
    """
    copies = [picture for picture in pictures if picture.original]
    pictures = [picture for picture in pictures if not picture.original]
    cut = (2 * len(pictures)) // 3
    rows = 0
    for name, part in (("joined", pictures[:cut]), ("relaion", pictures[cut:]), ("reposts", copies)):
        part = part + [part[int(i)] for i in rng.choice(len(part), size=max(len(part) // 50, 1), replace=False)]
        rows += len(part)
        columns = {
            "url": pa.array([f"http://127.0.0.1:{world.port}/{p.name}" for p in part]),
            "caption": pa.array([p.caption for p in part], pa.string()),
            "width": pa.array([p.width for p in part], pa.int32()),
            "height": pa.array([p.height for p in part], pa.int32()),
            "punsafe": pa.array([p.punsafe for p in part], pa.float32()),
            "pwatermark": pa.array([p.pwatermark for p in part], pa.float32()),
        }
        table = pa.table(columns)
        if name == "joined":
            table = table.rename_columns(["URL", "TEXT", "WIDTH", "HEIGHT", "punsafe", "pwatermark"])
            pairs = zip(table["URL"].to_pylist(), table["TEXT"].to_pylist(), strict=True)
            table = table.add_column(4, "similarity", pa.array(np.round(rng.uniform(0.28, 0.4, len(part)), 6)))
            table = table.add_column(5, "hash", pa.array([_hash(*pair) for pair in pairs], pa.int64()))
        with out.create(f"laion/{name}.parquet") as file:
            pq.write_table(table, file, row_group_size=256)
    return rows


def _hash(url: str, caption: str | None) -> int:
    """Stands in for LAION's 64-bit row hash: equal pairs have equal numbers."""
    digest = hashlib.blake2b((url + (caption or "")).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
