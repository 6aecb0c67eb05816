"""The study: blind, frozen, exactly five raters a pair; statistics against references and golden values."""

import json
import math
import re
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import choix
import numpy as np
import pytest
from small_videos import frames

from mav.data.videos.video_io import encode_mp4
from mav.errors import UserError
from mav.evaluation.reading import whole_video
from mav.storage import Folder
from mav.study.agreement import (
    bradley_terry,
    cluster_bootstrap,
    connected,
    fleiss_kappa,
    krippendorff_alpha,
    sign_test,
    wilson,
)
from mav.study.results import report_study
from mav.study.study import Pair, freeze, freeze_study, pairs_of
from mav.study.votes import RefusedError, Study, Votes


@pytest.fixture(scope="module")
def clips():
    return [encode_mp4(frames(seed, 6), 8) for seed in range(6)]


def made_up(clips, count, systems=("ours", "theirs")):
    """Pairs that share a few clips, so that many of them cost nothing."""
    kinds = ("people", "animals")
    return [Pair(f"prompt {i}", kinds[i % 2], systems, (clips[i % 3], clips[3 + i % 3])) for i in range(count)]


def make_study(tmp_path, clips, count, session=24, systems=("ours", "theirs")):
    folder = Folder(str(tmp_path / "study"))
    freeze(made_up(clips, count, systems), folder, seed=3, session=session)
    return folder, Study.load(folder)


def test_a_study_is_blind_balanced_and_frozen(clips, tmp_path):
    out, again = Folder(str(tmp_path / "a")), Folder(str(tmp_path / "b"))
    facts = freeze(made_up(clips, 40), out)
    assert facts == freeze(made_up(clips, 40), again)
    assert {n: out.sha256(n) for n in out.names()} == {n: again.sha256(n) for n in again.names()}
    assert freeze(made_up(clips, 40), Folder(str(tmp_path / "c")), seed=1)["study_sha256"] != facts["study_sha256"]
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
    folder, study = make_study(tmp_path, clips, 3)
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


def rate(votes, token, choose, most=10_000):
    """Answers what is asked until the end; choose(item, question) -> side. Returns the code."""
    state = votes.next(token)
    for _ in range(most):
        if state["state"] == "end":
            return state["code"]
        state = votes.vote(
            token, state["item"], state["question"]["id"], choose(state["item"], state["question"]["id"]), 900
        )
    return None


def prefers(study, system):
    """A rater who sees well: the intact copy, and this system's video wherever it is."""
    return lambda item, question: next(
        (side for side in ("left", "right") if study.key[item][side] in ("intact", system)), "left"
    )  # fmt: skip


def test_a_session_asks_quality_without_the_prompt_first_and_checks_in_between(clips, tmp_path):
    _, study = make_study(tmp_path, clips, 30, session=12)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    (token,) = votes.invite(1)
    state, asked, total = votes.next(token), [], None
    while state["state"] == "ask":
        assert (state["prompt"] is None) == (state["question"]["id"] == "quality")
        total = state["total"]
        assert state["done"] == len(asked)
        assert not set(state) & {"kind", "systems", "category", "gold"}
        asked.append((state["item"], state["question"]["id"]))
        state = votes.vote(token, *asked[-1], prefers(study, "ours")(*asked[-1]), 5)
    assert len(asked) == total == 2 * (12 + 2 + 2)
    assert [q for _, q in asked] == ["quality", "faithfulness"] * 16
    assert [item for item, _ in asked[::2]] == [item for item, _ in asked[1::2]]
    kinds = Counter(study.key[item]["kind"] for item, q in asked if q == "quality")
    assert kinds == {"pair": 12, "gold": 2, "mirror": 2}
    assert re.fullmatch("[0-9A-F]{8}", state["code"])
    assert votes.next(token)["code"] == state["code"]


def test_answers_stay_and_come_once(clips, tmp_path):
    _, study = make_study(tmp_path, clips, 8)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    one, two = votes.invite(2)
    state = votes.next(one)
    again = votes.vote(one, state["item"], "quality", "left", 5)
    assert votes.vote(one, state["item"], "quality", "left", 9) == again  # a repeated request
    with pytest.raises(RefusedError, match="cannot be changed"):
        votes.vote(one, state["item"], "quality", "right", 9)
    with pytest.raises(RefusedError, match="no longer yours"):
        votes.vote(two, "nonsense", "quality", "left", 9)
    with pytest.raises(RefusedError, match="not known"):
        votes.next("somebody")
    assert len(votes.rows()[0]) == 1
    with sqlite3.connect(tmp_path / "v.sqlite") as db:
        for statement in ("UPDATE votes SET answer = 'right'", "DELETE FROM votes"):
            with pytest.raises(sqlite3.IntegrityError, match="append only"):
                db.execute(statement)
    _, other = make_study(tmp_path / "other", clips, 9)
    with pytest.raises(UserError, match="votes of another study"):
        Votes(str(tmp_path / "v.sqlite"), other)


