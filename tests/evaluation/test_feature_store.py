"""Stored features: what lost bytes is computed again."""

import os

import numpy as np
import pytest
from small_videos import FRAMES, write

from mav.evaluation.feature_store import compute
from mav.evaluation.protocols import Preparation
from mav.evaluation.reading import find_videos
from mav.storage import Folder


@pytest.mark.parametrize("left", [0, 0.5])
def test_damaged_features_are_computed_again(tmp_path, networks, left):
    folder = Folder(str(tmp_path / "real"))
    write(folder, range(8))
    entries, keep = find_videos(folder, (), 8)[0], Folder(str(tmp_path / "kept"))
    whole = compute(entries, folder, Preparation(FRAMES), networks, keep).load("demo")[1]
    for path in (tmp_path / "kept").rglob("*.npz"):
        os.truncate(path, int(left * path.stat().st_size))
    assert np.array_equal(compute(entries, folder, Preparation(FRAMES), networks, keep).load("demo")[1], whole)
