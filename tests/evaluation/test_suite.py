"""A folder of any system's videos gets every metric that the weights allow, and says what the others need."""

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from small_videos import frames, save

from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.evaluation import card as cards
from mav.evaluation import reading
from mav.evaluation.corruptions import Corruption, every
from mav.evaluation.features import Networks, _row
from mav.evaluation.metrics import frechet_features, jedi
from mav.evaluation.protocols import Preparation, load_protocol
from mav.evaluation.score import Scorer
from mav.evaluation.sets import BenchmarkSet
from mav.evaluation.suite.convergence import convergence
from mav.evaluation.suite.listing import listed
from mav.evaluation.suite.run import SUITE, VBENCH, VBENCH_DIMENSIONS, extremes, run_suite
from mav.report import figures
from mav.report.suite import animated, suite_page
from mav.storage import Folder

TEXTS = ("a red circle", "a blue cross")
MUSIQ = "musiq_spaq_ckpt-358bb6af.pth"
WEIGHTS = (
    "dino.safetensors", "ViT-B-32.safetensors", "ViT-L-14.safetensors", "aesthetic.safetensors", "i3d.safetensors",
    "dinov2.safetensors", "videomae.safetensors", "vjepa.safetensors", "musiq.safetensors",
    "raft.safetensors",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MadeUp(Networks):
    """Features of brightness in the place of every network that has weights."""

    def lacks(self, name, loaded=True):
        return super().lacks(name, loaded=False)

    def __call__(self, videos):
        means = [video.mean(axis=(1, 2)).astype(np.float32) / 255 for video in videos]
        of_clips = [mean.mean(axis=0) for mean in means]
        found = {"i3d": of_clips, "videomae": of_clips, "vjepa": of_clips, "dinov2": means}
        return {name: found[name] for name in self.names if name in found}

    def rows(self, whole, fps):
        pixels = dataclasses.replace(self, names=("whole pixels",))
        found = Networks.rows(pixels, whole, fps) | {"whole raft": np.zeros(1, np.float32)}
        row = _row(whole.mean(axis=(1, 2)).astype(np.float32) / 255)
        return {name: found.get(name, row) for name in self.names if name.startswith("whole ")}

    def texts(self, name, texts):
        assert name == "clip ViT-B-32"
        return np.array([np.eye(3)[TEXTS.index(text)] for text in texts])


@pytest.fixture
def folder(tmp_path):
    """Videos as other systems leave them: in several forms and folders, one of them broken, one too short."""
    made = Folder(str(tmp_path / "videos"))
    for number in range(2):
        for text in TEXTS:
            data = encode_mp4(frames(number, count=18, size=64), 8)
            made.write_bytes(f"{text[2:5].strip()}/{text}-{number}.mp4", data)
    pictures = [Image.fromarray(frame) for frame in frames(9, count=20, size=64)]
    (tmp_path / "videos" / "more").mkdir()
    pictures[0].save(tmp_path / "videos/more/a blue cross.gif", save_all=True, append_images=pictures[1:])
    made.write_bytes("a red circle-7.webm", b"no video")
    save(frames(1, count=2), tmp_path / "videos" / "a red circle-8.npy", "npy")
    return made


def weights(tmp_path, names=WEIGHTS):
    held = Folder(str(tmp_path / "weights"))
    for name in names:
        held.write_bytes(name, b"made up")
    return MadeUp((), held.url)


def test_all_that_can_be_said_is_said(tmp_path, folder, monkeypatch):
    opened = []

    class Counted(reading.ShownVideo):
        def __init__(self, data):
            opened.append(1)
            super().__init__(data)

    monkeypatch.setattr(reading, "ShownVideo", Counted)
    out = Folder(str(tmp_path / "out"))
    result = run_suite(folder, weights(tmp_path), out, reference=folder, draws=20)
    monkeypatch.undo()
    assert (result["videos"], result["readable"]) == (7, 5)
    assert {row["file"]: row["reason"] for row in result["unreadable"]} == {
        "a red circle-7.webm": "unreadable", "a red circle-8.npy": "too few frames",
    }  # fmt: skip
    assert len(opened) == 6, "one decoding of each serves all networks, and the reference's features are these"
    metrics = result["metrics"]
    assert set(metrics) == set(load_protocol("suite").features) - {"fid"}
    names = "overall_consistency subject_consistency strobing aesthetic_quality precision fd_dinov2"
    for name in names.split():
        assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"], name
    assert metrics["fvd"]["value"] == pytest.approx(0, abs=1e-9)
    assert "density" in metrics
    assert metrics["jedi"]["value"] == pytest.approx(0, abs=1e-9)
    assert metrics["jedi"]["unbiased"] < 0 < metrics["jedi"]["real_halves"]
    (missing,) = result["missing"]
    assert missing["metrics"] == ["fid"]
    assert "pt_inception-2015-12-05-6726825d.pth" in missing["needs"]
    assert json.loads(out.read_bytes(SUITE)) == json.loads(json.dumps(result))
    # VBench's own form.
    theirs = json.loads(out.read_bytes(VBENCH))
    assert set(theirs) == set(VBENCH_DIMENSIONS)
    value, rows = theirs["imaging_quality"]
    assert value == metrics["imaging_quality"]["value"]
    assert 100 * value == pytest.approx(np.mean([row["video_results"] for row in rows]))
    value, rows = theirs["dynamic_degree"]
    assert (value, metrics["dynamic_degree"]["value"]) == (0, 1), "RAFT's, as VBench has it, and not that of DIS flow"
    assert value == np.mean([row["video_results"] for row in rows])
    assert {type(row["video_results"]) for row in rows} == {bool}
    assert rows[0]["video_path"].startswith(folder.url)
    # The page shows the worst and the best, and every need.
    page = suite_page(result, folder).decode()
    assert 'src="data:image/webp;base64,' in page
    assert result["extremes"]["strobing"]["worst"][0]["file"] in page
    assert "a red circle-7.webm" in page
    assert "pt_inception-2015-12-05-6726825d.pth" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_strip_is_shown_as_small_as_other_videos(tmp_path):
    draws = np.random.default_rng(0)
    for name, shape in (("wide", (18, 1, 300, 3)), ("tall", (18, 300, 2, 3)), ("plain", (18, 64, 96, 3))):
        save(draws.integers(0, 255, shape, np.uint8), tmp_path / f"{name}.npy", "npy")
    for name, size in (("wide", (896, 3)), ("tall", (6, 896)), ("plain", (168, 112))):
        shown = animated(Folder(str(tmp_path)), f"{name}.npy")
        picture = Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2])))
        assert (picture.size, picture.n_frames) == (size, 8)


