import dataclasses
import json
import urllib.error
import urllib.request

import numpy as np
import pyarrow.parquet as pq
import pytest

from mav.data.videos.video_io import read_frames
from mav.errors import UserError
from mav.recipes import World
from mav.recipes.reader import load_recipe
from mav.storage import Folder
from mav.world.drawing import PALETTE, draw, random_scene
from mav.world.pictures import COPYING, FAULTS
from mav.world.planted import KINDS
from mav.world.server import WorldServer
from mav.world.world import draw_world

SMALL = World(
    images=90, clips=6, clip_frames=12, evaluation_clips=4, colours=("red", "blue"), shapes=("circle", "cross"), port=0
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = Folder(str(tmp_path_factory.mktemp("world")))
    return folder, draw_world(SMALL, 3, folder)


def test_same_seed_same_bytes_other_seed_other_bytes(world, tmp_path):
    folder, counts = world
    again, other = Folder(str(tmp_path / "again")), Folder(str(tmp_path / "other"))
    assert draw_world(SMALL, 3, again) == counts
    draw_world(SMALL, 4, other)
    assert folder.names() == again.names()
    assert [folder.sha256(n) for n in folder.names()] == [again.sha256(n) for n in again.names()]
    assert folder.sha256("truth.json") != other.sha256("truth.json")


def test_tables_hold_every_kind_of_row(world):
    folder, counts = world
    rows = []
    for name, columns in (("joined", ("URL", "TEXT")), ("relaion", ("url", "caption")), ("reposts", ("url",))):
        table = pq.read_table(folder.path(f"laion/{name}.parquet"))
        assert set(columns) <= set(table.column_names)
        rows += table.rename_columns([c.lower().replace("text", "caption") for c in table.column_names]).to_pylist()
    assert len(rows) == counts["image_rows"] > counts["images"]
    assert len({(r["url"], r["caption"]) for r in rows}) == counts["images"]
    scores = [r["punsafe"] for r in rows]
    assert any(s is None for s in scores)
    assert any(s is not None and s >= 0.5 for s in scores)
    assert any(r["caption"] is None for r in rows)
    assert any(r["pwatermark"] == 0.5 for r in rows)
    kept = [r for r in rows if None not in (r["punsafe"], r["pwatermark"]) and max(r["punsafe"], r["pwatermark"]) < 0.5]
    assert any(r["punsafe"] > 0.2 for r in kept), "the surviving rows must show how the sign looks"
    faults = folder.read_json("site/faults.json")
    assert {f["kind"] for f in faults.values()} == {f["kind"] for f in FAULTS}


def test_a_copy_is_known_by_its_original_and_nothing_is_wrong_with_either(world):
    truth = world[0].read_json("truth.json")["images"]
    copies = {name: facts for name, facts in truth.items() if "copy_of" in facts}
    assert {facts["copied"] for facts in copies.values()} == {*COPYING}
    assert sorted(truth)[-len(copies) :] == sorted(copies), "they come last, so that the others are as without them"
    rows = pq.read_table(world[0].path("laion/reposts.parquet")).to_pylist()
    assert {row["url"].split("/", 3)[3] for row in rows} == {*copies}
    assert all(row["caption"] for row in rows)
    wrong = {name for name, facts in truth.items() if facts["unsafe"] or facts["watermark"]}
    wrong |= {*world[0].read_json("site/faults.json")}
    assert not wrong & {name for each, facts in copies.items() for name in (each, facts["copy_of"])}


def test_clips_play_and_have_no_caption(world):
    folder, counts = world
    lines = folder.read_bytes("webvid/clips.csv").decode().splitlines()
    assert lines[0] == "videoid,contentUrl,duration,page_dir,name"
    assert len(lines) - 1 == counts["clip_rows"] == SMALL.clips + 5 + len(KINDS)
    assert lines.count(lines[1]) == 2
    assert not any(
        colour in line or shape in line for line in lines for colour in SMALL.colours for shape in SMALL.shapes
    )
    planted = folder.read_json("truth.json")["planted"]
    assert [clip["kind"] for clip in planted] == [*KINDS], "they come last, so that the others are as without them"
    assert [line.split(",")[0] for line in lines[-len(KINDS) :]] == [clip["videoid"] for clip in planted]
    truth = folder.read_json("truth.json")["clips"]
    assert len(truth) == SMALL.clips
    by_id = {line.split(",")[0]: line.split(",")[3] for line in lines[1:]}
    clip = truth[0]["videoid"]
    frames = read_frames(folder.read_bytes(f"site/videos/{by_id[clip]}/{clip}.mp4"))
    assert frames.shape == (SMALL.clip_frames, SMALL.size, SMALL.size, 3)


def test_a_world_has_as_many_planted_clips_of_each_kind_as_its_recipe_says(tmp_path):
    folder = Folder(str(tmp_path))
    counts = draw_world(dataclasses.replace(SMALL, planted_clips=2), 3, folder)
    kinds = [clip["kind"] for clip in folder.read_json("truth.json")["planted"]]
    assert kinds == [kind for kind in KINDS for _ in range(2)]
    assert counts["planted"] == len(kinds)


def test_evaluation_sets_and_prompts(world):
    folder, _ = world
    listed = folder.read_bytes("ucf101/trainlist01.txt").decode()
    assert listed.count("\r\n") == SMALL.evaluation_clips
    assert all(folder.exists(f"ucf101/{line.split(' ')[0]}") for line in listed.splitlines())
    assert folder.read_bytes("ucf101/class_prompts.txt").decode().splitlines()[1] == "a red cross"
    captions = folder.read_json("msrvtt/captions.json")
    assert {s["video_id"] for s in captions["sentences"]} == {v["video_id"] for v in captions["videos"]}
    prompts = folder.read_json("prompts.json")
    assert 24 <= len(prompts) <= 36
    assert all(p["colour"] in p["prompt"] and p["shape"] in p["prompt"] for p in prompts)


def _get(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, b""


def test_server_serves_and_misbehaves(world):
    folder, _ = world
    faults = folder.read_json("site/faults.json")
    named = {json.dumps(fault, sort_keys=True): name for name, fault in faults.items()}

    def path(kind, **more):
        return next(
            n for text, n in named.items() if (f := json.loads(text))["kind"] == kind and more.items() <= f.items()
        )

    with WorldServer(folder.child("site"), 0) as server:
        good = next(n for n in folder.child("site").names() if n.startswith("images/") and n not in faults)
        assert _get(server.url + good)[2] == folder.read_bytes(f"site/{good}")
        assert f"<a href='{good}'>".encode() in _get(server.url)[2]
        assert _get(server.url + "images/none.jpg")[0] == 404
        assert _get(server.url + "../laion/joined.parquet")[0] == 404
        assert _get(server.url + "faults.json")[0] == 404
        assert _get(server.url + path("status", status=429))[1]["Retry-After"] == "0"
        assert [_get(server.url + path("flaky"))[0] for _ in range(2)] == [503, 200]
        assert _get(server.url + path("redirect_ok"))[0] == 200
        assert _get(server.url + path("opt_out", header="noai, noimageai"))[1]["X-Robots-Tag"] == "noai, noimageai"
        with pytest.raises(Exception, match="IncompleteRead"):
            _get(server.url + path("truncated"))


def test_port_in_use_by_same_world_is_shared_by_another_refused(world, tmp_path):
    folder, _ = world
    with WorldServer(folder.child("site"), 0) as first:
        with WorldServer(folder.child("site"), first.port) as second:
            assert _get(second.url + ".world")[0] == 200
        assert _get(first.url + ".world")[0] == 200, "closing the second must not stop the first"
        stranger = Folder(str(tmp_path))
        stranger.write_json("identity.json", {"digest": "other"})
        with pytest.raises(UserError, match=r"--set world\.port"), WorldServer(stranger, first.port):
            pass


def test_no_world_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="demo-world"), WorldServer(str(tmp_path), 0):
        pass


def test_a_world_too_small_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"world\.images"):
        draw_world(World(images=5), 0, Folder(str(tmp_path)))


