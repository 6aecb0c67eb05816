"""TensorBoard reads back what training reported, also after a resume."""

import io
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from PIL import Image
from small_training import small_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mav.errors import UserError
from mav.storage import Folder
from mav.training.monitoring.board import Board, WandbBoard


def curve(path):
    events = EventAccumulator(str(path))
    events.Reload()
    return {
        name: [(event.step, round(event.value, 3)) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_every_number_is_a_curve_over_samples(tmp_path):
    passed = []
    board = Board(Folder(str(tmp_path)), passed.append)
    for samples in (8, 16, 24):
        board(
            {"stage": "train-decoder", "total": 24, "samples": samples, "loss": 1 / samples, "samples_per_second": 3.0}
        )
    assert [line["samples"] for line in passed] == [8, 16, 24]
    assert curve(tmp_path) == {
        "loss": [(8, 0.125), (16, 0.062), (24, 0.042)],
        "samples_per_second": [(8, 3.0), (16, 3.0), (24, 3.0)],
    }


def test_a_resumed_training_replaces_what_lay_beyond_its_checkpoint(tmp_path):
    for start, loss in ((8, 0.5), (16, 0.25)):
        time.sleep(1.1)  # event files are read in the order of their names, which begin with the second
        board = Board(Folder(str(tmp_path)), lambda line: None)
        for samples in (start, start + 8, start + 16):
            board({"samples": samples, "loss": loss})
    assert curve(tmp_path)["loss"] == [(8, 0.5), (16, 0.25), (24, 0.25), (32, 0.25)]


def test_weights_and_biases_gets_the_same_numbers(tmp_path, monkeypatch):
    started, logged = [], []
    run = types.SimpleNamespace(
        log=lambda numbers, step: logged.append((step, numbers)), finish=lambda exit_code: logged.append(exit_code)
    )
    fake = types.SimpleNamespace(init=lambda **names: started.append(names) or run, Image=lambda image: image.size)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    passed = []
    folder = Folder(str(tmp_path / "train-decoder" / "0123abcd"))
    board = WandbBoard("films", "train-decoder", small_recipe(), Board(folder, passed.append))
    board({"stage": "train-decoder", "total": 24, "samples": 8, "loss": 0.5})
    assert (started[0]["project"], started[0]["id"], started[0]["resume"]) == (
        "films",
        "train-decoder-0123abcd",
        "allow",
    )
    assert started[0]["config"]["train-decoder"]["optimisation"]["samples"] == 12
    assert logged == [(8, {"loss": 0.5})]
    assert len(passed) == 1
    Image.new("RGB", (4, 2)).save(buffer := io.BytesIO(), "PNG")
    board.show(8, buffer.getvalue())
    assert logged[1:] == [(8, {"samples": (4, 2)})]
    assert folder.exists("samples/000000000008.png"), "TensorBoard and the report get it too"
    with board:
        pass
    with pytest.raises(ZeroDivisionError), board:
        raise ZeroDivisionError
    assert logged[2:] == [0, 1], "a training that fails is a failed run there"

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        WandbBoard("films", "train-decoder", small_recipe(), Board(Folder(str(tmp_path)), passed.append))


WORKER = """
import io, os, sys
sys.path.insert(0, {tests!r})
from PIL import Image
from small_training import small_recipe
from mav.data.images.resize import guarded_resizer
from mav.models.clip import _named
from mav.recipes import ImageDownload
from mav.storage import Folder
from mav.training.monitoring.board import Board, WandbBoard

guarded_resizer(ImageDownload())
_named("RN50")
assert "wandb" not in sys.modules
with WandbBoard("films", "train-decoder", small_recipe(), Board(Folder({folder!r}), lambda line: None)) as board:
    board({{"stage": "train-decoder", "total": 24, "samples": 8, "loss": 0.5}})
    Image.new("RGB", (4, 2)).save(buffer := io.BytesIO(), "PNG")
    board.show(8, buffer.getvalue())
os._exit(0)
"""


def test_a_worker_that_ends_without_a_word_leaves_nothing_in_the_temporary_folder(tmp_path):
    """As Ray ends workers. Libraries that download and embed import Weights & Biases too; offline, it writes files."""
    (tmp_path / "temporary").mkdir()
    folder = tmp_path / "train-decoder" / "0123abcd"
    code = WORKER.format(tests=str(Path(__file__).parents[1]), folder=str(folder))
    away = {"TMPDIR": str(tmp_path / "temporary"), "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | away, check=True, timeout=300)
    left = [path.name for path in (tmp_path / "temporary").glob("tmp*wandb*")]
    assert left == [], "but for the socket of its service, which goes when that sees that the worker is gone"
    assert list(folder.rglob("run-train-decoder-0123abcd.wandb")), "all is written"
    assert list(folder.rglob("media/images/*.png"))
