"""Samples while training: pictures of the average at fixed noise, which change no byte of what is trained."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from small_training import run, small_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mav.data.loading.source import SampleSource
from mav.errors import UserError
from mav.recipes.reader import load_recipe
from mav.recipes.training import Optimisation
from mav.report.collect import SLIDES, shown_while_training
from mav.storage import Folder
from mav.training.monitoring.board import Board
from mav.training.validation import LEVELS


def bytes_of(folder):
    return {name: folder.sha256(name) for name in folder.names()}


@pytest.mark.parametrize("stage", ["train-decoder", "train-decoder-video"])
def test_samples_change_no_byte_and_come_when_they_are_due(tmp_path, stage):
    made, shown, lines = {}, [], []
    for every in (0, 5):
        root = Folder(str(tmp_path / str(every)))
        recipe = small_recipe(checkpoint_every=12, sample_every=every, held_out=2)
        lines.clear()
        run(root, stage, recipe, report=lines.append, show=lambda *picture: shown.append(picture))
        made[every] = bytes_of(root.child(stage))
    assert made[0] == made[5]
    assert {"curves.jsonl", "samples.png"} < set(made[0])
    assert min(lines[-1]["sample_wait"], lines[-1]["validation_wait"]) > 0, "their cost is in the log"
    told = {line["samples"]: line for line in lines if "validation" in line}
    assert sorted(told) == [6, 10, 12], "the held-out loss of the average stands beside every picture"
    assert all(f"validation/{level}" in line for line in told.values() for level in LEVELS)
    assert told[6]["validation"] != told[10]["validation"]
    assert [samples for samples, _ in shown] == [6, 10, 12]
    first, *others = [np.asarray(Image.open(io.BytesIO(picture))) for _, picture in shown]
    side = 8  # of a picture; training samples are above the network's own
    assert all(np.array_equal(first[:side], other[:side]) for other in others)
    assert all((first[side : 2 * side] != other[side : 2 * side]).any() for other in others), "the average moves"


def test_a_resumed_training_shows_the_same_samples(tmp_path):
    whole, resumed = [], []
    recipe = small_recipe(samples=8, checkpoint_every=4, sample_every=4)
    run(Folder(str(tmp_path / "whole")), "train-decoder", recipe, show=lambda *shown: whole.append(shown))

    def kill(samples, picture):
        raise KeyboardInterrupt

    root = Folder(str(tmp_path / "resumed"))
    with pytest.raises(KeyboardInterrupt):
        run(root, "train-decoder", recipe, show=kill)
    run(root, "train-decoder", recipe, show=lambda *shown: resumed.append(shown))
    assert resumed == whole


def test_a_look_at_the_first_samples_leaves_no_trace():
    class Half(SampleSource):
        def read(self, index, number):
            if index % 2:
                raise ValueError("broken")
            return {"number": np.float32(index)}

    source = Half(0, [8], "numbers", corrupted_share=1.0)
    seen = source.peek(3)
    assert (source.counts, source.unreadable) == ({}, {})
    assert (source.batch(0, 3)["number"] == seen["number"]).all()
    assert source.counts["samples"] == 3


def test_pictures_reach_tensorboard_and_the_report(tmp_path):
    board = Board(Folder(str(tmp_path)), lambda line: None)
    for samples in range(0, 200, 10):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 2), (samples, 0, 0)).save(buffer, "PNG")
        board.show(samples, buffer.getvalue())
        board({"samples": samples, "loss": 1.0})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [image.step for image in events.Images("samples")][-1] == 190
    slides = shown_while_training(Folder(str(tmp_path)))
    assert len(slides) == SLIDES
    assert (slides[0][0], slides[-1][0]) == (0, 190)
    assert slides[0][1].startswith("data:image/png;base64,")
    assert shown_while_training(Folder(str(tmp_path / "nothing"))) == shown_while_training(None) == []


def test_networks_without_pictures_refuse_them():
    assert Optimisation(samples=1, batch_size=1).sample_every == 0
    for key in ("clip", "train_prior"):
        with pytest.raises(UserError, match=f"{key}.optimisation.sample_every"):
            load_recipe("tiny", [f"{key}.optimisation.sample_every=100"])
    recipe = load_recipe("demo")
    stages = [f.name for f in dataclasses.fields(recipe) if f.name.startswith("train_") and f.name != "train_prior"]
    assert all(getattr(recipe, name).optimisation.sample_every > 0 for name in stages)
