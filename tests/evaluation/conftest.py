"""The demo encoder of the smallest sizes, untrained."""

import pytest
import torch

from mav.evaluation.features import Networks
from mav.models.clip import ClipModel
from mav.recipes import ClipConfig
from mav.storage import Folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = Folder(str(tmp_path_factory.mktemp("clip")))
    torch.manual_seed(0)
    ClipModel(ClipConfig(embedding_dim=16, vision_width=4, text_width=16, text_heads=2, text_layers=1)).save(folder)
    return folder


@pytest.fixture
def networks(clip_folder):
    return Networks(("demo",), clip=clip_folder)
