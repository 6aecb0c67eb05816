"""Freezing: a study is blind, balanced and frozen, and folders are paired by prompt."""

import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from small_studies import freeze_made_up, made_up

from mav.errors import UserError
from mav.evaluation.reading import whole_video
from mav.storage import Folder
from mav.study.study import freeze, freeze_study, pairs_of
from mav.study.votes import Study


def test_a_study_is_blind_balanced_and_frozen(clips, tmp_path):
    out, again = Folder(str(tmp_path / "a")), Folder(str(tmp_path / "b"))
    counts = freeze(made_up(clips, 40), out)
    assert counts == freeze(made_up(clips, 40), again)
    assert {n: out.sha256(n) for n in out.names()} == {n: again.sha256(n) for n in again.names()}
    assert freeze(made_up(clips, 40), Folder(str(tmp_path / "c")), seed=1)["study_sha256"] != counts["study_sha256"]
    study = Study.load(out)
    assert Counter(entry["kind"] for entry in study.key.values()) == {"pair": 40, "mirror": 40, "gold": 6}
    shown = out.read_bytes("study.json").decode().replace(study.rule, "")
    assert not re.search(r"ours|theirs|intact|ruined|gold|mirror", shown)
    lefts = sum(study.key[name]["left"] == "ours" for name in study.of_kind("pair"))
    assert 10 <= lefts <= 30
    for name in study.of_kind("mirror"):
        first, second = study.items[study.key[name]["of"]], study.items[name]
        assert (first["left"], first["right"]) == (second["right"], second["left"])
    out.write_bytes("study.json", out.read_bytes("study.json").replace(b"prompt 1", b"prompt X"))
    with pytest.raises(UserError, match="changed after it was frozen"):
        Study.load(out)


def test_ruined_copies_are_still_videos_and_worse(clips, tmp_path):
    folder, study = freeze_made_up(tmp_path, clips, 3)
    name = study.of_kind("gold")[0]
    side = {study.key[name][s]: whole_video(folder.read_bytes(study.items[name][s])) for s in ("left", "right")}
    assert side["intact"].shape == side["ruined"].shape
    detail = {kind: np.abs(np.diff(video.astype(int), axis=2)).mean() for kind, video in side.items()}
    assert detail["ruined"] < detail["intact"]


def test_the_pipelines_study_pairs_videos_with_their_twins(clips, tmp_path, small_recipe):
    source, out = Folder(str(tmp_path / "generate")), Folder(str(tmp_path / "study"))
    rows = [{"prompt": f"p{i}", "file": f"videos/{i}.mp4", "twin": f"time-off/{i}.mp4"} for i in range(3)]
    for i, row in enumerate(rows):
        source.write_bytes(row["file"], clips[i])
        source.write_bytes(row["twin"], clips[i + 3])
    source.write_json("videos.json", rows)
    assert freeze_study(small_recipe, {"generate": source}, out)["pairs"] == 3
    assert {entry["left"] for entry in Study.load(out).key.values()} <= {
        "time layers on",
        "time layers off",
        "intact",
        "ruined",
    }
    source.write_json("videos.json", [row | {"twin": None} for row in rows])
    empty = Folder(str(tmp_path / "empty"))
    assert freeze_study(small_recipe, {"generate": source}, empty)["pairs"] == 0
    assert Study.load(empty).items == {}


def test_folders_are_paired_by_prompt(clips, tmp_path):
    ours, film, other = (Folder(str(tmp_path / name)) for name in ("ours", "film", "other"))
    for i in range(3):
        ours.write_bytes(f"{i:05d}.mp4", clips[i])
    film.write_json("videos.json", [{"file": "x/b.mp4", "prompt": "two"}, {"file": "a.mp4", "prompt": "zero"}])
    film.write_bytes("x/b.mp4", clips[4])
    film.write_bytes("a.mp4", clips[5])
    prompts = [("zero", "a"), ("one", "b"), ("two", "c")]
    pairs = pairs_of({"ours": ours, "film": film}, prompts)
    assert [(p.prompt, p.category, p.systems) for p in pairs] == [
        ("zero", "a", ("ours", "film")),
        ("two", "c", ("ours", "film")),
    ]
    other.write_bytes("00001.mp4", clips[3])
    with pytest.raises(UserError, match="film and other have no video of the same prompt"):
        pairs_of({"film": film, "other": other}, prompts)
    other.write_json("videos.json", [{"file": "../../etc/passwd", "prompt": "one"}])
    with pytest.raises(UserError, match="outside of its folder"):
        pairs_of({"ours": ours, "other": other}, prompts)
    named = Folder(str(tmp_path / "named"))
    named.write_bytes("cat.mp4", clips[0])
    with pytest.raises(UserError, match="Nothing says which prompt"):
        pairs_of({"ours": ours, "named": named}, prompts)
    ours.write_bytes("00000.mp4", b"no video")
    with pytest.raises(UserError, match=r"00000\.mp4 cannot be shown"):
        pairs_of({"ours": ours, "film": film}, prompts)


def test_a_study_shows_every_form_of_video(tmp_path):
    """Tensors, folders of frames, GIFs and mp4s of the same frames: what raters see is what is evaluated."""
    frames = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (0, 60, 120, 180, 240)])
    pictures = [Image.fromarray(frame) for frame in frames]
    for name in ("tensor", "frames", "gif"):
        (tmp_path / name / "0").mkdir(parents=True)
    np.save(tmp_path / "tensor/0.npy", frames.transpose(0, 3, 1, 2))
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"frames/0/frame{number + 8}.png")
    pictures[0].save(tmp_path / "gif/0.gif", save_all=True, append_images=pictures[1:], duration=125)
    systems = {name: Folder(str(tmp_path / name)) for name in ("tensor", "frames", "gif")}
    for pair in pairs_of(systems, [("grey", "")]):
        for system, video in zip(pair.systems, pair.videos, strict=True):
            assert np.abs(whole_video(video).astype(int) - frames).max() <= 3, system
    np.save(tmp_path / "tensor/0.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"0\.npy cannot be shown \(not of the shape"):
        pairs_of(systems, [("grey", "")])
