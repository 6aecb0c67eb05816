"""A folder of any system's videos is measured: failures are counted, runs resume, features are cached."""

import dataclasses
import json
import os

import numpy as np
import pytest
from small_videos import FRAMES, frames, save, write

from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.evaluation import feature_store
from mav.evaluation.feature_store import compute, in_process
from mav.evaluation.features import Networks
from mav.evaluation.measure import Settings, measure
from mav.evaluation.protocols import Preparation, load_protocol
from mav.evaluation.protocols.titles import digits_of
from mav.evaluation.reading import find_videos
from mav.evaluation.sets import BenchmarkSet
from mav.storage import Folder
from mav.world.drawing import SHAPES

PREPARATION = Preparation(FRAMES)
PROMPTS = tuple(f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in SHAPES)


def evaluate(
    tmp_path,
    networks,
    videos,
    real=None,
    samples=6,
    run=in_process,
    out="out",
    features=None,
    prepared=PREPARATION,
    endless=False,
):
    listed = tuple(sorted(name for name in real.names())) if real else ()
    asked = BenchmarkSet(PROMPTS, listed, PROMPTS[: len(listed)], PROMPTS)
    protocol = load_protocol("msrvtt-demo")
    protocol = dataclasses.replace(protocol, features=features or protocol.features)
    settings = Settings(prepared, samples, draws=20, endless=endless)
    into, cache = Folder(str(tmp_path / out)), Folder(str(tmp_path / "cache"))
    return measure(protocol, settings, videos, asked, real, networks, into, cache, run=run)


def test_too_few_videos_to_extrapolate_keep_their_distance(tmp_path, networks, folders):
    result = evaluate(tmp_path, networks, *folders, endless=True)
    assert result["metrics"]["fid"]["value"] > 0
    assert result["metrics"]["fid"]["endless"] is None
    assert "nothing is extrapolated, which takes 16 readable videos" in result["notes"]


@pytest.fixture
def folders(tmp_path):
    ours, real = Folder(str(tmp_path / "ours")), Folder(str(tmp_path / "real"))
    write(ours, range(6))
    write(real, range(8), 100)  # scenes of their own
    return ours, real


def test_missing_and_unreadable_videos_stay_in_the_denominator(tmp_path, networks, folders):
    ours, real = folders
    whole = evaluate(tmp_path, networks, ours, real)
    assert whole["failed"] == {}
    ours.remove("00001.mp4")
    ours.write_bytes("00003.mp4", b"not a video")
    (tmp_path / "ours" / "00004.mp4").unlink()
    save(frames(4)[:1], tmp_path / "ours" / "00004.npy", "npy")  # one frame
    result = evaluate(tmp_path, networks, ours, real)
    assert result["failed"] == {"missing": 1, "too few frames": 1, "unreadable": 1}
    assert (result["samples"], result["readable"]) == (6, 3)
    similarity = result["metrics"]["clipsim"]
    assert similarity["value"] == pytest.approx(similarity["of_readable"] / 2)
    assert similarity["low"] <= similarity["value"] <= similarity["high"]
    assert result["metrics"]["fid"]["value"] > 0
    assert whole["metrics"]["clipsim"]["value"] > similarity["value"] or whole["metrics"]["clipsim"]["value"] < 0
    assert any("6 videos instead of the protocol's 16" in note for note in result["notes"])
    assert json.loads(Folder(str(tmp_path / "out")).read_bytes("result.json")) == json.loads(json.dumps(result))


def test_neighbours_take_one_row_a_clip_and_have_intervals(tmp_path, networks, folders):
    from mav.evaluation.features import describe_clips
    from mav.evaluation.score import NEIGHBOURS

    ours, real = folders
    result = evaluate(tmp_path, networks, ours, real)
    stored = [
        compute(find_videos(folder, (), n)[0], folder, PREPARATION, networks, Folder(str(tmp_path / "again")))
        for folder, n in ((real, 8), (ours, 6))
    ]
    rows = [describe_clips(features.load("demo")[1]) for features in stored]
    assert [len(side) for side in rows] == [8, 6]
    for name, (formula, side) in NEIGHBOURS.items():
        metric = result["metrics"][name]
        assert metric["value"] == formula(*rows).mean(), name
        assert metric["low"] <= metric["value"] <= metric["high"]
        count = {"videos": 6, "real clips": 8}[side]
        assert metric["interval"] == f"{'Student' if name == 'density' else 'Wilson'}'s, of {count} {side}"


