"""`mav publish`: the folder, the card, what is refused, and what a push sends."""

import errno
import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import create_autospec

import huggingface_hub
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from flows.cli import publish as cli_publish
from flows.engine.store import Store
from flows.make_a_video import make_a_video
from mav.errors import UserError
from mav.recipes.reader import load_recipe
from mav.report.publish import card as write_card
from mav.storage import Artifact, Folder

CURVES = b"".join(
    json.dumps({"samples": n, "loss": 1 / n, "validation": 2 / n}).encode() + b"\n" for n in range(8, 88, 8)
)
FILES = {
    "README.md",
    *(f"train-decoder/{name}" for name in ("data.bin", "network.safetensors", "network.json", "curves.jsonl")),
}


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
        config = node.config | {"train_decoder": {"start": "/home/someone/karlo.ckpt", "crop": 1.0}}
        known = {
            "stage": name,
            "version": 1,
            "fingerprint": node.fingerprint,
            "recipe": "tiny",
            "config": config,
            "inputs": {},
        }
        Artifact.publish(folder, **known, **facts, software={"torch": "2.13"})
    return tmp_path


def publish(runs: Path, *arguments: str) -> str:
    result = CliRunner().invoke(cli_publish.app, ["tiny", *arguments, "--runs", str(runs)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_dry_run_writes_the_folder_and_uploads_nothing(runs: Path) -> None:
    told = publish(runs, "--to", "someone/films")
    folder = runs / "publish" / "someone--films"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == FILES
    assert "Nothing was uploaded" in told
    assert "Not trained yet, so not in it: clip, train-prior" in told
    card = (folder / "README.md").read_text()
    node = make_a_video(load_recipe("tiny")).node("image-embed")
    facts = (
        "1,234,567",
        "2 hours in all",
        "120 | 100",
        "loss: 0.125 at 8",
        "validation: 0.25 at 8",
        "torch 2.13",
        "karlo.ckpt",
    )
    for fact in (*facts, node.fingerprint[:16], "- train-decoder, loss: "):
        assert fact in card, fact
    assert "/home/someone" not in card
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
    with pytest.raises(UserError, match="was changed"):
        publish(runs, "--to", "a/b")


def test_a_push_sends_the_folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = create_autospec(huggingface_hub.HfApi)  # it takes what the real one takes
    hub.return_value.create_repo.return_value = "https://hub.invalid/someone/films"
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    told = publish(runs, "train-decoder", "--to", "someone/films", "--push")
    hub.assert_called_once_with(token="hf_secret")
    hub.return_value.create_repo.assert_called_once()
    sent = hub.return_value.upload_folder.call_args.kwargs
    assert sent["repo_id"] == "someone/films"
    assert Path(sent["folder_path"]) == runs / "publish" / "someone--films"
    assert {
        str(path.relative_to(sent["folder_path"])) for path in Path(sent["folder_path"]).rglob("*") if path.is_file()
    } == FILES
    assert "https://hub.invalid/someone/films" in told
    assert "hf_secret" not in told


def test_a_release_that_fails_leaves_the_one_before(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(runs, "--to", "someone/films")
    folder = runs / "publish" / "someone--films"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mav.report.publish.card", full)
    with pytest.raises(OSError, match="No space"):
        publish(runs, "--to", "someone/films")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing half-written"


def test_what_was_changed_in_the_release_before_is_kept_beside_the_new_one(runs: Path) -> None:
    publish(runs, "--to", "someone/films")
    folder = runs / "publish" / "someone--films"
    publish(runs, "--to", "someone/films")
    assert not folder.with_name("someone--films.before").exists(), "they were the same"
    (folder / "README.md").write_text("my own words")
    publish(runs, "--to", "someone/films")
    assert (folder.with_name("someone--films.before") / "README.md").read_text() == "my own words"
    assert "my own words" not in (folder / "README.md").read_text()


def test_weights_say_their_format_and_are_otherwise_the_same(runs: Path) -> None:
    artifact = next(runs.glob("artifacts/train-decoder/*"))
    tensors = {"one": torch.arange(5.0), "two": torch.ones(3, 4, dtype=torch.bfloat16)}
    for metadata in (None, {"made_by": "somebody"}):
        save_file(tensors, artifact / "network.safetensors", metadata)
        manifest = json.loads((artifact / "manifest.json").read_text())
        (artifact / "manifest.json").unlink()
        Artifact.publish(Folder(str(artifact)), **{k: v for k, v in manifest.items() if k not in ("files", "digest")})
        publish(runs, "--to", "someone/films")
        with safe_open(runs / "publish/someone--films/train-decoder/network.safetensors", "pt") as released:
            assert released.metadata() == {"format": "pt", **(metadata or {})}
            assert all(torch.equal(released.get_tensor(name), value) for name, value in tensors.items())


def test_the_card_has_a_licence_and_the_poor_numbers_too(runs: Path) -> None:
    node = make_a_video(load_recipe("tiny")).node("evaluate-interpolation")
    metrics = {"psnr": 11.0, "psnr_gain": -3.5, "psnr_gain_low": -4.0, "psnr_gain_high": -3.0, "samples": 16}
    folder = Store(str(runs)).artifact(node)
    known = {"stage": node.name, "version": 2, "fingerprint": node.fingerprint, "recipe": "tiny"}
    Artifact.publish(folder, **known, config={}, inputs={}, metrics=metrics | {"protocol": "interpolation-demo v1"})
    publish(runs, "--to", "a/b")
    card = (runs / "publish/a--b/README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0"
    assert "| PSNR over blending | -3.50 | -4.00 to -3.00 | higher | 16 | interpolation-demo v1 |" in card
    assert "no better here than blending" in card
    publish(runs, "--to", "a/b", "--license", "cc-by-4.0")
    card = (runs / "publish/a--b/README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    trained = make_a_video(load_recipe("tiny")).node("train-decoder")
    networks = {"train-decoder": Artifact.open(Store(str(runs)).artifact(trained))}
    card = write_card(replace(load_recipe("tiny"), world=None), networks, {}, {})
    assert "license" not in yaml.safe_load(card.split("---")[1])
    assert "No licence is granted" in card
