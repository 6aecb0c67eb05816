"""What users' folders, lists and weights hold that nobody planned for: told in a sentence, or measured."""

import os

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_videos import frames, save
from test_suite import weights

from mav.errors import UserError
from mav.evaluation import card as cards
from mav.evaluation.corruptions import Corruption
from mav.evaluation.feature_store import Features, compute
from mav.evaluation.features import Networks
from mav.evaluation.networks.weights import load_network
from mav.evaluation.protocols import Preparation, load_protocol
from mav.evaluation.reading import Entry, videos_below
from mav.evaluation.score import Scorer
from mav.evaluation.sets import BenchmarkSet
from mav.evaluation.suite.listing import listed
from mav.evaluation.suite.run import run_suite
from mav.report.suite import cells
from mav.storage import Folder

PIXELS = Networks(("whole pixels",))


def pictures(folder, seed=0, count=5):
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames(seed, count)):
        cv2.imwrite(str(folder / f"{number}.png"), frame)


def measured(tmp_path, entries):
    return compute(entries, Folder(str(tmp_path / "videos")), Preparation(1), PIXELS, Folder(str(tmp_path / "kept")))


def test_a_folder_of_frames_may_be_named_as_a_file(tmp_path):
    for name in ("a boat-0.mp4", "a boat-1.gif", "a boat-2.npy"):
        pictures(tmp_path / "videos" / name)
    entries = listed(Folder(str(tmp_path / "videos")), None, 0)
    assert [entry.prompt for entry in entries] == ["a boat"] * 3
    assert measured(tmp_path, entries).failed == {}


@pytest.mark.parametrize("linked", [False, True])
def test_a_frame_that_changes_within_its_folder_is_measured_again(tmp_path, linked):
    pictures(tmp_path / "videos" / "x")
    frame = tmp_path / "videos" / "x" / "2.png"
    if linked:
        frame = frame.rename(tmp_path / "elsewhere.png")
        (tmp_path / "videos" / "x" / "2.png").symlink_to(frame)
    entries = [Entry(0, "x")]
    before = measured(tmp_path, entries)
    assert measured(tmp_path, entries).folder.url == before.folder.url
    data = frame.read_bytes()
    cv2.imwrite(str(frame), np.zeros((32, 32, 3), np.uint8))
    os.truncate(frame, 0)
    frame.write_bytes(data)  # as long as before
    os.utime(frame, ns=(1, 1))
    assert measured(tmp_path, entries).folder.url != before.folder.url


def test_a_name_that_is_no_text_is_told_and_a_link_to_itself_is_none(tmp_path):
    save(frames(0), tmp_path / "ok.npy", "npy")
    (tmp_path / "self.mp4").symlink_to("self.mp4")
    (tmp_path / "gone.mp4").symlink_to("nothing.mp4")
    assert videos_below(Folder(str(tmp_path))) == ["ok.npy"]
    with open(os.fsencode(tmp_path) + b"/caf\xe9.mp4", "wb"):
        pass
    with pytest.raises(UserError, match=r"'caf\\udce9\.mp4', whose name is no text in UTF-8: rename it"):
        videos_below(Folder(str(tmp_path)))


def test_a_video_that_may_not_be_read_is_told_and_not_kept_as_unreadable(tmp_path, monkeypatch):
    save(frames(0), tmp_path / "videos" / "x.npy", "npy")
    read = Folder.read_bytes

    def refused(self, name):
        if name == "x.npy":
            raise PermissionError(13, "Permission denied", name)
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read_bytes", refused)
        with pytest.raises(UserError, match=r"x\.npy may not be read: change its permissions"):
            measured(tmp_path, [Entry(0, "x.npy")])
    assert measured(tmp_path, [Entry(0, "x.npy")]).readable == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[]", "lists no video"),
        (b"{}", "lists no video"),
        (b"{", "is not a list of"),
        (b"null", "is not a list of"),
        (b'{"ok.npy": "a cat"}', "is not a list of"),
        (b"\xff\xfe\xff", "is not a list of"),
        (b"[" * 100_000, "is not a list of"),
    ],
)
def test_a_list_of_videos_that_is_none_is_told(tmp_path, content, problem):
    save(frames(0), tmp_path / "ok.npy", "npy")
    (tmp_path / "videos.json").write_bytes(content)
    with pytest.raises(UserError, match=f"{problem}.*correct or remove it"):
        listed(Folder(str(tmp_path)), None, 0)


