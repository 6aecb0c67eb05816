"""What parsers of files are asked to do with an input (see `targets`)."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from escapes import SECRET, EscapeError, Target

from mav.errors import UserError


def tables(folder: Path) -> Target:
    from mav.data.images.laion import hash_column, read_part

    def run(data: bytes) -> str:
        (folder / "a.parquet").write_bytes(data)
        try:
            hash_column(str(folder / "a.parquet"))
            schema, batches = read_part(str(folder / "a.parquet"))
            rows = sum(len(batch) for batch in batches)
        except UserError:
            return "UserError"
        return f"read as {schema.name}" if rows else "read, empty"

    return run


def tars(folder: Path) -> Target:
    from mav.data.shards import read_tar
    from mav.storage import Folder

    def run(data: bytes) -> str:
        (folder / "a.tar").write_bytes(data)
        try:
            samples = list(read_tar(Folder(str(folder)), "a.tar"))
        except UserError:
            return "UserError"
        if any(SECRET in body for _, files in samples for body in files.values()):
            raise EscapeError("read the secret")
        return "read" if samples else "read, empty"

    return run


def pictures(folder: Path) -> Target:
    """Headers of pictures of the web, and the same bytes as somebody's own picture."""
    from mav.data.images.pictures import look, read_picture

    def run(data: bytes) -> str:
        seen = look(data, 20_000_000)
        if seen.width * seen.height > 20_000_000:
            return seen.problem
        try:
            read_picture(data)
        except ValueError as error:
            return seen.problem or str(error)
        return seen.problem or "ok"

    return run


def videos(folder: Path) -> Target:
    """Videos as `video-shards` converts and keeps them, and as evaluation shows them."""
    import dataclasses

    from mav.data.videos.index_first import index_first
    from mav.data.videos.probe import ClipError
    from mav.data.videos.shown import ShownVideo
    from mav.data.videos.transcode import convert
    from mav.recipes import VideoShards

    rule = VideoShards(short_side=32, max_seconds=5.0)

    def run(data: bytes) -> str:
        index_first(data)
        with contextlib.suppress(ValueError):
            ShownVideo(data).frames([0])
        with contextlib.suppress(ClipError):
            convert(data, dataclasses.replace(rule, reencode=False))
        try:
            convert(data, rule)
        except ClipError as error:
            return str(error)
        return "ok"

    return run


def weights(ending: str) -> Callable[[Path], Target]:
    def prepare(folder: Path) -> Target:
        from mav.models.heads import read_head, read_linear_head

        def run(data: bytes) -> str:
            path, said = folder / f"weights.{ending}", "UserError"
            path.write_bytes(data)
            with contextlib.suppress(UserError):
                read_linear_head(str(path))
                said = "read"
            with contextlib.suppress(UserError):
                read_head(str(path), 8, "clip.nsfw_head")
                said = "read"
            return said

        return run

    return prepare


def torch_files(folder: Path) -> Target:
    """Files of torch and numpy as weights of a metric's network, as a head, and as a video's array."""
    from mav.evaluation.networks.weights import read_state
    from mav.evaluation.tensors import read_tensor

    head = weights("pt")(folder)

    def run(data: bytes) -> str:
        found = head(data)
        for ending in ("pt", "npz"):
            path = folder / f"state.{ending}"
            path.write_bytes(data)
            with contextlib.suppress(UserError):
                found = "read" if read_state(path) else found
        for ending in (".npy", ".pt"):
            with contextlib.suppress(ValueError):
                read_tensor(data, ending)
        if Path("evil").exists():
            Path("evil").rename("was evil")  # each input is judged by itself
            raise EscapeError("ran what a file says")
        return found

    return run
