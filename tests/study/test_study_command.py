"""`mav study` from freezing to the report, as a person types it."""

from small_videos import FRAMES, write

from mav.evaluation.protocols import Preparation
from mav.storage import Folder
from mav.world.drawing import SHAPES

PREPARATION = Preparation(FRAMES)
PROMPTS = tuple(f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in SHAPES)


def test_a_study_from_the_command_line(mav, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write(Folder("ours"), range(3))
    write(Folder("film"), range(3), 60)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:3]))
    freeze = [
        "study",
        "freeze",
        "--system",
        "ours=ours",
        "--system",
        "film=film",
        "--prompts",
        "prompts.txt",
        "--out",
        "study",
    ]
    code, out, _ = mav(*freeze)
    assert (code, "3 pairs, 5 raters each" in out) == (0, True)
    assert "frozen study already" in mav(*freeze)[2]
    assert "at least two" in mav(*freeze[:4], *freeze[6:-1], "other")[2]
    assert "a folder that is there" in mav(*freeze[:3], "x", *freeze[4:])[2]
    code, _, error = mav("study", "report", "study")
    assert (code, "holds no votes" in error) == (2, True)
    assert "holds no study" in mav("study", "serve", "film")[2]
    from mav.study.votes import Study, Votes

    (tmp_path / "votes").mkdir()
    study = Study.load(Folder("study"))
    votes = Votes("votes/votes.sqlite", study)
    for token in votes.invite(5):
        state = votes.next(token)
        while state["state"] == "ask":
            side = next(side for side in ("left", "right") if study.key[state["item"]][side] in ("ours", "intact"))
            state = votes.vote(token, state["item"], state["question"]["id"], side, 1500)
    code, out, _ = mav("study", "report", "study", "--votes", "votes")
    assert code == 0
    for words in ("ours over film", "100.0 %", "fleiss kappa", "left was chosen", "3 of 3 have all their ratings",
                  "Rule, fixed with the study"):  # fmt: skip
        assert words in out, words
    assert (tmp_path / "votes" / "votes.csv").exists()
