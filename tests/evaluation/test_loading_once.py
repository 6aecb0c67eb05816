"""Weights without a published digest are looked at before the work, by loading them, and the work takes these."""

import torch
from safetensors.torch import save_file
from small_videos import frames, save

from flows.evaluation import features_on_ray
from mav.evaluation import features
from mav.evaluation.features import AESTHETIC_CLIP, Networks
from mav.evaluation.networks import raft
from mav.evaluation.reading import Entry
from mav.evaluation.suite.run import run_suite
from mav.storage import Folder


def test_a_network_is_loaded_once(tmp_path, monkeypatch):
    torch.manual_seed(0)
    (tmp_path / "weights").mkdir()
    save_file(raft.network().state_dict(), tmp_path / "weights" / "raft.safetensors")
    save(frames(0, 3), tmp_path / "videos" / "x.npy", "npy")
    loaded, load = [], features.load_network
    monkeypatch.setattr(features, "load_network", lambda name, *more: loaded.append(name) or load(name, *more))
    networks = Networks((), str(tmp_path / "weights"))
    result = run_suite(Folder(str(tmp_path / "videos")), networks, Folder(str(tmp_path / "out")))
    assert result["metrics"]["dynamic_degree_raft"]["value"] in (0, 1)
    assert loaded == ["raft"]


def test_what_was_loaded_is_let_go_where_others_do_the_work(tmp_path, monkeypatch):
    gone = []
    monkeypatch.setattr(features, "let_go", lambda: gone.append(1))
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("flows.engine.pool.results", lambda pool, tasks, lost: iter(range(len(tasks))))
    with features_on_ray("cpu") as run:
        assert (list(run(str, [])), gone) == ([], [])
        monkeypatch.setattr("ray.cluster_resources", dict)
        assert list(run(str, [(number, (Entry(number, ""),)) for number in range(4)])) == [0, 1, 2, 3]
    assert gone == [1]


def test_the_aesthetic_score_lacks_both_of_its_files_and_says_each_once(tmp_path):
    lacks = Networks((), str(tmp_path)).lacks("whole aesthetic")
    assert ["sa_0_4_vit_l_14_linear.pth" in why for why in lacks] == [True, False]
    assert lacks[1:] == Networks((), str(tmp_path)).lacks(AESTHETIC_CLIP)
    save_file({"weight": torch.ones(1, 768), "bias": torch.zeros(1)}, tmp_path / "aesthetic.safetensors")
    assert Networks((), str(tmp_path)).lacks("aesthetic") == lacks[1:]