def test_without_weights_or_references_the_list_names_every_need_once(mav, tmp_path, folder):
    out = tmp_path / "judged"
    (tmp_path / "empty").mkdir()
    code, told, error = mav(
        "evaluate", "suite", "--videos", folder.url, "--out", out, "--weights-dir", tmp_path / "empty"
    )
    assert code == 0, error
    result = json.loads((out / SUITE).read_text())
    assert set(result["metrics"]) == {"temporal_flickering", "motion_smoothness", "dynamic_degree", "strobing"}
    needs = {need["needs"]: need["metrics"] for need in result["missing"]}
    (reference,) = [metrics for need, metrics in needs.items() if "--reference" in need]
    names = "fvd kvd fvd_videomae jedi precision recall density coverage fid fd_dinov2"
    assert reference == names.split()
    files = (
        "dino_vitbase16_pretrain.pth",
        "ViT-B-32.pt",
        "sa_0_4_vit_l_14_linear.pth",
        "ViT-L-14.pt",
        "i3d_torchscript.pt",
    )
    for file in (*files, "dinov2_vitl14_pretrain.pth", "vit_g_hybrid_pt_1200e_ssv2_ft.pth", "vith16.pth.tar", MUSIQ):
        assert len([need for need in needs if file in need]) == 1
        assert file in told
    assert "5 of 7 readable" in told
    assert "a red circle-7.webm: unreadable" in told
    assert "Strobing" in (out / "suite.html").read_text()


def test_prompts_come_from_a_list_of_videos_a_list_of_prompts_or_the_names(tmp_path, folder):
    named = {entry.file: entry.prompt for entry in listed(folder, None, 0)}
    assert named["blu/a blue cross-1.mp4"] == named["more/a blue cross.gif"] == "a blue cross"
    assert [entry.index for entry in listed(folder, None, 3)] == [0, 1, 2]
    numbered = Folder(str(tmp_path / "numbered"))
    for name in ("00000.mp4", "00001.mp4", "00009.mp4", "flame.mp4", "o/a boat-3.mp4"):
        numbered.write_bytes(name, b"")
    assert {entry.prompt for entry in listed(numbered, None, 0)} == {"", "a boat"}
    texts = Folder(str(tmp_path / "prompts.txt"))
    texts.write_bytes("", b"zero\none\nflame\na boat\n")
    prompts = [entry.prompt for entry in listed(numbered, texts, 0)]
    assert prompts == ["zero", "one", "", "flame", "a boat"]
    numbered.write_json(
        "videos.json", [{"file": "flame.mp4", "prompt": "fire"}, {"file": "gone.mp4", "prompt": "smoke"}]
    )
    assert [(entry.file, entry.prompt) for entry in listed(numbered, texts, 0)] == [
        ("flame.mp4", "fire"),
        ("gone.mp4", "smoke"),
    ]
    with pytest.raises(UserError, match="holds no video"):
        listed(Folder(str(tmp_path / "nothing")), None, 0)


