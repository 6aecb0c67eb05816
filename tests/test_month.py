"""A month of two projects that share a runs folder: stopped, cleaned, damaged, moved, renamed, published."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_end_to_end import Mav

from mav.data.videos.video_io import encode_mp4

RECIPE = "extends: tiny\nseed: 5\ntrain_prior:\n  optimisation: {samples: 4800, batch_size: 8, checkpoint_every: 160}\n"


def stop_half_way(mav: Mav, recipe: Path) -> list[Path]:
    """Runs until the prior has two whole checkpoints, then Ctrl-C; returns them."""
    command = [sys.executable, "-m", "flows.cli", "run", str(recipe), "--until", "train-prior", "--runs", str(mav.runs)]
    process = subprocess.Popen(
        [*command, "--set", f"world.port={mav.port}"], env=mav.environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def whole() -> list[Path]:
        return sorted(path.parent for path in mav.runs.glob("work/train-prior/*/checkpoints/*/facts.json"))

    while len(whole()) < 2:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    return whole()


def states(mav: Mav, recipe: Path) -> dict[str, str]:
    told = json.loads(mav("status", str(recipe), "--json").stdout)
    return {name: stage["state"] for name, stage in told["stages"].items()}


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_a_month_ends_with_every_byte_that_was_promised(tmp_path: Path) -> None:
    mav = Mav(tmp_path)
    cats, dogs = tmp_path / "cats" / "recipe.yaml", tmp_path / "dogs" / "recipe.yaml"
    for recipe in (cats, dogs):
        recipe.parent.mkdir()
        recipe.write_text(RECIPE)

    # The cats' training is stopped half-way. The dogs use the same data, then change their mind and clean.
    checkpoints = stop_half_way(mav, cats)
    assert "Nothing to do" in mav("run", str(dogs), "--until", "image-embed").stdout
    dogs.write_text(RECIPE.replace("seed: 5", "seed: 6"))
    before = digests(mav.runs / "artifacts")
    said = mav("clean", str(dogs), "--keep-last", "0", "--delete").stdout
    assert f"left alone for {cats}" in said or str(cats) in said
    assert digests(mav.runs / "artifacts") == before
    assert all(path.exists() for path in checkpoints)

    # The newest checkpoint loses bytes: the training goes on from the one before.
    part = next(checkpoints[-1].glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:1000])
    told = mav("run", str(cats), "--until", "train-prior").stderr
    assert "is damaged" in told
    assert "the one before is taken" in told
    trained = digests(mav.runs / "artifacts")

    # All of it moves to another disk, and the recipe gets another name.
    mav.runs = Path(shutil.move(mav.runs, tmp_path / "other disk"))
    renamed = cats.rename(cats.with_name("lions.yaml"))
    assert states(mav, renamed)["train-prior"] == "done"
    assert "Nothing to do" in mav("run", str(renamed), "--until", "train-prior").stdout
    renamed.write_text(RECIPE.replace("samples: 4800", "samples: 5600"))
    said = mav("clean", str(renamed), "--keep-last", "0", "--delete").stdout
    assert f"`--also {cats}`" in said
    assert digests(mav.runs / "artifacts") == trained
    renamed.write_text(RECIPE)
    mav("verify", str(renamed))

    # A release that fails leaves the one before.
    mav("publish", str(renamed), "train-prior", "--to", "zoo/lions")
    release = mav.runs / "publish/zoo--lions"
    published = digests(release)
    weights = next(mav.runs.glob("artifacts/train-prior/*/network.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    assert "is not released" in mav("publish", str(renamed), "train-prior", "--to", "zoo/lions", expect=2).stderr
    assert digests(release) == published
    weights.write_bytes(whole)

    # A study whose links' file is lost, and that nobody has rated.
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na lion\n")
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        for number in range(2):
            video = np.random.default_rng([len(name), number]).integers(0, 255, (4, 16, 16, 3), np.uint8)
            (tmp_path / name / f"{number:05d}.mp4").write_bytes(encode_mp4(video, 8))
    study = [part for name in ("ours", "theirs") for part in ("--system", f"{name}={tmp_path / name}")]
    line = [sys.executable, "-m", "flows.cli", "study"]
    subprocess.run([*line, "freeze", *study, "--prompts", str(prompts), "--out", str(tmp_path / "study")], check=True)
    report = subprocess.run(
        [*line, "report", str(tmp_path / "study"), "--votes", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.returncode == 2
    assert "mav study serve" in report.stderr

    # What is left when everybody is done: named, both projects' works go.
    for recipe in (renamed, dogs):
        recipe.write_text(RECIPE.replace("seed: 5", "seed: 7"))
        mav("clean", str(recipe), "--keep-last", "0", "--delete", "--also", str(cats))
    assert list((mav.runs / "artifacts").rglob("manifest.json")) == []