def test_a_lease_that_ran_out_gives_the_seat_away(clips, tmp_path):
    _, study = make_study(tmp_path, clips, 1, session=1)
    votes = Votes(str(tmp_path / "v.sqlite"), study, lease_seconds=0.0)
    tokens = votes.invite(7)
    late = votes.next(tokens[0])
    votes.vote(tokens[0], late["item"], "quality", "left", 5)
    for token in tokens[1:6]:
        assert rate(votes, token, prefers(study, "ours"))
    with pytest.raises(RefusedError, match="no longer yours"):
        votes.vote(tokens[0], late["item"], "faithfulness", "left", 5)
    assert votes.next(tokens[6])["code"] is None  # nothing is left for the seventh
    rows, _ = votes.rows()
    assert Counter(row["complete"] for row in rows) == {1: 10, 0: 1}


def test_seats_are_held_while_somebody_rates(clips, tmp_path):
    _, study = make_study(tmp_path, clips, 1, session=1)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    tokens = votes.invite(6)
    for token in tokens[:5]:
        assert votes.next(token)["state"] == "ask"
    assert votes.next(tokens[5])["state"] == "end"
    assert votes.next(tokens[0])["state"] == "ask"


def test_raters_who_do_not_look_are_left_out_and_replaced(clips, tmp_path):
    _, study = make_study(tmp_path, clips, 24)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    tokens = votes.invite(8)
    assert rate(votes, tokens[0], lambda item, question: "left")
    assert rate(
        votes,
        tokens[1],
        lambda item, question: next(s for s in ("left", "right") if study.key[item][s] in ("ruined", "theirs")),
    )
    for token in tokens[2:]:
        rate(votes, token, prefers(study, "ours"))
    report = report_study(study, votes, Folder(str(tmp_path / "report")))
    assert set(report["raters"]["left_out"]) == {"rater 1", "rater 2"}
    assert "gold" in report["raters"]["left_out"]["rater 2"]
    assert report["pairs"] == {"total": 24, "complete": 24, "ratings": 120}
    assert report["questions"]["quality"]["pairs"]["ours over theirs"]["majority_wins"] == 24
    assert report["checks"]["gold_right"] == report["checks"]["gold"] > 0


def test_many_raters_at_once_fill_every_seat_exactly(clips, tmp_path):
    _, study = make_study(tmp_path, clips, 20, session=14)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    tokens = votes.invite(12)
    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(lambda token: rate(votes, token, prefers(study, "ours")) is not False, tokens))
    rows, _ = votes.rows()
    pairs = set(study.of_kind("pair"))
    assert set(Counter(row["item"] for row in rows if row["item"] in pairs).values()) == {
        10
    }  # five raters, two questions
    assert all(row["complete"] for row in rows)


def test_the_report_has_every_statistic(clips, tmp_path):
    _, study = make_study(tmp_path, clips, 12)
    votes = Votes(str(tmp_path / "v.sqlite"), study)
    with pytest.raises(UserError, match="Nobody has rated"):
        report_study(study, votes, Folder(str(tmp_path / "report")))
    tokens = votes.invite(5)
    theirs = study.of_kind("pair")[:3]  # three pairs that theirs wins
    for token in tokens:
        rate(
            votes,
            token,
            lambda i, q: prefers(study, "theirs" if study.key[i]["of"] in theirs or i in theirs else "ours")(i, q),
        )
    out = Folder(str(tmp_path / "report"))
    report = report_study(study, votes, out)
    pair = report["questions"]["faithfulness"]["pairs"]["ours over theirs"]
    assert (pair["majority_wins"], pair["items"], pair["ties"]) == (9, 12, 0)
    assert pair["sign_test_p"] == pytest.approx(2 * sum(math.comb(12, k) for k in range(4)) / 2**12)
    assert pair["majority_wilson"][0] < 0.75 < pair["majority_wilson"][1]
    assert pair["majority_bootstrap"][0] < 0.75 < pair["majority_bootstrap"][1]
    assert set(pair["categories"]) == {"animals", "people"}
    assert report["questions"]["quality"]["agreement"]["fleiss_kappa"] == pytest.approx(1)
    assert report["votes"]["median_seconds"] == 0.9
    assert json.loads(out.read_bytes("report.json"))["questions"].keys() == {"quality", "faithfulness"}
    lines = out.read_bytes("votes.csv").decode().splitlines()
    assert lines[0].startswith("rater,item,kind,question,answer,preferred")
    assert len(lines) == 1 + len(votes.rows()[0])
    assert len(out.read_bytes("raters.csv").decode().splitlines()) == 6


