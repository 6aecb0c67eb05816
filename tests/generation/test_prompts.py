"""What the text encoder does not see of a prompt is told."""

import numpy as np
import pytest

from mav.generation.prompts import end_not_seen, prompt_notes
from mav.models.clip import ClipModel
from mav.recipes import ClipConfig
from mav.storage import Artifact, Folder


@pytest.fixture(scope="module")
def clip():
    return ClipModel(ClipConfig(text_context=8))


def test_the_end_beyond_the_context(clip):
    assert end_not_seen(clip, "a red circle") == ""
    assert end_not_seen(clip, "one two three four five six") == ""
    assert end_not_seen(clip, "one two three four five six seven eight") == "seven eight"
    long, longer = "one two three four five six seven", "one two three four five six eight"
    assert (clip.tokenize([long]) == clip.tokenize([longer])).all(), "the encoder cannot tell them apart"
    sentence, *more = prompt_notes(clip, [long, long], None)
    assert "context of 8 tokens" in sentence
    assert more == []


def test_words_that_no_caption_has(clip, tmp_path):
    folder = Folder(str(tmp_path))
    with folder.create("00000.tokens.npy") as file:
        np.save(file, clip.tokenize(["a red circle", "a blue square"]).numpy().astype(np.uint16))
    facts = {"stage": "image-embed", "version": 1, "fingerprint": "f" * 64, "recipe": "r", "config": {}, "inputs": {}}
    captions = Artifact.publish(folder, **facts)
    assert prompt_notes(clip, ["a blue circle", "A RED square"], captions) == []
    assert prompt_notes(clip, ["“circle”, red!"], captions) == [], "punctuation is no word"
    (sentence,) = prompt_notes(clip, ["a green circle \U0001f408"], captions)
    assert "green, \U0001f408" in sentence
