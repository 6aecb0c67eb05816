"""The validity card: damage of known strength, a metric that sees everything, and one that sees nothing."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from small_videos import save, write

from mav.errors import UserError
from mav.evaluation.card import judge, make_card, spearman
from mav.evaluation.corruptions import KINDS, Corruption, every, wrong_prompts
from mav.evaluation.features import Networks
from mav.evaluation.protocols import Preparation, load_protocol
from mav.evaluation.suite.listing import listed
from mav.report.card import card_page
from mav.storage import Folder


def film(seed, frames=8, side=48):
    """A chequered picture that gets lighter from left to right in every frame, and as a whole from frame to frame."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(60, 90, (4, 4, 3)).repeat(side // 4, 0).repeat(side // 4, 1)
    ramp = 8 * np.arange(frames)[:, None, None, None] + np.arange(side)[None, None, :, None]
    squares = 40 * (np.add.outer(np.arange(side) // 3, np.arange(side) // 3) % 2)[..., None]
    return (blocks[None] + squares + ramp).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Eyes(Networks):
    """A network of made-up features: of every pixel, or none."""

    blind: bool = False

    def __call__(self, videos):
        return {name: [self._see(video) for video in videos] for name in self.names}

    def _see(self, video):
        if self.blind:
            return np.ones(3, np.float32)
        x = video.astype(np.float32)
        edges = np.abs(np.diff(x, axis=1)).mean(), np.abs(np.diff(x, axis=2)).mean()
        turns = np.abs(np.diff(x, n=2, axis=1)).mean(), np.abs(np.diff(x, axis=2) - 1).mean()
        steps = np.diff(x.mean(axis=(1, 2, 3)))
        return np.array([x.mean(), *edges, *turns, *steps], np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for number in range(24):
        save(film(number), folder / f"{number:03d}.npy", "npy")
    return Folder(str(folder))


def made(tmp_path, clips, networks, features, samples=0, **settings):
    protocol = dataclasses.replace(load_protocol("ucf101-demo"), features=features)
    entries = listed(clips, None, samples)
    return make_card(protocol, Preparation(8), clips, entries, networks, Folder(str(tmp_path)), draws=40, **settings)


@pytest.mark.parametrize("name", KINDS)
def test_damage_grows_with_strength_and_comes_again_the_same(name):
    clip = film(3)
    changes = []
    for strength in (0, *KINDS[name].strengths):
        corrupt = Corruption(name, strength, seed=1)
        damaged = corrupt(clip, 5)
        assert (damaged.dtype, damaged.shape) == (np.uint8, clip.shape)
        assert np.array_equal(damaged, Corruption(name, strength, seed=1)(clip.copy(), 5))
        changes.append(np.abs(damaged.astype(float) - clip).mean())
    assert changes[0] == 0
    if name != "frame shuffle":  # which frames change places decides how far they go
        assert changes == sorted(changes)
    assert min(changes[1:]) > 0
    assert np.array_equal(clip, film(3)), "the clip itself is not touched"


def test_damage_is_what_it_says():
    clip = film(4)
    assert np.array_equal(Corruption("reversed", 1)(clip, 0), clip[::-1])
    assert np.array_equal(Corruption("freeze", 0.5)(clip, 0)[3:], clip[[3] * 5])
    strobed = Corruption("strobing", 0.2)(clip, 0)
    assert np.array_equal(strobed[::2], clip[::2])
    assert np.abs(strobed[1::2] - 0.8 * clip[1::2]).max() <= 0.5
    shuffled = Corruption("frame shuffle", 1.0)(clip, 0)
    assert sorted(frame.mean() for frame in shuffled) == pytest.approx([frame.mean() for frame in clip])
    assert all((a != b).any() for a, b in zip(shuffled, clip, strict=True))
    half = Corruption("half resolution", 1)(clip, 0)
    assert np.array_equal(half, Corruption("half resolution", 1, seed=9)(clip, 7))
    assert not np.array_equal(Corruption("noise", 8)(clip, 0), Corruption("noise", 8)(clip, 1))
    with pytest.raises(ValueError, match=r"uint8 \(F, H, W, 3\), not float64"):
        Corruption("noise", 8)(clip / 255, 0)
    assert len(every()) == sum(len(kind.strengths) for kind in KINDS.values())


def test_a_metric_that_sees_everything_and_one_that_sees_nothing(tmp_path, clips):
    for blind in (False, True):
        networks = Eyes(("demo",), clip=_weights(tmp_path), blind=blind)
        card = made(tmp_path / str(blind), clips, networks, {"fvd": "demo", "coverage": "demo", "clipsim": "demo"})
        assert (card["reference"], card["judged"]) == (12, 12)
        assert set(card["not_judged"]) == {"clipsim"}
        rows = {row["corruption"]: row for row in card["rows"] if row["metric"] == "fvd"}
        assert set(rows) == set(KINDS)
        if blind:
            assert all(row["seen_from"] is None and row["spearman"] is None for row in card["rows"])
            assert not any(row["rises"] for row in card["rows"])
            assert "FVD does not see noise, blur, frame shuffle" in card["words"][0]
            assert "Strobing of every second frame is not seen by FVD, Coverage." in card_page(card).decode()
        else:
            assert all(row["seen_from"] is not None for row in rows.values()), rows
            assert rows["noise"]["spearman"] == pytest.approx(1)
            assert rows["noise"]["rises"]
            assert "strobing from" in card["words"][0]
            assert "does not see" not in card["words"][0]
            assert "12 real clips were damaged" in card_page(card).decode()
        assert json.loads((tmp_path / str(blind) / "card.json").read_text()) == json.loads(json.dumps(card))


@dataclasses.dataclass(frozen=True)
class Reader(Eyes):
    """A CLIP of made-up embeddings: of a clip its brightness, of a text the number that it says."""

    def _see(self, video):
        angle = video.mean() / 128
        return np.tile(np.array([np.cos(angle), np.sin(angle)], np.float32), (8, 1))

    def texts(self, name, texts):
        angles = np.array([float(text.split()[-1]) for text in texts]) / 128
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_metrics_that_compare_with_texts_see_wrong_prompts(tmp_path):
    clips = Folder(str(tmp_path / "clips"))
    for number in range(24):
        clip = np.full((8, 16, 16, 3), 10 + 10 * number, np.uint8)
        save(clip, tmp_path / "clips" / f"grey like {10 + 10 * number}.npy", "npy")
    networks = Reader(("demo",), clip=_weights(tmp_path))
    card = made(tmp_path / "out", clips, networks, {"clipsim": "demo", "fvd": "demo"})
    rows = {(row["metric"], row["corruption"]): row for row in card["rows"]}
    wrong = rows["clipsim", "wrong prompt"]
    assert (wrong["rises"], wrong["points"][-1]["worse"]) == (True, True)
    assert wrong["points"][0]["value"] > wrong["points"][-1]["value"]
    assert rows["fvd", "wrong prompt"]["spearman"] is None, "it reads no text"
    assert "wrong prompt" in card_page(card).decode()
    assert card["not_judged"] == {}


def test_wrong_prompts_are_those_of_others_and_more_with_strength():
    prompts = [f"text {i % 5}" for i in range(20)]
    changed = [
        {i for i, (a, b) in enumerate(zip(prompts, wrong_prompts(prompts, share), strict=True)) if a != b}
        for share in (0, 0.25, 0.5, 1)
    ]
    assert [len(each) for each in changed] == [0, 5, 10, 20]
    assert all(few <= many for few, many in itertools.pairwise(changed))
    assert set(wrong_prompts(prompts, 1)) <= set(prompts)
    assert wrong_prompts(["one"] * 3, 1) == ["one"] * 3


def _weights(tmp_path):
    from mav.models.clip import WEIGHTS

    folder = Folder(str(tmp_path / "weights"))
    folder.write_bytes(WEIGHTS, b"made up")
    return folder


def test_a_strength_is_seen_when_the_intervals_leave_no_doubt():
    def point(strength, value, width=0.1):
        return {"strength": strength, "value": value, "low": value - width, "high": value + width}

    clean = point(0, 1.0)
    values = [point(1, 1.13), point(2, 1.15), point(3, 1.5)]  # the difference is 0.14 uncertain
    found = judge(clean, values, lower=True)
    assert [p["worse"] for p in found["points"]] == [False, True, True]
    assert (found["seen_from"], found["rises"], found["spearman"]) == (2, True, pytest.approx(1))
    assert judge(clean, values, lower=False)["seen_from"] is None  # more is better there
    assert judge(clean, values, lower=False)["spearman"] == pytest.approx(-1)
    back = judge(clean, [point(1, 2.0), point(2, 1.0)], lower=True)  # the strongest is not seen
    assert (back["seen_from"], back["rises"]) == (None, False)
    tie = judge(clean, [point(1, 1.0 + 1e-9, 0), point(2, 1.0, 0)], lower=True)
    assert (tie["seen_from"], tie["spearman"]) == (None, None)
    assert spearman([1, 2, 3, 4], [1, 1, 5, 3]) == pytest.approx(0.7378648)  # scipy.stats.spearmanr's


def test_what_cannot_be_judged_says_so(tmp_path, clips):
    networks = Eyes(("demo", "i3d"), clip=_weights(tmp_path))
    card = made(tmp_path / "a", clips, networks, {"fvd": "demo", "kvd": "i3d"}, samples=8)
    assert (card["reference"], card["judged"]) == (4, 4)
    assert "weights of I3D" in card["not_judged"]["kvd"]
    with pytest.raises(UserError, match=r"No metric of ucf101-demo can be judged.*I3D"):
        made(tmp_path / "b", clips, networks, {"kvd": "i3d"})
    for few, counts in ((2, "1 and 1"), (7, "3 and 4")):  # of three, chance alone makes one in twenty all worse
        with pytest.raises(UserError, match=f"{counts} readable clips in the two halves.* more, 8 at least"):
            made(tmp_path / f"c{few}", clips, networks, {"fvd": "demo"}, samples=few)


@pytest.mark.slow
def test_the_command_writes_the_card_and_its_page(mav, monkeypatch, tmp_path, clip_folder):
    from flows.cli import evaluate as cli_evaluate

    write(Folder(str(tmp_path / "clips")), range(8))
    monkeypatch.setattr(cli_evaluate, "_clip", lambda recipe, runs: clip_folder)
    monkeypatch.chdir(tmp_path)
    code, out, error = mav("evaluate", "card", "--videos", "clips", "--recipe", "tiny", "--metric", "fvd")
    assert code == 0, error
    assert "FVD" in out
    assert "strobing" in out
    page = (tmp_path / "evaluation" / "card.html").read_text()
    assert "4 real clips were damaged in known ways and measured against 4 others" in page
