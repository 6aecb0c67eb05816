"""`mav sample|animate|interpolate|vary`: the trained cascade at work on a user's own words, pictures and clips, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mav.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from mav.recipe import Recipe

app = typer.Typer()

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="The recipe whose networks are used.")]
Seed = Annotated[int, typer.Option("--seed", help="The first video's seed; the next ones count on.")]
Count = Annotated[int, typer.Option("--count", "-n", min=1, help="How many videos, each with its own seed.")]
Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the videos go.")]
Runs = Annotated[str, typer.Option("--runs", metavar="URL", help="Where the artifacts are.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe value, e.g. --set generate.fps=4.")]
OUT = Path("videos")


@app.command()
def sample(
    recipe: RecipeName, prompt: str, seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None
) -> None:
    """Text to video."""
    loaded, cascade = load_cascade(recipe, runs, set_)
    if not prompt.strip():
        raise UserError('The prompt is empty: say what should be seen, for example "a red circle".')
    seeds = list(range(seed, seed + count))
    _write(loaded, cascade.sample([prompt] * count, seeds, loaded.generate, progress=_Progress()), seeds, out, prompt)


@app.command()
def animate(
    recipe: RecipeName, image: Path, seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None
) -> None:
    """One picture to a video that starts with it."""
    loaded, cascade = load_cascade(recipe, runs, set_)
    pictures = _read_image(image, loaded)[None].repeat(count, axis=0)
    seeds = list(range(seed, seed + count))
    _write(loaded, cascade.animate(pictures, seeds, loaded.generate, _Progress()), seeds, out, image.stem)


@app.command()
def interpolate(
    recipe: RecipeName, first: Path, last: Path, seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None
) -> None:
    """Two pictures to the video between them."""
    loaded, cascade = load_cascade(recipe, runs, set_)
    ends = [_read_image(path, loaded)[None].repeat(count, axis=0) for path in (first, last)]
    seeds = list(range(seed, seed + count))
    _write(loaded, cascade.interpolate(*ends, seeds, loaded.generate, _Progress()), seeds, out, f"{first.stem}-{last.stem}")


@app.command()
def vary(recipe: RecipeName, video: Path, seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None) -> None:
    """A clip to another of its kind."""
    loaded, cascade = load_cascade(recipe, runs, set_)
    clips = _read_clip(video, loaded)[None].repeat(count, axis=0)
    seeds = list(range(seed, seed + count))
    _write(loaded, cascade.vary(clips, seeds, loaded.generate, _Progress()), seeds, out, video.stem)


def load_cascade(recipe: str, runs: str, overrides: list[str] | None) -> tuple[Recipe, Any]:
    """The recipe and its trained networks. Raises UserError naming the first stage that is not done."""
    from flows.make_a_video import make_a_video
    from flows.stage import Store
    from mav.generation.cascade import NETWORKS, Cascade
    from mav.recipe_file import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    plan, store = make_a_video(loaded), Store(runs)
    inputs = {}
    for name in ("clip", *NETWORKS.values()):
        node = plan.node(name)
        if store.find(node) is None:
            raise UserError(f"{name} of {recipe} is not trained yet: `mav run {recipe} --until generate` trains what sampling needs.")
        inputs[name] = store.artifact(node)
    return loaded, Cascade.load(loaded, inputs, _device())


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class _Progress:
    """One moving line: which network, which step."""

    def __call__(self, network: str, done: int, total: int) -> None:
        typer.echo(f"\r{network:<14} {done:>4}/{total:<4}", nl=False, err=True)


def _read_image(path: Path, recipe: Recipe) -> np.ndarray:
    """uint8 (S, S, 3): the central square at the cascade's final size."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    size = recipe.cascade.high_size
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (size, size), Image.Resampling.LANCZOS))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a picture that can be read ({error}): give a jpg, png or webp.") from None


def _read_clip(path: Path, recipe: Recipe) -> np.ndarray:
    """uint8 (F, S, S, 3): frames spread over the whole clip, their central squares at the cascade's final size."""
    import numpy as np
    from PIL import Image, ImageOps

    from mav.data.video_io import open_video, read_frames

    size, wanted = recipe.cascade.high_size, recipe.cascade.frames
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

    from mav.data.video_io import encode_mp4

    fps = recipe.generate.fps * recipe.cascade.frame_skip
    out.mkdir(parents=True, exist_ok=True)
    typer.echo("\r" + " " * 32 + "\r", nl=False, err=True)
    slug = "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())[:60] or "video"
    for seed, video in zip(seeds, videos, strict=True):
        path = out / f"{slug}-{seed}.mp4"
        encode_mp4(video, fps, crf=8, target=str(path))
        first, *rest = [Image.fromarray(frame) for frame in video]
        first.save(path.with_suffix(".gif"), save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
        print(path)
