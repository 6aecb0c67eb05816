"""The benchmarks and the study on a small demo world, with a cascade that draws what the prompt says."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest
import torch
from small_videos import keep_all

from mav.data.shards import TarWriter
from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.evaluation import benchmarks, interpolation
from mav.evaluation.features import DEMO_NOTE, WHOLE
from mav.evaluation.networks.weights import PUBLISHED
from mav.evaluation.protocols import load_protocol, protocol_names, published
from mav.evaluation.sets import UcfClass, allot, read_msrvtt, read_ucf101
from mav.generation import between
from mav.models.clip import ClipModel
from mav.recipes import CascadeSizes, ClipConfig, Evaluate, Generate, World
from mav.recipes.reader import load_recipe
from mav.storage import Folder
from mav.world.drawing import PALETTE, SHAPES, Scene, draw_clip, random_scene
from mav.world.verdict import evaluate_oracle
from mav.world.world import draw_world

FRAMES, SKIP = 4, 3
STAGES = ("demo-world", "clip", "generate", "video-shards", "video-select")
SIZES = CascadeSizes(frames=FRAMES, frame_skip=SKIP, base_size=16, low_size=24, high_size=32)


def make_recipe(**evaluate):
    recipe = dataclasses.replace(load_recipe("tiny", ("generate.batch_size=10",)), cascade=SIZES)
    world = World(images=16, clips=3, size=32, clip_frames=48, evaluation_clips=24)
    return dataclasses.replace(recipe, world=world, evaluate=Evaluate(bootstrap=20, study_pairs=9, **evaluate))


class DrawingCascade:
    """A perfect generator: reads colour and shape from the prompt and draws them."""

    def sample(self, prompts, seeds, generate):
        return np.stack(
            [
                draw_clip(scene_of(p, s), 32, (FRAMES - 1) * SKIP + 1, generate.fps * SKIP)
                for p, s in zip(prompts, seeds, strict=True)
            ]
        )


def scene_of(prompt, seed):
    random = random_scene(np.random.default_rng(seed), tuple(PALETTE), SHAPES)
    colour, shape = (next(word for word in words if word in prompt) for words in (PALETTE, SHAPES))
    return Scene(colour, shape, random.centre, random.radius, random.velocity, random.ground, random.ground_seed)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    folders = {name: Folder(str(root / name)) for name in STAGES}
    draw_world(make_recipe().world, 0, folders["demo-world"])
    torch.manual_seed(0)
    clip = ClipModel(ClipConfig(embedding_dim=16, vision_width=4, text_width=16, text_heads=2, text_layers=1))
    clip.save(folders["clip"])
    # Generated videos, each with a twin whose frames jump about, and shards of training clips.
    rows = folders["demo-world"].read_json("prompts.json")[:8]
    for index, row in enumerate(rows):
        video = DrawingCascade().sample([row["prompt"]], [index], Generate())[0]
        twin = np.stack(
            [DrawingCascade().sample([row["prompt"]], [100 * index + i], Generate())[0][0] for i in range(len(video))]
        )
        row |= {"index": index, "file": f"videos/{index:05d}.mp4", "twin": f"time-off/{index:05d}.mp4"}
        folders["generate"].write_bytes(row["file"], encode_mp4(video, 24))
        folders["generate"].write_bytes(row["twin"], encode_mp4(twin, 24))
        row["rates"] = {rate: f"rates/{rate}/{index:05d}.mp4" for rate in ("4", "16")}
        for rate, name in row["rates"].items():
            scene = scene_of(row["prompt"], index)
            folders["generate"].write_bytes(name, encode_mp4(draw_clip(scene, 32, FRAMES, float(rate)), float(rate)))
    folders["generate"].write_json("videos.json", rows)
    with folders["video-shards"].create("00000.tar") as file, TarWriter(file) as tar:
        for i in range(6):
            scene = random_scene(np.random.default_rng(i), tuple(PALETTE), SHAPES)
            tar.add(f"{i}", {"mp4": encode_mp4(draw_clip(scene, 32, 24, 24), 24), "json": b'{"fps":24,"frames":24}'})
    keep_all(folders["video-select"], 6, 24)
    return folders


def test_ucf101_carries_protocol_interval_and_encoder(inputs, tmp_path):
    out = Folder(str(tmp_path))
    seen = []
    metrics = benchmarks.evaluate_text_to_video(
        "ucf101", make_recipe(), inputs, out, seen.append, cascade=DrawingCascade()
    )
    result = out.read_json("result.json")
    assert metrics["protocol"] == "ucf101-demo v2"
    assert metrics["samples"] == result["samples"] == 16 == len([n for n in out.names() if n.endswith(".mp4")])
    for name in ("fvd", "is"):
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    assert result["metrics"]["fvd"]["real_halves"] > 0
    assert 1 <= metrics["is"] <= 16
    assert result["features"]["note"] == DEMO_NOTE
    assert result["comparable"] is False
    assert re.fullmatch("[0-9a-f]{64}", result["features"]["sha256"])
    assert result["real"] == 24
    assert seen[-1] == {"stage": "evaluate-ucf101", "samples": 16, "total": 16}


def test_what_cannot_be_read_is_counted(inputs, tmp_path):
    broken = Folder(str(tmp_path / "ucf101"))
    for name in inputs["demo-world"].child("ucf101").names():
        broken.write_bytes(name, inputs["demo-world"].child("ucf101").read_bytes(name))
    clips = [name for name in broken.names() if name.endswith(".mp4")]
    broken.write_bytes(clips[0], b"not a video")
    broken.remove(clips[1])
    out = Folder(str(tmp_path / "out"))
    benchmarks.evaluate_text_to_video("ucf101", make_recipe(ucf101=broken.url), inputs, out, cascade=DrawingCascade())
    assert out.read_json("result.json")["real_failed"] == {"missing": 1, "unreadable": 1}
    assert out.read_json("result.json")["real"] == 22


def test_msrvtt_says_where_a_perfect_and_a_random_text_would_stand(inputs, tmp_path):
    out = Folder(str(tmp_path))
    metrics = benchmarks.evaluate_text_to_video("msrvtt", make_recipe(), inputs, out, cascade=DrawingCascade())
    result = out.read_json("result.json")
    assert metrics["fid_low"] <= metrics["fid"] <= metrics["fid_high"]
    assert -1 <= metrics["clipsim"] <= 1
    assert {"real", "shuffled"} <= set(result["metrics"]["clipsim"])
    again = Folder(str(tmp_path / "again"))
    assert (
        benchmarks.evaluate_text_to_video("msrvtt", make_recipe(), inputs, again, cascade=DrawingCascade()) == metrics
    )
    assert again.read_bytes("result.json") == out.read_bytes("result.json")


def test_interpolation_that_blends_gains_nothing_over_blending(inputs, tmp_path, monkeypatch):
    from mav.generation import cascade as generation

    def fill(self, clip, embedding):
        given = ((clip[0].permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        made = torch.from_numpy(between.blend(given, SKIP)).permute(0, 3, 1, 2)
        return made[None].float() / 127.5 - 1

    def fill_window(self, clip, known, embedding, fps, start, purpose):
        assert purpose == "animation"
        return clip

    monkeypatch.setattr(generation.CascadeBatch, "fill", fill)
    monkeypatch.setattr(generation.CascadeBatch, "fill_window", fill_window)
    clip = ClipModel.load(inputs["clip"])
    network = generation.Cascade(make_recipe().cascade, clip, None, None, None, None, None)
    out = Folder(str(tmp_path))
    metrics = interpolation.evaluate_interpolation(make_recipe(), inputs, out, cascade=network)
    assert metrics["samples"] == 16
    assert 15 < metrics["psnr_blend"] < 30
    assert metrics["psnr_flow"] > metrics["psnr_blend"]
    assert metrics["psnr_gain"] == pytest.approx(0, abs=0.5)
    assert metrics["ssim"] == pytest.approx(metrics["ssim_blend"], abs=0.02)
    assert out.read_json("result.json")["features"] is None
    names = Counter(name.partition("/")[0] for name in out.names())
    assert names == {"videos": 16, "truth": 17, "given": 16, "photos": 4, "result.json": 1}
    # Another method's folder, here the truth itself and one clip too few, is measured alike.
    theirs = Folder(str(tmp_path / "theirs"))
    for number in range(15):
        theirs.write_bytes(f"{number:05d}.mp4", out.read_bytes(f"truth/{number:05d}.mp4"))
    theirs.write_bytes("00003.mp4", out.read_bytes("given/00003.mp4"))
    result = interpolation.measure_interpolation(
        load_protocol("interpolation-demo"), theirs, out.child("truth"), SKIP, Folder(str(tmp_path / "result"))
    )
    assert result["metrics"]["psnr"]["value"] == 99
    assert result["failed"] == {"another number of frames": 1, "missing": 1}
    assert (result["samples"], result["readable"]) == (16, 14)
    with pytest.raises(UserError, match="has its match"):
        interpolation.measure_interpolation(
            load_protocol("interpolation-paper"), out.child("photos"), Folder(str(tmp_path / "no")), 4, theirs
        )


def test_only_wide_gaps_are_compared(inputs):
    """In a gap that counts, the object moves at least a quarter of its width, as the world's truth has it."""
    truth = inputs["demo-world"].read_json("ucf101/truth.json")
    scene = next(iter(truth.values()))
    scene["centres"] = [[0.3, 0.5]] * 4 + [[0.3 + 0.26 * 2 * scene["radius"], 0.5]] * 4
    assert between.wide_gaps(scene, [0, 2, 4, 6], 2) == [0]
    assert between.wide_gaps(scene, [0, 1, 2, 3], 1) == []
    assert between.wide_gaps(scene, [0, 4], 1) == [0]
    # The frames of the other gaps have no part in the figures.
    clip = np.zeros((5, 16, 16, 3), np.uint8)
    clip[1] = 255
    middles = interpolation.Middles(2)
    middles.add(np.zeros_like(clip), clip, [1])
    middles.add(np.zeros_like(clip), clip, [0, 1])
    assert middles.ours[0][0] == 99 > middles.ours[1][0]


