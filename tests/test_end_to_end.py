"""The whole pipeline on the `tiny` recipe, by the command a user types: built, checked, broken, mended, rerun."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alone import alone, can_be_alone
from recorded import other_setting

from flows.services.ports import reserve_port
from mav.data.videos.video_io import read_frames
from mav.recipes.identity import values
from mav.recipes.reader import load_recipe

pytestmark = pytest.mark.slow


class Mav:
    """The command in its own process, with its own home, port and runs folder."""

    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs"
        self.tries = folder / "tries" if can_be_alone() else None  # to reach another machine, of the first run
        self.port = reserve_port()
        self.environment = os.environ | {"PREFECT_HOME": str(folder / "prefect"), "NO_COLOR": "1"}
        for name in ("PREFECT_API_URL", "PREFECT_LOGGING_LEVEL", "RAY_ADDRESS"):
            self.environment.pop(name, None)

    def __call__(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "flows.cli",
            *arguments,
            "--runs",
            str(self.runs),
            "--set",
            f"world.port={self.port}",
        ]
        if self.tries and not self.tries.exists():
            command = alone(command, self.tries)
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == expect, f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self("status", "tiny", "--json").stdout)
        return status

    def artifact(self, stage: str) -> Path:
        return next(path.parent for path in (self.runs / "artifacts" / stage).glob("*/manifest.json"))


@pytest.fixture(scope="module")
def mav(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mav]:
    folder = tmp_path_factory.mktemp("tiny")
    command = Mav(folder)
    told = command("run", "tiny").stderr
    assert "Prefect UI" in told
    assert "Ray dashboard" in told
    yield command
    shutil.rmtree(folder, ignore_errors=True)


def test_nothing_asks_another_machine(mav: Mav) -> None:
    """The whole graph, Prefect's and Ray's servers included, where the kernel counts what has nowhere to go."""
    if mav.tries is None:
        pytest.skip("this machine lets nobody make a network namespace")
    assert mav.tries.read_text() == "0"


def test_no_operational_value_builds_anything_again(mav: Mav) -> None:
    no_pictures = ("clip.optimisation.sample_every", "train_prior.optimisation.sample_every")  # must stay at 0
    known = [value for value in values(load_recipe("tiny")) if not value.counts and value.key not in no_pictures]
    changed = [setting for value in known for setting in other_setting(value)]
    assert {"image_download.contact", "cluster.workers"} <= {setting.partition("=")[0] for setting in changed}
    told = mav("run", "tiny", *(word for setting in changed for word in ("--set", setting))).stdout
    assert told.startswith("Nothing to do: all 24 stages of tiny are done")


def test_every_stage_is_done_its_counts_add_up_and_the_oracle_has_its_figures(mav: Mav) -> None:
    status = mav.status()
    stages = status["stages"]
    assert {name: facts["state"] for name, facts in stages.items() if facts["state"] != "done"} == {}
    for name in ("image-metadata", "image-download", "image-screen", "image-embed", "image-select", "video-shards",
                 "video-select"):  # fmt: skip
        counts = stages[name]["counts"]
        assert counts["rows_in"] == counts["rows_out"] + sum(counts["dropped"].values()) + sum(
            counts["failed"].values()
        ), name
        assert counts["rows_out"] > 0
    assert stages["image-download"]["counts"]["rows_in"] == stages["image-metadata"]["counts"]["rows_out"]
    assert stages["image-screen"]["counts"]["rows_in"] == stages["image-download"]["counts"]["rows_out"]
    assert {"nsfw", "watermark", "toxic"} <= set(stages["image-metadata"]["counts"]["dropped"])
    assert not list((mav.runs / "work").rglob("*.json")), "nothing unfinished stays behind"
    oracle = status["oracle"]
    figures = {
        "colour", "shape", "shape_by_name", "speed_ratio", "direction_cosine", "direction_cosine_clips", "reversals",
        "reversals_clips", "area_change", "saturation_change", "frame_rate_obeyed", "persistence",
        "interpolation_gain_db", "motion_ratio_time_off", "chance_colour", "chance_shape", "intervals",
    }  # fmt: skip
    assert figures <= set(oracle)
    assert 0 <= oracle["colour"] <= 1


def test_a_second_run_does_nothing(mav: Mav) -> None:
    before = {p: p.stat().st_mtime_ns for p in (mav.runs / "artifacts").rglob("manifest.json")}
    assert "Nothing to do" in mav("run", "tiny").stdout
    assert {p: p.stat().st_mtime_ns for p in (mav.runs / "artifacts").rglob("manifest.json")} == before


def test_the_videos_play(mav: Mav) -> None:
    folder = mav.artifact("generate")
    for row in json.loads((folder / "videos.json").read_text()):
        frames = read_frames(str(folder / row["file"]))
        assert len(frames) > 2
        assert np.isfinite(frames).all()


def test_the_shards_are_webdatasets(mav: Mav) -> None:
    import webdataset

    tars = sorted(mav.artifact("image-download").glob("*.tar"))
    samples = list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False).decode("rgb8"))
    assert len(samples) == mav.status()["stages"]["image-download"]["counts"]["rows_out"]
    assert {"jpg", "txt", "json"} <= set(samples[0])


def test_no_caption_reaches_a_video_stage(mav: Mav) -> None:
    """The WebVid list's `name` column and every caption of the image set are looked for in the bytes of all video
    artifacts."""
    import csv

    world = mav.artifact("demo-world")
    with open(world / "webvid/clips.csv", newline="") as file:
        names = [row["name"].encode() for row in csv.DictReader(file)]
    assert names
    for tar in mav.artifact("video-shards").glob("*.tar"):
        with tarfile.open(tar) as members:
            for member in members:
                assert member.name.rsplit(".", 1)[1] in ("mp4", "json")
                data = members.extractfile(member)
                assert data is not None
                text = io.BytesIO(data.read()).getvalue()
                assert not any(name in text for name in names)
    for stage in ("train-decoder-video", "train-interpolation", "train-sr-low-video"):
        inputs = json.loads((mav.artifact(stage) / "manifest.json").read_text())["inputs"]
        assert set(inputs) <= {
            "train-decoder",
            "train-decoder-video",
            "train-sr-low",
            "video-shards",
            "video-select",
            "clip",
        }


def test_one_changed_byte_anywhere_is_named(mav: Mav) -> None:
    assert "bytes its manifest says" in mav("verify", "tiny").stdout
    changed = {}
    for stage, name in (
        ("video-shards", "00000.tar"),
        ("train-prior", "network.safetensors"),
        ("generate", "manifest.json"),
    ):
        path = mav.artifact(stage) / name
        whole = path.read_bytes()
        path.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
        changed[path] = whole
    try:
        told = mav("verify", "tiny", expect=1).stdout
    finally:
        for path, whole in changed.items():
            path.write_bytes(whole)
    assert all(told.count(str(path)) == 1 for path in changed), told


def test_rerun_downstream_rebuilds_that_and_what_follows_to_the_same_bytes(mav: Mav) -> None:
    def contents() -> dict[str, tuple[int, str]]:
        found = {}
        for path in (mav.runs / "artifacts").glob("*/*/manifest.json"):
            files = json.loads(path.read_text())["files"]
            found[path.parent.parent.name] = (path.stat().st_mtime_ns, json.dumps(files, sort_keys=True))
        return found

    before = contents()
    mav("rerun", "tiny", "oracle", "--downstream")
    after = contents()
    rebuilt = {name for name in before if before[name][0] != after[name][0]}
    assert rebuilt == {"oracle", "report"}
    differ = {name for name in before if before[name][1] != after[name][1]}
    assert differ <= {"report"}, "the report tells times"


def test_the_report_is_one_page(mav: Mav) -> None:
    path = Path(mav("report", "tiny").stdout.strip().splitlines()[-1])
    page = path.read_text()
    assert "<html" in page
    assert "train-decoder-video" in page
    for outside in ('src="http', "src='http", '<link rel="stylesheet" href="http', "@import"):
        assert outside not in page


def hears_ctrl_c() -> None:
    """In the child: what a shell put in the background, as perhaps these tests, is deaf to it, and so are its
    children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_killed_run_goes_on_to_the_same_bytes(mav: Mav, tmp_path: Path) -> None:
    """kill -9 of the whole command in the middle, then Ctrl-C as a terminal sends it, to all its processes; the third
    goes on to the undisturbed bytes."""
    again = Mav(tmp_path)
    again.port = mav.port  # part of every address, so of every byte
    command = [sys.executable, "-m", "flows.cli", "run", "tiny", "--until", "train-prior", "--runs", str(again.runs)]
    command += ["--set", f"world.port={again.port}"]
    for milestone, sent in (("image-download", signal.SIGKILL), ("clip", signal.SIGINT)):
        screen = (tmp_path / milestone).open("w+")
        process = subprocess.Popen(
            command,
            env=again.environment,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
            preexec_fn=hears_ctrl_c,
        )
        deadline = time.monotonic() + 300
        while not list((again.runs / "work").glob(f"{milestone}/*/heartbeat.json")) and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1.0)
        if sent == signal.SIGKILL:
            process.kill()
            process.wait()
            time.sleep(3.0)  # Ray's processes notice and go
        else:
            os.killpg(process.pid, sent)
            assert process.wait(timeout=60) == 130
            told = (tmp_path / milestone).read_text()
            assert told.splitlines()[-1] == "mav: stopped; the same command goes on where it was."
            assert not any(noise in told for noise in ("Traceback", "| ERROR", "| INFO")), told  # Prefect's log lines
    again("run", "tiny", "--until", "train-prior")
    for stage in (
        "demo-world",
        "image-metadata",
        "image-download",
        "clip",
        "image-screen",
        "image-embed",
        "image-select",
        "train-prior",
    ):
        files = [json.loads((run.artifact(stage) / "manifest.json").read_text())["files"] for run in (mav, again)]
        assert files[0] == files[1], stage


def test_two_workers_train_the_same_network(mav: Mav) -> None:
    """Ray Train with two workers sees the same samples as one worker: equal up to the order of sums."""
    from safetensors.numpy import load_file

    alone = load_file(mav.artifact("train-prior") / "network.safetensors")
    mav("rerun", "tiny", "train-prior", "--set", "cluster.workers=2")
    together = load_file(mav.artifact("train-prior") / "network.safetensors")
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(together[name], value, atol=2e-4, err_msg=name)
