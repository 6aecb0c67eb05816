"""`mav sample|animate|interpolate|vary`: the trained cascade applied to a user's own words, pictures and clips."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import RecipeName, Runs, Set, damaged, device, open_graph, require_folder, run_until
from flows.services.printing import say
from flows.services.terminal import ProgressLine
from mav.data.videos import VIDEO_KINDS
from mav.errors import UserError
from mav.recipes import to_plain
from mav.recipes.reader import load_recipe

if TYPE_CHECKING:
    import numpy as np

    from mav.recipes import CascadeSizes, Recipe
    from mav.storage import Artifact

app = typer.Typer()

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What should be seen.")]
_PICTURE = "A jpg, png or webp; its central square is used."
Picture = Annotated[Path, typer.Argument(metavar="PICTURE", help=_PICTURE)]
First = Annotated[Path, typer.Argument(metavar="FIRST", help=f"The first frame. {_PICTURE}")]
Last = Annotated[Path, typer.Argument(metavar="LAST", help="The last frame, of the same kind.")]
Video = Annotated[Path, typer.Argument(metavar="CLIP", help=f"A video: {VIDEO_KINDS}.")]
_SEED = "The first video's seed; the next ones count on."
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help=_SEED)]
Count = Annotated[int, typer.Option("--count", "-n", metavar="N", min=1, help="How many videos, each of its own seed.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the videos go.")]
OUT = Path("videos")
USED = (".json", ".safetensors")  # what of a trained network's files is read
NOT_OF_A_VIDEO = ("prompts", "count", "batch_size", "time_off_twin")  # settings that change no video


@app.command()
def sample(
    recipe: RecipeName, prompt: Prompt,
    seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None,
) -> None:  # fmt: skip
    """Make videos of what a text says."""
    if not prompt.strip():
        raise UserError('The prompt is empty: say what should be seen, for example "a red circle".')
    _make("sample", prompt, lambda _: [prompt], recipe, seed, count, out, runs, set_)


@app.command()
def animate(
    recipe: RecipeName, image: Picture,
    seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None,
) -> None:  # fmt: skip
    """Make videos that start with a picture."""
    _make("animate", image.stem, lambda sizes: [_read_image(image, sizes)], recipe, seed, count, out, runs, set_)


@app.command()
def interpolate(
    recipe: RecipeName, first: First, last: Last,
    seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None,
) -> None:  # fmt: skip
    """Make videos of what is between two pictures."""

    def read(sizes: CascadeSizes) -> list[Any]:
        return [_read_image(path, sizes) for path in (first, last)]

    _make("interpolate", f"{first.stem}-{last.stem}", read, recipe, seed, count, out, runs, set_)


@app.command()
def vary(
    recipe: RecipeName, video: Video,
    seed: Seed = 0, count: Count = 1, out: Out = OUT, runs: Runs = "runs", set_: Set = None,
) -> None:  # fmt: skip
    """Make videos of the same kind as a clip."""
    _make("vary", video.stem, lambda sizes: [_read_clip(video, sizes)], recipe, seed, count, out, runs, set_)


def _make(
    use: str, title: str, read: Callable[[CascadeSizes], list[Any]],
    recipe: str, seed: int, count: int, out: Path, runs: str, set_: list[str] | None,
) -> None:  # fmt: skip
    """Applies one of the cascade's uses `count` times to what `read` returns, and writes the videos.

    The input is read before the networks are loaded, so that a bad file is reported at once.
    """
    import numpy as np

    from mav.data.list_files import storable
    from mav.generation.outputs import find_output, write_output
    from mav.generation.prompts import prompt_notes

    if out.suffix in (".mp4", ".gif"):
        raise UserError(f"--out names a folder, which gets an mp4 and a GIF of each seed: give --out {out.parent}.")
    require_folder("--out", str(out), written=True)
    title = storable(title)  # what is not UTF-8 in a word or in a file's name
    inputs = [storable(one) if isinstance(one, str) else one for one in read(load_recipe(recipe, set_ or ()).cascade)]
    loaded, cascade, networks = load_cascade(recipe, runs, set_)
    texts = [one for one in inputs if isinstance(one, str)]
    captions = None if loaded.clip.pretrained else networks.pop("image-embed", None)
    try:
        notes = prompt_notes(cascade.clip, texts, captions)
    except (ValueError, OSError) as error:
        remedy = "`mav rerun` of image-embed builds it anew"
        notes = [f"Which words the text encoder knows cannot be told: image-embed is damaged ({error}); {remedy}."]
    for sentence in notes:
        say(f"mav: {sentence}", sys.stderr)
    settings = {name: value for name, value in to_plain(loaded.generate).items() if name not in NOT_OF_A_VIDEO}
    about = {
        "use": use, **({"prompt": title} if texts else {"input": title, "input_sha256": _digest(inputs)}),
        "recipe": loaded.name, "generate": settings, "cascade": to_plain(loaded.cascade),
        "networks": {stage: artifact.manifest.fingerprint for stage, artifact in sorted(networks.items())},
    }  # fmt: skip
    fps, size = loaded.generate.fps * loaded.cascade.frame_skip, loaded.generate.batch_size
    with ProgressLine() as line:
        for first in range(seed, seed + count, size):
            seeds = range(first, min(first + size, seed + count))
            outputs = {number: find_output(out, title, number, about | {"seed": number}) for number in seeds}
            left = [number for number, output in outputs.items() if not output.done]
            if left:
                batch = [[one] * len(left) if isinstance(one, str) else np.stack([one] * len(left)) for one in inputs]
                videos = getattr(cascade, use)(*batch, left, loaded.generate, progress=line)
                for number, video in zip(left, videos, strict=True):
                    write_output(outputs[number], video, fps)
            for output in outputs.values():
                line.say(str(output.path))
                if output.done:
                    say(f"mav: {output.path} was there already, made in the same way.", sys.stderr)


def _digest(inputs: list[Any]) -> str:
    """Returns the digest of pictures and clips as the networks see them."""
    return hashlib.sha256(b"".join(one.tobytes() for one in inputs)).hexdigest()


def load_cascade(recipe: str, runs: str, overrides: list[str] | None) -> tuple[Recipe, Any, dict[str, Artifact]]:
    """Returns the recipe, its trained networks, and the artifacts that they and their captions are from.

    Raises UserError naming the first stage that is not done, or whose files are not what they were.
    """
    from mav.generation import cascade

    loaded, graph, store = open_graph(recipe, overrides, runs)
    found = {}
    for name in ("clip", *cascade.NETWORKS.values()):
        artifact = store.find(graph.node(name))
        if artifact is None:
            remedy = f"{run_until(recipe, 'generate', store, overrides)} trains what sampling needs"
            raise UserError(f"{name} of {recipe} is not trained yet: {remedy}.")
        if damage := next(artifact.damage("own", USED), None):
            raise damaged(recipe, name, damage, store, overrides)
        found[name] = artifact
    networks = cascade.Cascade.load(loaded, {name: artifact.folder for name, artifact in found.items()}, device())
    if captions := store.find(graph.node("image-embed")):
        found["image-embed"] = captions
    return loaded, networks, found


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
        raise UserError(f"{path} cannot be read ({error}): give a video ({VIDEO_KINDS}).") from None
    fitted = [ImageOps.fit(Image.fromarray(frame), size, Image.Resampling.LANCZOS) for frame in frames]
    return np.stack([np.asarray(frame) for frame in fitted])