def test_blend():
    given = np.array([0, 30, 90], np.uint8).reshape(3, 1, 1, 1)
    assert between.blend(given, 3).ravel().tolist() == [0, 10, 20, 30, 50, 70, 90]


def test_flow_moves_an_object_where_blending_shows_two():
    scene = Scene("red", "circle", (0.35, 0.5), 0.25, (0.5, 0.0), "smooth", 3)
    clip = draw_clip(scene, 32, 3, 4.0)
    moved = between.warp(clip[::2], 2)
    assert np.array_equal(moved[::2], clip[::2])
    errors = [np.abs(made[1].astype(int) - clip[1]).mean() for made in (moved, between.blend(clip[::2], 2))]
    assert errors[0] < 0.6 * errors[1]


def test_oracle_stage_judges_the_generated_videos(inputs, tmp_path):
    out = Folder(str(tmp_path))
    metrics = evaluate_oracle(make_recipe(), inputs, out)
    assert metrics["colour"] == 1
    assert metrics["shape"] == 1
    assert metrics["count"] == 8
    assert metrics["motion_ratio_time_off"] > metrics["speed_ratio"]
    assert 0.6 < metrics["frame_rate_obeyed"] < 1.4
    assert out.read_json("result.json")["videos"][0] == {
        "file": "videos/00000.mp4", "prompt": inputs["generate"].read_json("videos.json")[0]["prompt"],
        "colour": True, "shape": True, "frames_without_object": 0,
    }  # fmt: skip


