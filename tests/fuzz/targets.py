"""What each parser is asked to do with an input, and which of its errors are foreseen.

A target returns what became of the input, as a class that can be counted. Any other exception is a crash. What an input
must never reach stands outside of the folder of the files: a secret, whose text is searched for in all that is read.
"""

import itertools
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import file_targets as files
from escapes import SECRET, EscapeError, Target

from mav.errors import UserError


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
    "tables": files.tables, "lists": lists, "tars": files.tars, "pictures": files.pictures, "mp4": files.videos,
    "avi": files.videos, "answers": answers, "yaml": yaml, "safetensors": files.weights("safetensors"),
    "torch": files.torch_files, "pickles": files.torch_files, "heads": files.weights("zip"), "votes": votes,
}  # fmt: skip
