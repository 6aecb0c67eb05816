"""`mav study` from freezing to the report, as a person types it."""

import re
from pathlib import Path

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
    assert "see `mav study freeze --help`" in mav(*freeze, "--seed=-1")[2]
    code, out, _ = mav(*freeze)
    assert (code, "3 pairs, 5 raters each" in out) == (0, True)
    assert "frozen study already" in mav(*freeze)[2]
    assert "at least two" in mav(*freeze[:4], *freeze[6:-1], "other")[2]
    assert "a folder that is there" in mav(*freeze[:3], "x", *freeze[4:])[2]
    assert "ours is named twice" in mav(*freeze[:4], *freeze[2:4], *freeze[6:-1], "other")[2]
    (tmp_path / "film/00001.mp4").unlink()
    assert f"1 prompts lack a video of ours or film, the first is {PROMPTS[1]!r}" in mav(*freeze[:-1], "other")[1]
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
    assert "--out prompts.txt cannot be a folder" in mav("study", "report", "study", "--votes", "votes", "--out",
                                                         "prompts.txt")[2]  # fmt: skip


def served(mav, *arguments):
    code, out, err = mav("study", "serve", "study", "--raters", "2", "--votes", "votes", *arguments)
    assert (code, err) == (0, "")
    return re.findall(r"serving (\S+)/ ", out)[0], Path("votes/links.csv").read_text().splitlines()[1]


def test_a_study_is_served_whole_and_at_an_address(mav, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("uvicorn.run", lambda page, **options: None)
    monkeypatch.setattr("flows.cli.study.port_is_free", lambda port, host: True)
    write(Folder("ours"), range(2))
    write(Folder("film"), range(2), 60)
    Path("prompts.txt").write_text("\n".join(PROMPTS[:2]))
    mav("study", "freeze", "--system", "a=ours", "--system", "b=film", "--prompts", "prompts.txt", "--out", "study")
    for wrong in ("example.org/rate", "https://", "ftp://host", "https://host/a?b=1", "https://host/a b", "//host"):
        code, _, error = mav("study", "serve", "study", "--votes", "votes", "--url", wrong)
        assert (code, f"--url {wrong}" in error.replace("https:/ ", "https:// ")) == (2, True) or wrong == "https://"
    address, link = served(mav, "--host", "::1")
    assert (address, link.startswith("1,http://[::1]:8800/r/")) == ("http://[::1]:8800", True)
    assert served(mav, "--url", "https://host/rate/")[1].startswith("1,https://host/rate/r/")
    for damage in (b"", None):
        video = next(Path("study/videos").iterdir())
        kept = video.read_bytes()
        video.unlink() if damage is None else video.write_bytes(damage)
        assert f"1 videos of study are lost or changed, the first is videos/{video.name}" in mav(
            "study", "serve", "study", "--votes", "votes"
        )[2]  # fmt: skip
        video.write_bytes(kept)
    Path("study/key.json").write_text("[]")
    assert "key.json is damaged" in mav("study", "report", "study")[2]
    Path("study/key.json").unlink()
    assert "key.json is lost" in mav("study", "report", "study")[2]