def test_what_cannot_be_measured_says_so(tmp_path, networks, folders):
    real = folders[1]
    lone = Folder(str(tmp_path / "lone"))
    write(lone, [0])
    result = evaluate(tmp_path, networks, lone, real, samples=1)
    assert result["metrics"]["fid"]["value"] is None
    assert "at least 2 videos on each side, not 1 and 8" in result["metrics"]["fid"]["reason"]
    assert "at least 4 videos" in result["metrics"]["recall"]["reason"]
    assert result["metrics"]["clipsim"]["value"] is not None
    named = Folder(str(tmp_path / "named"))
    named.write_bytes("cat.mp4", encode_mp4(frames(0), 8))
    with pytest.raises(UserError, match=r"Nothing can be measured.*at least 2 videos.*3 missing"):
        evaluate(tmp_path, networks, named, real, samples=4)
    with pytest.raises(UserError, match="--recipe"):
        Networks(("demo",))


def test_features_that_are_not_finite_are_one_sentence(tmp_path, networks, folders, monkeypatch):
    from mav.evaluation import features

    monkeypatch.setattr(
        features, "_encoder", lambda networks, name: lambda videos: [np.full((FRAMES, 16), np.nan) for _ in videos]
    )
    with pytest.raises(UserError, match="features of demo are not finite"):
        evaluate(tmp_path, networks, folders[0])


def test_a_killed_evaluation_goes_on_and_ends_the_same(tmp_path, networks, folders, monkeypatch):
    monkeypatch.setattr(feature_store, "CHUNK", 2)
    ours, real = folders
    expected = evaluate(tmp_path, networks, ours, real, out="whole")["metrics"]
    done = []

    def two_then_dead(work, chunks):
        for chunk in chunks[:2]:
            done.append(work(chunk))
            yield done[-1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, networks, ours, real, run=two_then_dead)
    seen = []

    def counted(work, chunks):
        for chunk in chunks:
            seen.append(chunk[0])
            yield work(chunk)

    assert evaluate(tmp_path, networks, ours, real, run=counted)["metrics"] == expected
    assert done == [0, 1]
    assert seen == [2]  # two of our three chunks were there; the real ones were in the cache


def test_real_features_are_kept_by_what_shapes_them(tmp_path, networks, folders):
    ours, real = folders
    asked = []

    def counted(work, chunks):
        asked.append((work.source.url == real.url, len(chunks)))
        return in_process(work, chunks)

    def real_chunks(**more):
        asked.clear()
        evaluate(tmp_path, networks, ours, real, run=counted, **more)
        return sum(count for is_real, count in asked if is_real)

    assert real_chunks() == 1
    assert real_chunks(out="elsewhere") == 0
    assert real_chunks(prepared=Preparation(FRAMES, size=16, resize="area")) == 1
    assert real_chunks() == 0
    real.write_bytes("00003.mp4", encode_mp4(frames(77), 8))
    assert real_chunks() == 1
    provenance = [Folder(str(path)).read_json("provenance.json") for path in (tmp_path / "cache").iterdir()]
    assert len(provenance) == 3
    assert all(p["networks"]["demo"] == networks.describe()["demo"]["sha256"] and p["videos"] == 8 for p in provenance)


def test_long_features_take_the_jackknife(tmp_path, networks, folders, monkeypatch):
    from mav.evaluation import score

    ours, real = folders
    usual = evaluate(tmp_path, networks, ours, real)["metrics"]["fid"]
    monkeypatch.setattr(score, "LONGEST", 8)
    monkeypatch.setattr(feature_store, "CHUNK", 2)
    long = evaluate(tmp_path, networks, ours, real)["metrics"]["fid"]
    assert long["value"] == pytest.approx(usual["value"], abs=2e-7)  # an untrained network's features hardly differ
    assert "jackknife" in long["interval"]
    assert long["low"] <= long["value"] <= long["high"]


