"""`mav sample|animate|interpolate|vary`: the trained cascade at work on a user's own words, pictures and clips, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import RecipeName, Runs, Set, device, open_plan
from flows.services.terminal import Line
from mav.errors import UserError
from mav.recipes.reader import load_recipe

if TYPE_CHECKING:
    import numpy as np

    from mav.recipes import CascadeSizes, Recipe

app = typer.Typer()

Picture = typer.Argument(metavar="PICTURE", help="A jpg, png or webp; its central square is used.")
Seed = Annotated[int, typer.Option("--seed", help="The first video's seed; the next ones count on.")]
Count = Annotated[int, typer.Option("--count", "-n", min=1, help="How many videos, each with its own seed.")]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the videos go.")]
OUT = Path("videos")


@app.command()
def sample(
    recipe: RecipeName, prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What should be seen.")],
    seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None,
) -> None:  # fmt: skip
    """Text to video."""
    if not prompt.strip():
        raise UserError('The prompt is empty: say what should be seen, for example "a red circle".')
    _make("sample", prompt, lambda _: [prompt], recipe, seed, count, out, runs, set_)


@app.command()
def animate(
    recipe: RecipeName, image: Annotated[Path, Picture],
    seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None,
) -> None:  # fmt: skip
    """One picture to a video that starts with it."""
    _make("animate", image.stem, lambda sizes: [_read_image(image, sizes)], recipe, seed, count, out, runs, set_)


@app.command()
def interpolate(
    recipe: RecipeName, first: Annotated[Path, Picture], last: Annotated[Path, Picture],
    seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None,
) -> None:  # fmt: skip
    """Two pictures to the video between them."""
    title = f"{first.stem}-{last.stem}"
    _make(
        "interpolate",
        title,
        lambda sizes: [_read_image(path, sizes) for path in (first, last)],
        recipe,
        seed,
        count,
        out,
        runs,
        set_,
    )


@app.command()
def vary(
    recipe: RecipeName, video: Annotated[Path, typer.Argument(metavar="CLIP", help="An mp4, webm, mov or avi.")],
    seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None,
) -> None:  # fmt: skip
    """A clip to another of its kind."""
    _make("vary", video.stem, lambda sizes: [_read_clip(video, sizes)], recipe, seed, count, out, runs, set_)


def _make(
    use: str, title: str, read: Callable[[CascadeSizes], list[Any]],
    recipe: str, seed: int, count: int, out: Path, runs: str, set_: list[str] | None,
) -> None:  # fmt: skip
    """What was given through one of the cascade's uses, `count` times; what cannot be read is told before networks are loaded."""
    import numpy as np

    if out.suffix in (".mp4", ".gif"):
        raise UserError(f"--out names a folder, which gets an mp4 and a GIF of each seed: give --out {out.parent}.")
    given = [
        [one] * count if isinstance(one, str) else np.stack([one] * count)
        for one in read(load_recipe(recipe, set_ or ()).cascade)
    ]
    loaded, cascade = load_cascade(recipe, runs, set_)
    seeds = list(range(seed, seed + count))
    with Line() as line:
        videos = getattr(cascade, use)(*given, seeds, loaded.generate, progress=line)
    _write(loaded, videos, seeds, out, title)


def load_cascade(recipe: str, runs: str, overrides: list[str] | None) -> tuple[Recipe, Any]:
    """The recipe and its trained networks. Raises UserError naming the first stage that is not done."""
    from mav.generation import cascade

    loaded, plan, store = open_plan(recipe, overrides, runs)
    inputs = {}
    for name in ("clip", *cascade.NETWORKS.values()):
        node = plan.node(name)
        if store.find(node) is None:
            raise UserError(
                f"{name} of {recipe} is not trained yet: `mav run {recipe} --until generate` trains what sampling needs."
            )
        inputs[name] = store.artifact(node)
    return loaded, cascade.Cascade.load(loaded, inputs, device())


def _read_image(path: Path, sizes: CascadeSizes) -> np.ndarray:
    """uint8 (S, S, 3): the central square at the cascade's final size."""
    import numpy as np
    from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

    size = sizes.high_size
    PngImagePlugin.MAX_TEXT_CHUNK = (
        PngImagePlugin.MAX_TEXT_MEMORY
    )  # photo editors leave more than Pillow's 1 MB of notes in PNGs
    try:
        with Image.open(path) as image:
            return np.asarray(
                ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (size, size), Image.Resampling.LANCZOS)
            )
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} is not a picture that can be read ({getattr(error, 'strerror', None) or error}): give a jpg, png or webp."
        ) from None


def _read_clip(path: Path, sizes: CascadeSizes) -> np.ndarray:
    """uint8 (F, S, S, 3): frames spread over the whole clip, their central squares at the cascade's final size."""
    import numpy as np
    from PIL import Image, ImageOps

    from mav.data.videos.video_io import open_video, read_frames

    size, wanted = sizes.high_size, sizes.frames
    try:
        total = len(open_video(str(path)))
        frames = read_frames(str(path), np.linspace(0, total - 1, wanted).round().astype(int))
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): give an mp4, webm, mov or avi.") from None
    fitted = [ImageOps.fit(Image.fromarray(frame), (size, size), Image.Resampling.LANCZOS) for frame in frames]
    return np.stack([np.asarray(frame) for frame in fitted])


def _write(recipe: Recipe, videos: np.ndarray, seeds: list[int], out: Path, title: str) -> None:
    """Each video as mp4 and as an endless GIF; prints the paths."""
    from PIL import Image

    from mav.data.videos.video_io import encode_mp4

    fps = recipe.generate.fps * recipe.cascade.frame_skip
    out.mkdir(parents=True, exist_ok=True)
    slug = "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())[:60] or "video"
    for seed, video in zip(seeds, videos, strict=True):
        path = out / f"{slug}-{seed}.mp4"
        path.write_bytes(encode_mp4(video, fps, crf=8))
        first, *rest = [Image.fromarray(frame) for frame in video]
        first.save(path.with_suffix(".gif"), save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
        print(path)