def test_nothing_readable_is_an_error_and_extremes_are_of_different_videos(tmp_path):
    broken = Folder(str(tmp_path / "broken"))
    broken.write_bytes("x.mp4", b"no video")
    with pytest.raises(UserError, match=r"None of 1 videos .*x\.mp4: unreadable"):
        run_suite(broken, weights(tmp_path, ()), Folder(str(tmp_path / "out")))
    values = [("a", 3.0), ("b", 1.0), ("c", 2.0), ("d", 1.0)]
    assert extremes(values, "higher") == {
        "worst": [{"file": "b", "value": 1.0}, {"file": "d", "value": 1.0}],
        "best": [{"file": "a", "value": 3.0}, {"file": "c", "value": 2.0}],
    }
    assert [row["file"] for row in extremes(values, "lower")["worst"]] == ["a", "c"]
    assert extremes([("a", 1.0), ("b", 1.0)], "higher") == {"worst": [], "best": []}


def test_consistency_is_the_mean_cosine_with_the_first_and_the_former_frame():
    features = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    sums = [max(0, unit[i] @ unit[i - 1]) / 2 + max(0, unit[i] @ unit[0]) / 2 for i in range(1, 5)]
    row = _row(features)
    assert row[0] == pytest.approx(np.mean(sums), abs=1e-6)
    assert np.allclose(row[1:], features.mean(axis=0), atol=1e-6)


def test_a_whole_video_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_FRAMES", 8)
    monkeypatch.setattr(reading, "MOST_SIDE", 24)
    Folder(str(tmp_path)).write_bytes("a.mp4", encode_mp4(frames(0, count=20, size=64), 8))
    views = reading.read_views(Folder(str(tmp_path)), "a.mp4", Preparation(16), prepared=True, whole=True)
    assert (views.whole.shape, views.prepared.shape, views.fps) == ((8, 24, 24, 3), (16, 64, 64, 3), 8)


def test_the_card_says_that_strobing_sees_strobing(tmp_path, monkeypatch):
    clips = Folder(str(tmp_path / "clips"))
    for number in range(12):
        save(frames(number, count=8, size=32), tmp_path / "clips" / f"{number:03d}.npy", "npy")
    strobing = [damage for damage in every() if damage.kind == "strobing"]
    monkeypatch.setattr(cards, "every", lambda seed: [*strobing, Corruption("reversed", 1.0, seed)])
    networks = Networks(("whole pixels",), str(tmp_path))
    protocol = load_protocol("suite").only(["strobing", "temporal_flickering"])
    entries, out = listed(clips, None, 0), Folder(str(tmp_path / "out"))
    card = cards.make_card(protocol, Preparation(8), clips, entries, networks, out, draws=40)
    seen = {(row["metric"], row["corruption"]): row["seen_from"] for row in card["rows"]}
    assert seen["strobing", "strobing"] == 0.05
    assert seen["strobing", "reversed"] is None
    assert seen["temporal_flickering", "strobing"] is not None


@dataclasses.dataclass(frozen=True)
class Held:
    """Features in memory, in chunks, in the place of stored ones."""

    rows: np.ndarray

    @property
    def readable(self):
        return len(self.rows)

    def load(self, name):
        return np.arange(len(self.rows)), self.rows

    def stream(self, name):
        for start in range(0, len(self.rows), 30):
            yield np.arange(start, min(start + 30, len(self.rows))), self.rows[start : start + 30]


def test_distances_fall_over_the_number_of_videos_and_lead_to_the_endless_one():
    """Of equal normal distributions, all that a distance shows is its excess, and endlessly many have none."""
    rng = np.random.default_rng(0)
    ours, real = rng.standard_normal((320, 12)), rng.standard_normal((3000, 12))
    protocol = load_protocol("suite").only(["fvd", "jedi", "precision"])
    scorer = Scorer(protocol, None, BenchmarkSet(()), Held(ours), Held(real), draws=50)
    for name in ("fvd", "jedi"):
        row, value = (
            (scorer._frechet, frechet_features) if name == "fvd" else (scorer._jedi, lambda a, b: jedi(a, b)[0])
        )
        found = row(name)
        curve = convergence(scorer, name, found)
        points = curve["points"]
        assert [point["n"] for point in points] == [40, 80, 160, 320]
        assert points[-1]["value"] == pytest.approx(value(ours, real), rel=1e-9)
        values = [point["value"] for point in points]
        assert values == sorted(values, reverse=True)
        assert all(point["low"] < point["value"] < point["high"] for point in points)
        assert points[0]["high"] - points[0]["low"] > points[2]["high"] - points[2]["low"]
        assert abs(curve["endless"]) < values[-1] / 2 < values[0] / 8
        assert curve == convergence(scorer, name, found)
        drawing = figures.convergence(points, curve["endless"], name)
        assert drawing.count("<circle") == 4
        assert ">∞<" in drawing
        assert "320" in drawing
    assert convergence(scorer, "precision", {"value": 1.0}) is None
    few = dataclasses.replace(scorer, ours=Held(ours[:31]))
    assert convergence(few, "fvd", {"value": 1.0}) is None