def test_kernel_distances_take_rows_evenly_when_there_are_many(tmp_path, networks, folders, monkeypatch):
    from mav.evaluation import score
    from mav.evaluation.metrics import kernel_distance

    monkeypatch.setattr(feature_store, "CHUNK", 2)
    ours, real = folders
    found = {}
    for most in (20_000, 8):
        monkeypatch.setattr(score, "KERNEL_ROWS", most)
        found[most] = evaluate(tmp_path, networks, ours, real, features={"kid": "demo", "kvd": "demo"})["metrics"]
    features = [
        compute(find_videos(folder, (), n)[0], folder, PREPARATION, networks, Folder(str(tmp_path / "again"))).load(
            "demo"
        )[1]
        for folder, n in ((ours, 6), (Folder(real.url), 108))
    ]
    rows = [array.reshape(-1, 16) for array in features]
    assert found[20_000]["kid"]["value"] == pytest.approx(kernel_distance(*rows)[0], abs=1e-9)
    few = [rows[0][::3], rows[1][::4]]  # 24 and 32 rows: at most 8 of each
    assert found[8]["kid"]["value"] == pytest.approx(kernel_distance(*few)[0], abs=1e-9)
    assert found[8]["kvd"]["low"] <= found[8]["kvd"]["value"] <= found[8]["kvd"]["high"]


@pytest.mark.slow
def test_ray_actors_make_the_same_features(tmp_path, networks, monkeypatch, ray_session):
    from flows.evaluation import features_on_ray

    monkeypatch.setattr(feature_store, "CHUNK", 1)
    ours = Folder(str(tmp_path / "ours"))
    write(ours, range(6))
    entries, _ = find_videos(ours, PROMPTS, 6)
    here = compute(entries, ours, PREPARATION, networks, Folder(str(tmp_path / "here")))
    with features_on_ray("cpu") as run:
        there = compute(entries, ours, PREPARATION, networks, Folder(str(tmp_path / "there")), run=run)
    assert len(there.load("demo")[0]) == 6
    assert np.allclose(here.load("demo")[1], there.load("demo")[1], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense", "--videos", "."], "ucf101, msrvtt"),
        (["ucf101", "--videos", "gone"], "gone is not there"),
        (["ucf101", "--videos", ".", "--protocol", "msrvtt-paper"], "protocol of msrvtt"),
        (["ucf101", "--videos", ".", "--protocol", "../x"], "no protocol"),
        (["drawbench", "--videos", "."], "--prompts"),
        (["msrvtt", "--videos", "."], "--real"),
        (["interpolation", "--videos", "."], "--real"),
        (["ucf101", "--videos", ".", "--metric", "lpips"], "no metric 'lpips'"),
        (["suite", "--videos", ".", "--metric", "fvd"], "suite takes no --metric: leave it away"),
        (["card", "--videos", ".", "--endless"], "card takes no --endless: leave it away"),
        (["ucf101", "--videos", ".", "--ratings", "."], "ucf101 takes no --ratings: leave it away, or ask for suite"),
    ],
)
def test_a_wrong_command_is_one_sentence(mav, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = mav("evaluate", *arguments)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_the_table_carries_protocol_count_interval_and_weights(mav, monkeypatch, tmp_path, clip_folder):
    from flows.cli import evaluate as cli_evaluate

    write(Folder(str(tmp_path / "videos")), range(5))
    write(Folder(str(tmp_path / "real" / "videos")), range(5), 50)
    sentences = [{"video_id": f"{i:05d}", "caption": PROMPTS[i]} for i in range(6)]
    captions = {"videos": [{"video_id": f"{i:05d}", "split": "test"} for i in range(6)], "sentences": sentences}
    Folder(str(tmp_path / "real")).write_json("captions.json", captions)
    monkeypatch.setattr(cli_evaluate, "_clip", lambda recipe, runs: clip_folder)
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "msrvtt", "--videos", "videos", "--real", "real", "--protocol", "msrvtt-demo"]
    arguments += ["--recipe", "tiny", "--samples", "6"]
    code, out, _ = mav(*arguments)
    assert code == 0
    for words in ("these videos", "[", "Coverage", "msrvtt-demo v2", "Make-A-Video", "msrvtt-paper", "0.3049",
                  "5 of 6 readable (1 missing)", "sha256", "not with the published"):  # fmt: skip
        assert words in out, words
    code, out, _ = mav(*arguments, "--json")
    assert json.loads(out)["metrics"]["fid"]["low"] <= json.loads(out)["metrics"]["fid"]["value"]
    assert os.path.exists(tmp_path / "evaluation" / "result.json")


def test_a_published_value_keeps_its_digits_and_small_ones_have_three():
    assert [digits_of("is", 33.0, published=True), digits_of("fvd", 260.125, published=True)] == [2, 3]
    assert [digits_of("fid", -0.17), digits_of("fid", 17.0), digits_of("clipsim", 0.3)] == [3, 2, 4]