def test_a_world_of_two_objects_holds_both_numbers_of_objects_everywhere(tmp_path):
    two = World(images=90, clips=12, clip_frames=8, size=32, objects=2, evaluation_clips=8, port=0)
    folder = Folder(str(tmp_path))
    draw_world(two, 3, folder)
    truth, prompts = folder.read_json("truth.json"), folder.read_json("prompts.json")
    for rows in (truth["clips"], truth["images"].values(), prompts, folder.read_json("ucf101/truth.json").values()):
        assert 0.2 < sum("second" in row for row in rows) / len(rows) < 0.8
    for row in [*truth["clips"], *truth["images"].values(), *prompts]:
        assert row["colour"] != row.get("second", {}).get("colour")
    assert all(f"{kind['colour']} {kind['shape']}" in row["prompt"] or f"one {kind['shape']}, {kind['colour']}"
               in row["prompt"] for row in prompts for kind in (row, row.get("second", row)))  # fmt: skip
    for field, names in (("colour", two.colours), ("shape", two.shapes)):
        assert {row[field] for row in prompts if "second" not in row} == set(names)
        assert {row["second"][field] for row in prompts if "second" in row} == set(names)
    captions = {caption for row in prompts if "second" in row for caption in [row["prompt"]]}
    assert {caption.split()[0] for caption in captions} == {"a", "one"}
    assert len(captions) == sum("second" in row for row in prompts)
    classes = folder.read_bytes("ucf101/class_prompts.txt").decode().splitlines()
    assert classes[:2] == ["a red circle", "a red circle and a green circle"]
    with pytest.raises(UserError, match=r"world\.colours"):
        load_recipe("tiny", ["world.objects=2", "world.colours=[red]"])


def test_two_objects_stand_apart_in_pictures_and_differ_in_colour():
    rng = np.random.default_rng(0)
    for scene in (random_scene(rng, ("red", "blue"), ("circle", "cross"), 2) for _ in range(50)):
        assert scene.second.colour != scene.colour
        apart = np.hypot(*np.subtract(scene.centre, scene.second.centre))
        assert apart >= scene.radius + scene.second.radius
    both = dataclasses.replace(scene.second, centre=scene.centre, velocity=(0.0, 0.0))
    there = (draw(dataclasses.replace(scene, second=both), 64)[tuple(int(64 * c) for c in scene.centre[::-1])]).tolist()
    assert there == list(PALETTE[both.colour]), "the second object covers the first"
