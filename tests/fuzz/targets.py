"""What each parser is asked to do with an input, and which of its errors are foreseen.

A target returns what became of the input, as a class that can be counted. Any other exception is a crash. What an input
must never reach stands outside of the folder of the files: a secret, whose text is searched for in all that is read.
"""

import io
import itertools
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from mav.errors import UserError

SECRET = b"the secret that no input may reach"
Target = Callable[[bytes], str]


class EscapeError(BaseException):
    """An input reached what it must not reach. No parser catches it."""


def guarded(folder: Path) -> None:
    """Makes this process raise, and remember, whatever an input must not do: run a program, leave loopback, write
    outside of its folder."""
    allowed = {"127.0.0.1"}

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
            ESCAPES.append(f"{event} {arguments[0]!r}")
        elif event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in allowed:
            ESCAPES.append(f"connected to {arguments[1][0]}")
        elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            path = arguments[0]
            if isinstance(path, str) and not os.path.realpath(path).startswith((str(folder), "/dev/")):
                ESCAPES.append(f"wrote {path}")
        else:
            return
        if ESCAPES:
            raise EscapeError(ESCAPES[-1])

    sys.addaudithook(watch)


ESCAPES: list[str] = []


def _reason(error: BaseException) -> str:
    """Returns an error's class of counts: its type, and the first words that are the same for many files."""
    words = [word for word in str(error).split() if word.isalpha()]
    return f"{type(error).__name__}: {' '.join(words[:6])}" if isinstance(error, UserError) else str(error)[:40]


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


def lists(folder: Path) -> Target:
    """Lists are read, and what their first rows name is fetched from a folder and without one."""
    from mav.data.fetching.addresses import system_resolver
    from mav.data.videos.clip_files import ClipFiles
    from mav.data.videos.clip_list import read_clips, split_lists
    from mav.recipes import VideoShards

    inside = folder / "inside"
    (inside / "deep").mkdir(parents=True)
    (inside / "0.mp4").write_bytes(b"a clip")
    (inside / "link.mp4").symlink_to(folder / "secret.mp4")
    (folder / "secret.mp4").write_bytes(SECRET)

    def resolver(host: str, port: int) -> list[str]:
        return system_resolver(host, port) if host.replace(".", "").isdigit() or ":" in host else ["10.0.0.1"]

    rules = [VideoShards(files=str(inside)), VideoShards(deadline_seconds=1.0)]

    def run(data: bytes) -> str:
        ending = "jsonl" if data.lstrip()[:1] in (b"{", b"[") else "csv"
        path = folder / f"list.{ending}"
        path.write_bytes(data.replace(b"SECRET", str(folder / "secret.mp4").encode()))
        reasons = set()
        try:
            for part in split_lists([str(path)], 50):
                clips = list(itertools.islice(read_clips(part, 0), 200))
                for rule in rules:
                    for _, body in ClipFiles(rule, resolver).fetch(clips[:8]):
                        if body == SECRET:
                            raise EscapeError("read the secret")
                        reasons.add("ok" if isinstance(body, bytes) else str(body))
        except UserError:
            return "UserError"
        return min(reasons - {"ok"}, default="ok")

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
    """Pictures of the web, and the same bytes as somebody's own picture."""
    from mav.data.images.pictures import read_picture
    from mav.data.images.resize import guarded_resizer
    from mav.recipes import ImageDownload

    resizer = guarded_resizer(ImageDownload(image_size=64, max_pixels=20_000_000))

    def run(data: bytes) -> str:
        if len(data) < 1 << 16:
            try:
                read_picture(data)
            except ValueError as error:
                _reason(error)
        return str(resizer.prepare(data)[-1] or "ok")

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
        try:
            ShownVideo(data).frames([0])
        except ValueError as error:
            _reason(error)
        try:
            convert(data, dataclasses.replace(rule, reencode=False))
        except ClipError as error:
            _reason(error)
        try:
            convert(data, rule)
        except ClipError as error:
            return str(error)
        return "ok"

    return run


