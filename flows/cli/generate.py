"""`mav sample|animate|interpolate|vary`: the trained cascade applied to a user's own words, pictures and clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import RecipeName, Runs, Set, device, open_graph
from flows.services.terminal import ProgressLine
from mav.errors import UserError
from mav.recipes.reader import load_recipe

if TYPE_CHECKING:
    import numpy as np

    from mav.recipes import CascadeSizes, Recipe

app = typer.Typer()

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What should be seen.")]
Picture = Annotated[Path, typer.Argument(metavar="PICTURE", help="A jpg, png or webp; its central square is used.")]
Video = Annotated[Path, typer.Argument(metavar="CLIP", help="An mp4, webm, mov or avi.")]
Seed = Annotated[int, typer.Option("--seed", help="The first video's seed; the next ones count on.")]
Count = Annotated[int, typer.Option("--count", "-n", min=1, help="How many videos, each with its own seed.")]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the videos go.")]
OUT = Path("videos")


@app.command()
def sample(
    recipe: RecipeName, prompt: Prompt,
    seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None,
) -> None:  # fmt: skip
    """Text to video."""
    if not prompt.strip():
        raise UserError('The prompt is empty: say what should be seen, for example "a red circle".')
    _make("sample", prompt, lambda _: [prompt], recipe, seed, count, out, runs, set_)


@app.command()
def animate(
    recipe: RecipeName, image: Picture,
    seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None,
) -> None:  # fmt: skip
    """One picture to a video that starts with it."""
    _make("animate", image.stem, lambda sizes: [_read_image(image, sizes)], recipe, seed, count, out, runs, set_)


@app.command()
def interpolate(
    recipe: RecipeName, first: Picture, last: Picture,
    seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None,
) -> None:  # fmt: skip
    """Two pictures to the video between them."""

    def read(sizes: CascadeSizes) -> list[Any]:
        return [_read_image(path, sizes) for path in (first, last)]

    _make("interpolate", f"{first.stem}-{last.stem}", read, recipe, seed, count, out, runs, set_)


@app.command()
def vary(
    recipe: RecipeName, video: Video,
    seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None,
) -> None:  # fmt: skip
    """A clip to another of its kind."""
    _make("vary", video.stem, lambda sizes: [_read_clip(video, sizes)], recipe, seed, count, out, runs, set_)


def _make(
    use: str, title: str, read: Callable[[CascadeSizes], list[Any]],
    recipe: str, seed: int, count: int, out: Path, runs: str, set_: list[str] | None,
) -> None:  # fmt: skip
    """Applies one of the cascade's uses `count` times to what `read` returns, and writes the videos.

    The input is read before the networks are loaded, so that a bad file is reported at once.
    """
    import numpy as np

    if out.suffix in (".mp4", ".gif"):
        raise UserError(f"--out names a folder, which gets an mp4 and a GIF of each seed: give --out {out.parent}.")
    inputs = read(load_recipe(recipe, set_ or ()).cascade)
    batches = [[one] * count if isinstance(one, str) else np.stack([one] * count) for one in inputs]
    loaded, cascade = load_cascade(recipe, runs, set_)
    seeds = list(range(seed, seed + count))
    with ProgressLine() as line:
        videos = getattr(cascade, use)(*batches, seeds, loaded.generate, progress=line)
    _write(loaded, videos, seeds, out, title)


def load_cascade(recipe: str, runs: str, overrides: list[str] | None) -> tuple[Recipe, Any]:
    """Returns the recipe and its trained networks. Raises UserError naming the first stage that is not done."""
    from mav.generation import cascade

    loaded, graph, store = open_graph(recipe, overrides, runs)
    inputs = {}
    for name in ("clip", *cascade.NETWORKS.values()):
        node = graph.node(name)
        if store.find(node) is None:
            remedy = f"`mav run {recipe} --until generate` trains what sampling needs"
            raise UserError(f"{name} of {recipe} is not trained yet: {remedy}.")
        inputs[name] = store.artifact(node)
    return loaded, cascade.Cascade.load(loaded, inputs, device())


def _read_image(path: Path, sizes: CascadeSizes) -> np.ndarray:
    """Returns a picture's central square at the cascade's final size, uint8 (S, S, 3)."""
    import numpy as np
    from PIL import Image, ImageOps

    from mav.data.images.pictures import read_picture

    size = (sizes.high_size, sizes.high_size)
    try:
        picture = Image.fromarray(read_picture(path.read_bytes()))
        return np.asarray(ImageOps.fit(picture, size, Image.Resampling.LANCZOS))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} is not a picture that can be read ({reason}): give a jpg, png or webp.") from None


def _read_clip(path: Path, sizes: CascadeSizes) -> np.ndarray:
    """Returns frames spread over a whole clip, as central squares of the cascade's final size: uint8 (F, S, S, 3)."""
    import numpy as np
    from PIL import Image, ImageOps

    from mav.data.videos.shown import ShownVideo

    size = (sizes.high_size, sizes.high_size)
    try:
        shown = ShownVideo(path.read_bytes())
        frames = shown.frames(np.linspace(0, len(shown) - 1, sizes.frames).round().astype(int).tolist())
    except (OSError, ValueError) as error:
        error = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({error}): give an mp4, webm, mov or avi.") from None
    fitted = [ImageOps.fit(Image.fromarray(frame), size, Image.Resampling.LANCZOS) for frame in frames]
    return np.stack([np.asarray(frame) for frame in fitted])


def _write(recipe: Recipe, videos: np.ndarray, seeds: list[int], out: Path, title: str) -> None:
    """Writes each video as mp4 and as an endless GIF, and prints the paths."""
    from PIL import Image

    from mav.data.videos.video_io import encode_mp4

    fps = recipe.generate.fps * recipe.cascade.frame_skip
    out.mkdir(parents=True, exist_ok=True)
    slug = "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())[:60] or "video"
    for seed, video in zip(seeds, videos, strict=True):
        path = out / f"{slug}-{seed}.mp4"
        path.write_bytes(encode_mp4(video, fps, crf=8))
        first, *rest = [Image.fromarray(frame) for frame in video]
        options: dict[str, Any] = {"append_images": rest, "duration": round(1000 / fps), "loop": 0}
        first.save(path.with_suffix(".gif"), save_all=True, **options)
        print(path)