def test_a_reference_without_videos_is_told_before_anything_is_measured(tmp_path):
    save(frames(0), tmp_path / "videos" / "ok.npy", "npy")
    (tmp_path / "empty").mkdir()
    for name in ("empty", "videos/ok.npy"):
        out, reference = Folder(str(tmp_path / "out")), Folder(str(tmp_path / name))
        with pytest.raises(UserError, match=f"{name} holds no video: give "):
            run_suite(Folder(str(tmp_path / "videos")), weights(tmp_path, ()), out, reference)
        assert not out.exists()


def test_folders_that_are_not_there_are_told(mav, tmp_path):
    save(frames(0), tmp_path / "ok.npy", "npy")
    asked = ("evaluate", "suite", "--videos", tmp_path, "--out", tmp_path / "out")
    code, _, told = mav(*asked, "--weights-dir", tmp_path / "typo")
    assert code == 2
    assert "typo is not there: name what is there with --weights-dir" in told


def test_a_listed_video_that_is_not_there_is_named(tmp_path):
    save(frames(0), tmp_path / "videos" / "ok.npy", "npy")
    videos = Folder(str(tmp_path / "videos"))
    videos.write_json("videos.json", [{"file": "ok.npy"}, {"file": "gone.mp4"}])
    result = run_suite(videos, weights(tmp_path, ()), Folder(str(tmp_path / "out")))
    assert result["unreadable"] == [{"file": "gone.mp4", "reason": "missing"}]


@pytest.mark.parametrize(("count", "least"), [(2, 3), (15, 16)])
def test_what_is_too_short_is_told_with_the_frames_that_are_needed(tmp_path, count, least):
    save(frames(0, count), tmp_path / "videos" / "short.npy", "npy")
    videos = Folder(str(tmp_path / "videos"))
    given = (videos, weights(tmp_path, ("i3d.safetensors",)), Folder(str(tmp_path / "out")))
    with pytest.raises(UserError, match=rf"short\.npy: too few frames\): give videos of {least} frames or more"):
        run_suite(*given, reference=videos if least == 16 else None)


def test_two_videos_that_move_do_not_say_that_all_do(tmp_path):
    for number in range(2):
        save(frames(number, 18, 64), tmp_path / "videos" / f"{number}.npy", "npy")
    result = run_suite(Folder(str(tmp_path / "videos")), weights(tmp_path, ()), Folder(str(tmp_path / "out")))
    dynamic = result["metrics"]["dynamic_degree"]
    assert dynamic["value"] in (0, 1)
    assert dynamic["high"] - dynamic["low"] == pytest.approx(0.6576, abs=1e-4), "as Wilson has it of two of two"


def test_one_video_has_no_interval(tmp_path):
    save(frames(0), tmp_path / "videos" / "x.npy", "npy")
    result = run_suite(Folder(str(tmp_path / "videos")), weights(tmp_path, ()), Folder(str(tmp_path / "out")))
    strobing = result["metrics"]["strobing"]
    assert strobing["value"] >= 0
    assert (strobing["low"], strobing["high"]) == (None, None)


def test_few_videos_have_an_interval_even_where_the_real_ones_are_many(monkeypatch):
    rng = np.random.default_rng(0)
    sides = [rng.standard_normal((n, 6)) for n in (20, 400)]

    class Held(Features):
        def stream(self, name):
            yield from ((np.arange(32), self.entries[i : i + 32]) for i in range(0, len(self.entries), 32))

        readable = property(lambda self: len(self.entries))

    ours, real = (Held(None, side, ("i3d",)) for side in sides)
    monkeypatch.setattr("mav.evaluation.score.IN_MEMORY", 400)
    found = Scorer(load_protocol("suite").only(["fvd"]), None, BenchmarkSet(()), ours, real).metrics()["fvd"]
    assert found["interval"] == "jackknife over 20 groups"
    assert found["low"] < found["value"] < found["high"]


HEAD = {"weight": torch.ones(1, 768), "bias": torch.zeros(1)}