def test_agreement_has_the_known_values_of_fetv(real_data):
    """Three raters of 3,017 videos and texts; the values of their published analysis, to four digits."""
    units: dict[str, dict[tuple[str, str], list[float]]] = {}
    for path in sorted((real_data / "human_ratings" / "fetv").glob("human*.jsonl")):
        rater_model = path.stem.partition("_")[2]
        for line in path.read_text().splitlines():
            for item, row in json.loads(line).items():
                for question in ("static_quality", "temporal_quality", "alignment"):
                    if row.get(question) is not None:
                        units.setdefault(question, {}).setdefault((rater_model, item), []).append(float(row[question]))
    rated = {question: list(table.values()) for question, table in units.items()}
    found = {
        q: (krippendorff_alpha(table, "ordinal"), krippendorff_alpha(table), fleiss_kappa(table))
        for q, table in rated.items()
    }
    published = ((0.6850, 0.3350, 0.3349), (0.7255, 0.3357, 0.3356), (0.6919, 0.3083, 0.3082))
    for question, values in zip(("static_quality", "temporal_quality", "alignment"), published, strict=True):
        assert len(units[question]) == 3017
        assert found[question] == pytest.approx(values, abs=5e-5)


def test_agreement_at_its_ends():
    assert krippendorff_alpha([[1, 1, 1], [2, 2]]) == 1
    assert fleiss_kappa([[1, 1, 1], [2, 2, 2]]) == 1
    assert math.isnan(fleiss_kappa([[1, 1], [1, 1]]))
    assert math.isnan(krippendorff_alpha([[1], [2]]))
    # Krippendorff's own example of 2011 with missing ratings.
    table = [
        [int(rating) for rating in item]
        for item in ["111", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11", "3"]
    ]
    assert krippendorff_alpha(table) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(table, "ordinal") == pytest.approx(0.815, abs=5e-4)


def test_intervals_and_the_sign_test_equal_scipys():
    from scipy.stats import binomtest

    for wins, count in ((0, 5), (7, 9), (31, 40), (5, 5)):
        interval = binomtest(wins, count).proportion_ci(method="wilson")
        assert wilson(wins, count) == pytest.approx((interval.low, interval.high), abs=1e-6)
        assert sign_test(wins, count - wins) == pytest.approx(binomtest(wins, count).pvalue, rel=1e-9)
    assert wilson(0, 0) == (0, 1)
    low, high = cluster_bootstrap([(1.0, 1.0)] * 30 + [(0.0, 1.0)] * 10)
    assert 0.55 < low < 0.70
    assert 0.82 < high < 0.92


def test_bradley_terry_is_choixs():
    rng = np.random.default_rng(0)
    strengths = np.array([1.2, 0.4, -0.1, -1.5])
    data = []
    for _ in range(400):
        a, b = rng.permutation(4)[:2]
        data.append((a, b) if rng.random() < 1 / (1 + np.exp(strengths[b] - strengths[a])) else (b, a))
    wins = Counter((f"s{a}", f"s{b}") for a, b in data)
    theirs = choix.opt_pairwise(4, data, alpha=0.0, method="Newton-CG", tol=1e-12)
    ours = bradley_terry(wins)
    assert np.allclose([ours[f"s{i}"] for i in range(4)], theirs - theirs.mean(), atol=1e-6)


def test_unconnected_comparisons_are_told():
    assert connected({("a", "b"): 1, ("b", "a"): 1})
    assert not connected({("a", "b"): 3})  # one always wins
    assert not connected({("a", "b"): 1, ("b", "a"): 1, ("c", "d"): 1, ("d", "c"): 1})
    with pytest.raises(ValueError, match="do not connect"):
        bradley_terry({("a", "b"): 3})