def test_published_features_say_what_is_missing(inputs, tmp_path):
    with pytest.raises(UserError, match=r"I3D.*--weights-dir.*nothing is downloaded"):
        benchmarks.evaluate_text_to_video(
            "ucf101", make_recipe(features="published"), inputs, Folder(str(tmp_path)), cascade=DrawingCascade()
        )


def test_no_set_is_one_sentence(inputs, tmp_path):
    with pytest.raises(UserError, match=r"`evaluate\.msrvtt`"):
        benchmarks.evaluate_text_to_video(
            "msrvtt", make_recipe(), {"clip": inputs["clip"]}, Folder(str(tmp_path)), cascade=DrawingCascade()
        )


# ----------------------------------------------------------------------------------------------------- sets, protocols


def test_readers_take_the_layouts_as_distributed(inputs):
    classes = read_ucf101(inputs["demo-world"].child("ucf101"))
    assert len(classes) == 24
    assert classes[0].sentence == "a red circle"
    assert all(c.name and not c.name.endswith("\r") for c in classes)
    clips, notes = read_msrvtt(inputs["demo-world"].child("msrvtt"), load_protocol("msrvtt-paper"))
    assert notes == ["captions.json holds 48 captions of 24 clips, 48 of the protocol's 59,794 prompts"]
    assert len(clips) == 24
    assert all(len(clip.captions) == 2 for clip in clips)


def test_the_handstand_is_spelt_both_ways(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write_bytes("classInd.txt", b"1 HandstandPushups\r\n")
    folder.write_bytes("class_prompts.txt", b"a person doing handstand push-ups\n")
    folder.write_bytes("trainlist01.txt", b"HandStandPushups/v_HandStandPushups_g08_c01.avi 1\r\n")
    assert read_ucf101(folder)[0].clips == ("HandStandPushups/v_HandStandPushups_g08_c01.avi",)
    folder.write_bytes("class_prompts.txt", b"one\ntwo\n")
    with pytest.raises(UserError, match="2 sentences for 1 classes"):
        read_ucf101(folder)


def test_samples_follow_the_class_distribution():
    classes = [UcfClass(name, name, tuple("c" * n)) for name, n in (("a", 6), ("b", 3), ("c", 1))]
    assert Counter(allot(classes, 10)) == {0: 6, 1: 3, 2: 1}
    assert Counter(allot(classes, 5)) == {0: 3, 1: 2}
    assert len(allot(classes, 7)) == 7


@pytest.mark.parametrize("name", protocol_names())
def test_protocols_are_whole(name):
    protocol = load_protocol(name)
    assert protocol.name == name
    assert protocol.samples > 0 or protocol.benchmark in ("prompts", "suite")
    assert protocol.about
    assert protocol.features
    assert {name.removeprefix(WHOLE) for name in protocol.networks} <= {"demo", "pixels", *PUBLISHED}
    assert protocol.preparation(make_recipe()).frames > 0


def test_published_rows_carry_a_protocol():
    assert {"ucf101", "msrvtt", "human", "interpolation"} <= set(published())
    rows = [row for rows in published().values() for row in rows]
    assert all(row["system"] and row["protocol"] for row in rows)
    ours = next(row for row in published()["ucf101"] if row["system"] == "Make-A-Video")
    assert (ours["is"], ours["fvd"]) == (33.0, 367.23)
    assert load_protocol("ucf101-paper").samples == 10_000
    assert load_protocol("msrvtt-paper").samples == 59_794
    with pytest.raises(UserError, match="ucf101-paper"):
        load_protocol("nonsense")