@pytest.mark.parametrize(
    "held",
    [
        b"",
        b"nothing that is known",
        {"weight": HEAD["weight"]},
        HEAD | {"more": torch.zeros(1)},
        HEAD | {"weight": torch.ones(1, 512)},
        HEAD | {"weight": torch.full((1, 768), torch.nan)},
        HEAD | {"weight": torch.ones(1, 768, dtype=torch.int8)},
    ],
)
def test_a_suite_goes_on_without_a_network_whose_file_is_broken(tmp_path, monkeypatch, held):
    save(frames(0), tmp_path / "videos" / "x.npy", "npy")
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "aesthetic.safetensors"
    file.write_bytes(held) if isinstance(held, bytes) else save_file(held, file)
    networks = Networks((), str(tmp_path / "weights"))
    result = run_suite(Folder(str(tmp_path / "videos")), networks, Folder(str(tmp_path / "out")))
    assert set(result["metrics"]) == {"temporal_flickering", "motion_smoothness", "dynamic_degree", "strobing"}
    (needs,) = [need["needs"] for need in result["missing"] if "aesthetic.safetensors" in need["needs"]]
    assert needs.startswith(str(file))
    assert "get the file again" in needs
    save_file(HEAD, file)
    result = run_suite(Folder(str(tmp_path / "videos")), networks, Folder(str(tmp_path / "out")))
    assert not [need for need in result["missing"] if "aesthetic.safetensors" in need["needs"]]


@pytest.mark.parametrize("wrap", ["module.", "model.", "module.backbone."])
def test_what_wrappers_put_before_names_is_left_out(tmp_path, wrap):
    torch.save({"state_dict": {f"{wrap}{k}": v for k, v in HEAD.items()}, "model": "ViT"}, tmp_path / "x.pt")
    os.rename(tmp_path / "x.pt", tmp_path / "aesthetic.pth")
    from mav.evaluation.networks.weights import read_state

    assert read_state(tmp_path / "aesthetic.pth").keys() == HEAD.keys()


@pytest.mark.parametrize(
    ("network", "state"),
    [
        ("c3d", {"mean": torch.zeros(3)}),
        ("c3d", {"mean": torch.zeros(5, 2)}),
        ("musiq", {"head.weight": torch.zeros(2, 2)}),
    ],
)
def test_weights_of_other_forms_are_one_sentence(tmp_path, network, state):
    save_file(state, tmp_path / f"{network}.safetensors")
    with pytest.raises(UserError, match=rf"{network}\.safetensors.*: give "):
        load_network(network, str(tmp_path))


def test_videomae_without_a_part_of_its_biases_is_one_sentence(tmp_path, monkeypatch):
    from mav.evaluation.networks import weights as published

    monkeypatch.setitem(published.NETWORKS, "videomae", lambda: torch.nn.Linear(2, 2))
    for state in (
        {"blocks.0.attn.q_bias": torch.zeros(4)},
        {"blocks.0.attn.q_bias": torch.zeros(4), "blocks.0.attn.v_bias": torch.zeros(2, 2)},
    ):
        save_file(state, tmp_path / "videomae.safetensors")
        with pytest.raises(UserError, match=r"holds no weights of VideoMAE.*: give vit_g"):
            load_network("videomae", str(tmp_path))


@pytest.mark.parametrize("texts", [("a cat", "a cat"), ("a cat", "a dog")])
def test_a_card_of_equal_prompts_says_nothing_of_wrong_ones(tmp_path, monkeypatch, texts):
    for number in range(8):
        save(frames(number, 3), tmp_path / "clips" / f"{texts[number // 2 % 2]}-{number}.npy", "npy")
    monkeypatch.setattr(cards, "every", lambda seed: [Corruption("strobing", 0.4, seed)])
    clips, protocol = Folder(str(tmp_path / "clips")), load_protocol("suite").only(["strobing"])
    card = cards.make_card(protocol, Preparation(3), clips, listed(clips, None, 0), PIXELS, Folder(str(tmp_path / "o")))
    assert ("wrong prompt" in card["words"][0]) == ("wrong prompt" in card["corruptions"]) == ("a dog" in texts)


@pytest.mark.parametrize(("value", "shown"), [(-1e-9, "0.0000"), (-0.1, "-0.1000")])
def test_a_distance_of_nothing_has_no_sign(value, shown):
    assert cells("kvd", {"value": value, "low": value, "high": value})["value"] == shown