def answers(folder: Path) -> Target:
    """Raw answers of a server on loopback, redirects and headers included."""
    from mav.data.fetching.guards import GuardedOpener
    from mav.data.fetching.rules import FetchError

    reply = [b""]
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def serve() -> None:
        while True:
            client, _ = listener.accept()
            with client:
                try:
                    client.settimeout(2)
                    client.recv(1 << 16)
                    client.sendall(reply[0])
                    client.shutdown(socket.SHUT_WR)
                    client.recv(1)
                except OSError:
                    continue  # the client hangs up when it has seen enough

    threading.Thread(target=serve, daemon=True).start()
    refuse = ("noai", "noindex", "tdm-reservation")

    def run(data: bytes) -> str:
        reply[0] = data
        opener = GuardedOpener(
            timeout=1.0, deadline=2.0, max_bytes=100_000, refuse=refuse, allow_addresses=(f"127.0.0.1:{port}",),
            resolver=lambda host, _: [host] if host[:1].isdigit() or ":" in host else ["10.0.0.1"],
        )  # fmt: skip
        try:
            opener.fetch(f"http://127.0.0.1:{port}/x")
        except FetchError as error:
            return error.reason
        return "ok"

    return run


def yaml(folder: Path) -> Target:
    """YAML as a file and as a recipe."""
    from mav.recipes.reader import load_recipe

    def run(data: bytes) -> str:
        (folder / "mine.yaml").write_bytes(data)
        try:
            load_recipe(str(folder / "mine.yaml"))
        except UserError as error:
            return type(error).__name__
        return "read"

    return run


def weights(ending: str) -> Callable[[Path], Target]:
    def prepare(folder: Path) -> Target:
        from mav.models.heads import read_head

        def run(data: bytes) -> str:
            path = folder / f"weights.{ending}"
            path.write_bytes(data)
            try:
                read_head(str(path), 8, "clip.nsfw_head")
            except UserError:
                return "UserError"
            return "read"

        return run

    return prepare


def torch_files(folder: Path) -> Target:
    """Files of torch as weights of a metric's network, as a head, and as a video's tensor."""
    from mav.evaluation.networks.weights import read_state
    from mav.models.checkpoints.weight_files import read_torch

    head = weights("pt")(folder)

    def run(data: bytes) -> str:
        found = head(data)
        for ending in ("pt", "npz"):
            path = folder / f"state.{ending}"
            path.write_bytes(data)
            try:
                found = "read" if read_state(path) else found
            except UserError as error:
                _reason(error)
        try:
            read_torch(io.BytesIO(data))
        except ValueError as error:
            _reason(error)
        return found

    return run


def votes(folder: Path) -> Target:
    from starlette.testclient import TestClient
    from study_server import make_study

    from mav.storage import Folder
    from mav.study.rating_server import make_app
    from mav.study.votes import Votes

    study = make_study(folder / "study", 4, 4)
    database = Votes(str(folder / "v.sqlite"), study)
    (token,) = database.invite(1)
    client = TestClient(make_app(database, Folder(str(folder / "study"))), raise_server_exceptions=True)
    item = next(iter(study.items))

    def run(data: bytes) -> str:
        data = data.replace(b"TOKEN", token.encode()).replace(b"ITEM", item.encode())
        head, _, body = data.partition(b"\n\n")
        first, *lines = head.split(b"\n")
        method, _, path = first.decode("latin-1").partition(" ")
        pairs = [line.partition(b": ") for line in lines]
        headers = {name: value for name, _, value in pairs if name.isalpha() and name.isascii()}
        try:
            answer = client.request(method or "GET", f"http://testserver{path}", headers=headers, content=body)
        except (ValueError, UnicodeError) as error:  # no client can send it
            return f"not sent ({type(error).__name__})"
        except Exception as error:
            if type(error).__module__.startswith("httpx"):
                return f"not sent ({type(error).__name__})"
            raise
        if b"SQLite" in answer.content or answer.status_code >= 500:
            raise EscapeError(f"status {answer.status_code}")
        return f"status {answer.status_code}"

    return run


TARGETS: dict[str, Callable[[Path], Target]] = {
    "tables": tables, "lists": lists, "tars": tars, "pictures": pictures, "mp4": videos, "avi": videos,
    "answers": answers, "yaml": yaml, "safetensors": weights("safetensors"), "torch": torch_files,
    "heads": weights("zip"), "votes": votes,
}  # fmt: skip
