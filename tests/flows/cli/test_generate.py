"""`mav sample`: a batch at a time, each video as it is done, in files that nothing writes over."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from flows.cli import generate
from mav.errors import UserError
from mav.recipes import ClipConfig
from mav.recipes.reader import load_recipe
from mav.storage import Artifact, Folder

Mav = Callable[..., tuple[int, str, str]]


class Drawn:
    """Stands in for a trained cascade: a video is a function of prompt and seed."""

    def __init__(self) -> None:
        from mav.models.clip import ClipModel

        self.clip, self.batches = ClipModel(ClipConfig(text_context=8)), []

    def sample(self, prompts, seeds, settings, progress=None):
        self.batches.append(list(seeds))
        if 6 in seeds and len(self.batches) == 4:
            raise KeyboardInterrupt
        assert len(prompts) == len(seeds) <= settings.batch_size
        return np.stack([np.full((3, 16, 16, 3), seed, np.uint8) for seed in seeds])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    cascade = Drawn()
    networks = {"train-prior": SimpleNamespace(manifest=SimpleNamespace(fingerprint="f" * 64))}

    def load(recipe, runs, overrides):
        return load_recipe(recipe, overrides or ()), cascade, dict(networks)

    monkeypatch.setattr(generate, "load_cascade", load)
    return cascade


def test_a_stopped_command_goes_on_where_it_was(tmp_path: Path, drawn: Drawn, mav: Mav) -> None:
    line = ["sample", "tiny", "a red circle", "-n", "8", "--out", tmp_path, "--set", "generate.batch_size=2"]
    code, out, _ = mav(*line)
    assert code == 130
    assert drawn.batches == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert len(out.split()) == len(list(tmp_path.glob("*.mp4"))) == 6, "each batch is there when it is done"
    code, out, err = mav(*line)
    assert code == 0
    assert drawn.batches[4:] == [[6, 7]]
    assert len(out.split()) == 8
    assert err.count("was there already") == 6
    told = json.loads((tmp_path / "a-red-circle-7.json").read_text())
    assert (told["prompt"], told["seed"], told["recipe"]) == ("a red circle", 7, "tiny")
    assert told["networks"] == {"train-prior": "f" * 64}
    assert told["generate"]["decoder"]["steps"]


def test_other_settings_make_other_files(tmp_path: Path, drawn: Drawn, mav: Mav) -> None:
    line = ["sample", "tiny", "\U0001f408", "--out", tmp_path]
    paths = [mav(*line)[1].strip(), mav(*line, "--set", "generate.fps=12")[1].strip()]
    paths += [mav("sample", "tiny", "\U0001f415", "--out", tmp_path)[1].strip()]
    assert len(set(paths)) == 3
    assert mav(*line, "--set", "generate.batch_size=3")[1].strip() == paths[0], "a batch's size changes no video"


def test_what_is_not_seen_of_a_prompt_is_told(tmp_path: Path, drawn: Drawn, mav: Mav) -> None:
    code, _, err = mav("sample", "tiny", "one two three four five six seven", "--out", tmp_path)
    assert code == 0
    assert "context of 8 tokens; its end is not seen: 'seven'" in err


def test_words_that_are_not_utf_8_and_folders_that_are_none(tmp_path: Path, drawn: Drawn, mav: Mav) -> None:
    code, out, _ = mav("sample", "tiny", "caf\udce9", "--out", tmp_path)
    assert code == 0
    assert json.loads(Path(out.strip()).with_suffix(".json").read_text())["prompt"].startswith("caf")
    (tmp_path / "file").write_text("")
    drawn.batches.clear()
    code, _, err = mav("sample", "tiny", "a cat", "--out", tmp_path / "file/videos")
    assert (code, err.count("\n"), drawn.batches) == (2, 1, []), "it is told before anything is computed"
    assert f"--out {tmp_path}/file/videos cannot be a folder" in err


def test_damaged_weights_make_no_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an artifact whose curves are lost, the network is used; one whose weights changed is named."""
    artifact = Artifact.publish(
        stored(Folder(str(tmp_path / "clip")), ("clip.json", "clip.safetensors", "curves.jsonl")),
        stage="clip", version=1, fingerprint="f" * 64, recipe="tiny", config={}, inputs={},
    )  # fmt: skip
    monkeypatch.setattr("flows.engine.store.Store.find", lambda *_: artifact)
    loaded = []
    monkeypatch.setattr("mav.generation.cascade.Cascade.load", lambda *_: loaded.append(1))
    (tmp_path / "clip/curves.jsonl").unlink()
    generate.load_cascade("tiny", str(tmp_path), None)
    assert loaded == [1]
    (tmp_path / "clip/clip.safetensors").write_bytes(b"Xlip.safetensors")
    with pytest.raises(UserError, match=r"clip of tiny is damaged: .*; `mav rerun tiny clip --runs \S+` builds it"):
        generate.load_cascade("tiny", str(tmp_path), None)


def stored(folder: Folder, names: tuple[str, ...]) -> Folder:
    for name in names:
        folder.write_bytes(name, name.encode())
    return folder
