"""`mav publish`: the folder, the card, what is refused, and what a push sends; the hub here is one of ours on loopback."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import cli_publish
from flows.make_a_video import make_a_video
from flows.stage import Store
from mav.artifact import Artifact
from mav.errors import UserError
from mav.recipe_file import load_recipe

CURVES = b"".join(json.dumps({"samples": n, "loss": 1 / n, "validation": 2 / n}).encode() + b"\n" for n in range(8, 88, 8))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run of which the decoder, its data and nothing else is there."""
    plan, store = make_a_video(load_recipe("tiny")), Store(str(tmp_path))
    for name in ("image-embed", "train-decoder"):
        node = plan.node(name)
        folder = store.artifact(node)
        facts: dict = {"counts": {"rows_in": 120, "rows_out": 100, "dropped": {"nsfw": 20}}}
        folder.write_bytes("data.bin", b"data")
        if name == "train-decoder":
            folder.write_bytes("network.safetensors", b"weights")
            folder.write_bytes("network.json", b"{}")
            folder.write_bytes("curves.jsonl", CURVES)
            folder.write_bytes("start.json", b'{"path": "/home/someone/karlo.ckpt"}')
            facts = {"metrics": {"parameters": 1234567, "samples": 80, "loss": 0.0125}, "seconds": 7200.0}
        config = load_recipe("tiny").part(node.stage.sections) | {"train_decoder": {"start": "/home/someone/karlo.ckpt", "crop": 1.0}}
        known = {"stage": name, "version": 1, "fingerprint": node.fingerprint, "recipe": "tiny", "config": config, "inputs": {}}
        Artifact.publish(folder, **known, **facts, software={"torch": "2.13"})
    return tmp_path


def publish(runs: Path, *arguments: str) -> str:
    result = CliRunner().invoke(cli_publish.app, ["tiny", *arguments, "--runs", str(runs)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_dry_run_writes_the_folder_and_uploads_nothing(runs: Path) -> None:
    told = publish(runs, "--to", "someone/films")
    folder = runs / "publish" / "someone--films"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "README.md",
        *(f"train-decoder/{name}" for name in ("data.bin", "network.safetensors", "network.json", "curves.jsonl")),
    }
    assert "Nothing was uploaded" in told
    assert "Not trained yet, so not in it: clip, train-prior" in told
    card = (folder / "README.md").read_text()
    node = make_a_video(load_recipe("tiny")).node("image-embed")
    for fact in (
        "1,234,567",
        "2 hours in all",
        "120 | 100",
        node.fingerprint[:16],
        "loss: 0.125 at 8",
        "validation: 0.25 at 8",
        "torch 2.13",
    ):
        assert fact in card, fact
    assert "karlo.ckpt" in card
    assert "/home/someone" not in card
    assert "- train-decoder, loss: " in card
    assert card.split("---")[1].strip().startswith("library_name")
    assert publish(runs, "train-decoder", "--to", "someone/films").count("README.md") == 1
    assert (folder / "README.md").read_text() == card


def test_what_is_refused(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for arguments, sentence in (
        (("--to", "films"), "for example --to"),
        (("--to", "../../films"), "for example --to"),
        (("generate", "--to", "a/b"), "not a training stage"),
        (("train-prior", "--to", "a/b"), "mav run tiny --until train-prior"),
        (("--to", "a/b", "--push"), "environment variable HF_TOKEN"),
    ):
        with pytest.raises(UserError, match=sentence):
            publish(runs, *arguments)
    changed = next(runs.glob("artifacts/train-decoder/*/network.safetensors"))
    changed.write_bytes(b"weightz")
    with pytest.raises(UserError, match="sha256 is not the manifest's"):
        publish(runs, "--to", "a/b")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: a repository is made, small files come with the commit."""

    seen: list[tuple[str, str, bytes]]

    def _answer(self, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        body = self._read()
        type(self).seen.append((self.path, self.headers.get("Authorization", ""), body))
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            self._answer({"commitOid": "0" * 40, "commitUrl": "http://127.0.0.1/someone/films/commit/" + "0" * 40})
        else:
            self._answer({"url": "http://127.0.0.1/someone/films"})

    def do_GET(self) -> None:
        type(self).seen.append((self.path, "", b""))
        self._answer({"id": "someone/films", "sha": "0" * 40, "siblings": []})

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_a_push_sends_the_folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    Hub.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    original = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: original(endpoint=address, token=token))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    try:
        told = publish(runs, "train-decoder", "--to", "someone/films", "--push")
    finally:
        server.shutdown()
        server.server_close()
    commits = [body for path, token, body in Hub.seen if "/commit/" in path and token == "Bearer hf_secret"]
    assert len(commits) == 1
    lines = [json.loads(line) for line in commits[0].splitlines()]
    paths = {line["value"]["path"] for line in lines if line["key"] == "file"}
    assert paths == {"README.md", *(f"train-decoder/{n}" for n in ("data.bin", "network.safetensors", "network.json", "curves.jsonl"))}
    assert "someone/films" in told
    assert "hf_secret" not in told
