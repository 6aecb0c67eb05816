"""The command: what a user gets wrong is one sentence on stderr and exit 2."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from PIL import Image, PngImagePlugin

from flows.cli.generate import _read_image
from flows.cli.main import PANELS
from flows.cli.status import oracle_figures
from flows.engine.store import Store
from flows.make_a_video import make_a_video
from flows.services.ports import reserve_port
from mav.recipes.reader import load_recipe
from mav.storage import Artifact
from mav.storage.ledger import write_ledger

Mav = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.yaml"], ["nowhere.yaml", "demo"]),
        (["run", "demoo"], ["demoo", "did you mean demo?"]),
        (["run", "demo", "--set", "generate.steps=3"], ["generate.steps", "it has prompts, count, "]),
        (
            ["run", "demo", "--set", "train_decoder.network.levels=[{chanels: 8}]"],
            ["levels.0.chanels", "did you mean channels?"],
        ),
        (["run", "demo", "--until", "everything"], ["everything", "train-decoder"]),
        (["rerun", "demo", "trian-prior"], ["did you mean train-prior?"]),
        (["rerun", "demo", "train-prior"], ["image-embed", "mav run demo --until image-embed"]),
        (["run"], ["Missing argument 'RECIPE': see `mav run --help`"]),
        (["run", "demo", "--nope"], ["No such option: --nope", "mav run --help"]),
        (["sample", "demo", "a cat", "--count", "0"], ["--count", "equal to 1", "mav sample --help"]),
        (["statsu", "demo"], ["did you mean status?", "mav --help"]),
        (["version"], ["No such command 'version': see `mav --help`"]),
        (["run", "demo", "--run", "here"], ["No such option: --run (did you mean --runs?)"]),
        (["verify", "demo"], ["Nothing of demo is built", "mav run demo"]),
        (["report", "demo"], ["Nothing of demo is built"]),
        (["serve-demo-world", "demo"], ["--until demo-world"]),
        (["sample", "demo", " "], ["The prompt is empty"]),
        (["sample", "demo", "a red circle"], ["clip of demo is not trained yet", "mav run demo --until generate"]),
        (["sample", "demo", "a red circle", "--out", "here/circle.mp4"], ["--out names a folder", "--out here"]),
        (["animate", "demo", "nothing.jpg"], ["nothing.jpg is not a picture", "jpg, png or webp"]),
        (["vary", "demo", "nothing.mp4"], ["nothing.mp4 cannot be read", "WebM"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(arguments: list[str], words: list[str], tmp_path: Path, mav: Mav) -> None:
    code, _, err = mav(*arguments, "--runs", str(tmp_path))
    assert code == 2
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_storage_that_is_not_there_is_one_sentence(mav: Mav) -> None:
    code, _, err = mav("status", "demo", "--runs", "nothing://bucket")
    assert (code, err.count("\n"), "nothing://bucket cannot be reached" in err) == (2, 1, True)


@pytest.mark.parametrize("command", ["validate", "plan", "status"])
def test_sources_on_a_storage_without_credentials_are_one_sentence(
    mav: Mav, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest, command: str
) -> None:
    forget = fsspec.get_filesystem_class("s3").clear_instance_cache  # one without credentials would stay without
    forget()
    request.addfinalizer(forget)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = mav(command, "tiny", "--set", "image_metadata.sources=[s3://bucket/rows.parquet]")
    assert (code, err.count("\n"), "traceback" in err) == (2, 1, False)
    assert "cannot be reached (Unable to locate credentials): check s3://bucket/rows.parquet, and the cred" in err


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("mav run sing", "single-gpu"),
        ("mav rerun demo train-sr-h", "train-sr-high"),
        ("mav run demo --until clip", "clip"),
        ("mav publish demo train-sr-h", "train-sr-high"),
        ("mav diff demo sing", "single-gpu"),
        ("mav evaluate ucf", "ucf101"),
        ("mav study fr", "freeze"),
    ],
)
def test_the_shell_completes_recipes_and_stages(
    typed: str, found: str, monkeypatch: pytest.MonkeyPatch, mav: Mav
) -> None:
    for name, value in {
        "_MAV_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }.items():
        monkeypatch.setenv(name, value)
    assert mav()[1].split() == [found]


@pytest.mark.parametrize(
    ("variable", "words"), [("RAY_ADDRESS", "ray start --head"), ("PREFECT_API_URL", "prefect server start")]
)
def test_a_server_that_does_not_answer(
    variable: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mav: Mav
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    address = f"127.0.0.1:{reserve_port()}"
    api = f"http://{address}/api"
    with temporary_settings({PREFECT_API_URL: api} if variable == "PREFECT_API_URL" else {}):
        if variable == "RAY_ADDRESS":
            monkeypatch.setenv("RAY_ADDRESS", address)
        code, _, err = mav("run", "tiny", "--runs", str(tmp_path))
    assert code == 2
    assert address in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("mav: ")
    assert ("unset RAY_ADDRESS" if variable == "RAY_ADDRESS" else "unset PREFECT_API_URL") in last


def test_status_before_anything_ran(tmp_path: Path, mav: Mav) -> None:
    code, out, _ = mav("status", "demo", "--json", "--runs", str(tmp_path))
    assert code == 0
    status = json.loads(out)
    assert status["recipe"] == "demo"
    assert {facts["state"] for facts in status["stages"].values()} == {"missing"}
    assert all(len(facts["fingerprint"]) == 64 for facts in status["stages"].values())
    assert list(tmp_path.iterdir()) == [], "asking changes nothing"


def test_the_version_is_that_of_the_project_and_of_the_latest_changes(mav: Mav) -> None:
    root = Path(__file__).parents[3]
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert mav("--version") == (0, f"mav {version}\n", "")
    assert re.findall("^## (.*)", (root / "CHANGELOG.md").read_text(), re.MULTILINE)[0].split(", ")[0] == version


def test_help_shows_every_command_in_its_group(mav: Mav) -> None:
    code, out, _ = mav("--help")
    assert code == 0
    for panel, names in PANELS.items():
        group = out.split(f"\n{panel}\n")[1].split("\n\n")[0]
        assert re.findall(r"^  (\S+)", group, re.MULTILINE) == list(dict.fromkeys(name.split()[0] for name in names))


def test_the_oracles_figures_are_lines_for_a_person() -> None:
    verdict = {
        "colour": 1.0, "shape": 2 / 3, "shape_by_name": {"circle": 1.0, "cross": 1 / 3},
        "speed_ratio": 0.594, "motion_ratio_time_off": None, "direction_cosine": 0.62, "direction_cosine_clips": 0.97,
        "reversals": 0.1, "reversals_clips": 0.01, "area_change": -0.23, "saturation_change": 0.02,
        "frame_rate_obeyed": 0.25, "persistence": 0.5, "interpolation_gain_db": -8.04,
        "chance_colour": 1 / 6, "chance_shape": 1 / 3,
        "intervals": {
            "colour": [1, 1], "shape": [0.458, 0.833], "speed_ratio": [0.512, 0.667], "motion_ratio_time_off": None,
            "direction_cosine": [0.5, 0.7], "direction_cosine_clips": [0.95, 0.99], "reversals": [0, 0.2],
            "reversals_clips": [0, 0.02], "area_change": [-0.3, -0.2], "saturation_change": [0, 0.04],
            "frame_rate_obeyed": [0.2, 0.3], "persistence": [0.4, 0.6],
        },
    }  # fmt: skip
    assert [" ".join(pair) for pair in oracle_figures(verdict)] == [
        "colour as asked 100 % [100 %, 100 %], by chance 17 %",
        "shape as asked 67 % [46 %, 83 %], by chance 33 %",
        "each shape circle 100 %, cross 33 %",
        "speed over the clips' 0.59 [0.51, 0.67]",
        "direction kept (cosine) 0.62 [0.50, 0.70], clips 0.97 [0.95, 0.99]",
        "reversals 10 % [0 %, 20 %], clips 1 % [0 %, 2 %]",
        "area, filled over given -23.0 % [-30.0 %, -20.0 %]",
        "saturation, filled over given +2.0 % [+0.0 %, +4.0 %]",
        "frame rate obeyed (1 = right) 0.25 [0.20, 0.30]",
        "colour and shape kept 50 % [40 %, 60 %]",
        "speed with time layers off nothing to read",
        "F^ over linear blending -8.0 dB",
    ]
    verdict |= {"colour": None, "chance_colour": None, "reader_error": 0.0219}
    of_digits = [" ".join(pair) for pair in oracle_figures(verdict)]
    assert of_digits[0] == "shape as asked 67 % [46 %, 83 %], by chance 33 %"
    assert {"true frames read wrong 2.2 %", "digit kept 50 % [40 %, 60 %]"} <= {*of_digits}
    assert not any("colour" in line or "saturation" in line for line in of_digits)


def test_verify_adds_up_each_shard(tmp_path: Path, mav: Mav) -> None:
    node = make_a_video(load_recipe("tiny")).node("image-metadata")
    folder = Store(str(tmp_path)).artifact(node)
    rows = {"00000": (3, 2), "00001": (3, 4)}  # wrong in each, right in sum
    write_ledger(
        folder,
        [[{"shard": shard, "counts": {"rows_in": i, "rows_out": o}, "files": {}} for shard, (i, o) in rows.items()]],
    )
    known = {
        "stage": node.name,
        "version": 1,
        "fingerprint": node.fingerprint,
        "recipe": "tiny",
        "config": {},
        "inputs": {},
    }
    Artifact.publish(folder, **known, counts={"rows_in": 6, "rows_out": 6})
    code, out, _ = mav("verify", "tiny", "--runs", str(tmp_path))
    assert code == 1
    assert "image-metadata: shard 00000: 3 rows came in but 2 are accounted for" in out
    assert "shard 00001: 3 rows came in but 4" in out


def test_a_png_with_long_notes_among_its_pixels_is_a_picture(tmp_path):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Raw profile type app1", "0" * 3_000_000, zip=True)
    Image.new("RGB", (80, 60), (10, 200, 30)).save(tmp_path / "photo.png", pnginfo=notes)
    pixels = _read_image(tmp_path / "photo.png", load_recipe("demo").cascade)
    assert (pixels == (10, 200, 30)).all()


def test_status_says_why_and_when_a_stage_failed(tmp_path: Path, mav: Mav) -> None:
    node, store = make_a_video(load_recipe("tiny")).node("train-prior"), Store(str(tmp_path))
    failure = {
        "reason": "train-prior: loss or gradient is not finite [at samples 8]",
        "kind": "DivergedError",
        "time": 0,
    }
    store.work(node).write_json("failure.json", failure)
    _, out, _ = mav("status", "tiny", "--runs", str(tmp_path))
    assert f"train-prior failed at 1970-01-01T00:00:00+00:00: {failure['reason']}" in out
    _, out, _ = mav("status", "tiny", "--json", "--runs", str(tmp_path))
    told = json.loads(out)["stages"]["train-prior"]
    assert (told["state"], told["reason"]) == ("failed", failure["reason"])
    assert told["failed_at"] == "1970-01-01T00:00:00+00:00"
    store.work(node).write_bytes("failure.json", b"")
    assert "train-prior failed" in mav("status", "tiny", "--runs", str(tmp_path))[1]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"stage": "demo-world"}'])
def test_a_damaged_manifest_is_told_by_status(tmp_path: Path, mav: Mav, damage: bytes) -> None:
    node, store = make_a_video(load_recipe("tiny")).node("demo-world"), Store(str(tmp_path))
    store.artifact(node).write_bytes("manifest.json", damage)
    code, out, _ = mav("status", "tiny", "--runs", str(tmp_path))
    assert code == 0
    assert "demo-world damaged: " in out
    assert "rerun its stage" in out
