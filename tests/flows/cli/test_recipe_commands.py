"""`mav validate`, `schema`, `diff`, `run --dry-run`, and why a stage is stale."""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recorded import run_here

from flows.engine.build import build
from flows.engine.run import Run
from flows.engine.store import Store, recipe_owner, record
from flows.make_a_video import make_a_video
from flows.services.ports import reserve_port
from flows.services.terminal import Terminal
from mav.data.videos.clip_list import read_clips, split_lists
from mav.recipes.reader import load_recipe
from mav.storage import Artifact, Folder

PART = "part.parquet"
Mav = Callable[..., tuple[int, str, str]]


@pytest.fixture
def port() -> str:
    return f"world.port={reserve_port()}"


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: str) -> Store:
    """A runs folder in which the tables of two recipes are screened."""
    run_here(monkeypatch)
    store = Store(str(tmp_path / "runs"))
    strict = tmp_path / "strict.yaml"
    strict.write_text("extends: tiny\nscreening: {punsafe_threshold: 0.2}\nimage_download: {threads: 3}\n")
    with ExitStack() as services:
        for name in ("tiny", str(strict)):
            recipe = load_recipe(name, ["world.images=60", port])
            graph = make_a_video(recipe)
            nodes = graph.until("image-metadata")
            record(recipe_owner(name), store, nodes, recipe)
            for node in nodes:
                build(node, Run(recipe, store, Terminal(), services))
    return store


def test_validate_says_everything_and_exits_1(mav: Mav, tmp_path: Path) -> None:
    code, out, _ = mav("validate", "tiny")
    assert (code, out) == (0, "tiny is right: 24 stages.\n")
    code, out, _ = mav("validate", "tiny", "--set", "cascade.low_size=40", "--set", "cluster.attempts=0")
    assert code == 1
    assert [line.split("`")[1] for line in out.splitlines()] == [
        "cluster.attempts",
        "cascade.low_size",
        "cascade.high_size",
    ]
    code, out, _ = mav("validate", "tiny", "--json", "--set", f"clip.nsfw_head={tmp_path}/head.pth")
    (problem,) = json.loads(out)["problems"]
    assert code == 1
    assert (problem["key"], problem["remedy"]) == ("clip.nsfw_head", "correct the path or bring the file")
    for wrong in ("image_metadata.sources=[nothing-*.parquet]", "screening.word_lists=[words]"):
        code, out, _ = mav("validate", "tiny", "--set", wrong)
        assert code == 1
        assert out.split("`")[1] == wrong.partition("=")[0]


def test_only_what_is_asked_must_be_there(mav: Mav, tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["u"], "caption": ["t"], "punsafe": [0.1], "pwatermark": [0.1]}), tmp_path / PART)
    recipe = tmp_path / "images.yaml"
    table = f"extends: tiny\nworld: null\nimage_metadata: {{sources: ['{tmp_path}/{PART}']}}\n"
    recipe.write_text(table)
    code, out, _ = mav("validate", recipe)
    assert code == 0
    assert "video-shards is left out: `video_shards.sources` is empty and there is no `world`." in out
    assert "train-decoder-video is left out: it needs a stage that is left out." in out
    graph = make_a_video(load_recipe(str(recipe)))
    assert {"image-metadata", "clip", "train-prior", "train-sr-high", "report"} <= set(graph.nodes)
    code, _, err = mav("run", recipe, "--until", "generate", "--runs", tmp_path)
    assert code == 2
    assert "generate is left out of recipe images" in err

    recipe.write_text(f"{table}video_shards: {{sources: [nowhere.csv]}}\n")
    code, out, err = mav("run", recipe, "--until", "image-metadata", "--dry-run", "--runs", tmp_path)
    assert code == 0, "lists that no wanted stage reads need not be there"
    code, out, err = mav("run", recipe, "--runs", tmp_path)
    assert code == 2
    assert "`video_shards.sources` names 'nowhere.csv', which does not exist: correct the path" in err

    recipe.write_text("extends: tiny\nworld: null\nvideo_shards: {sources: [nowhere.csv]}\n")
    assert list(make_a_video(load_recipe(str(recipe))).nodes) == ["video-shards", "video-select", "report"]


def test_files_without_a_known_form_are_told_before_anything_runs(mav: Mav, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image_url": ["u"], "text": ["t"]}), tmp_path / PART)
    recipe = tmp_path / "images.yaml"
    recipe.write_text(f"extends: tiny\nworld: null\nimage_metadata: {{sources: ['{tmp_path}/{PART}']}}\n")
    code, out, _ = mav("validate", recipe)
    assert code == 1
    assert "it has the columns image_url, text, and expected are URL, TEXT" in out
    (problem,) = json.loads(mav("validate", recipe, "--json")[1])["problems"]
    assert (problem["key"], problem["value"]) == ("image_metadata.sources", f"{tmp_path}/{PART}")
    for command in (["run", recipe, "--dry-run"], ["run", recipe], ["plan", recipe]):
        code, _, err = mav(*command, "--runs", tmp_path / "runs")
        assert (code, err.count("\n")) == (2, 1), "it is one sentence, before Ray and before the measuring"
        assert "it has the columns image_url, text" in err


def test_the_readme_s_recipe_and_list_of_clips_are_right(
    mav: Mav, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    for folder in ("tables", "clips/more"):
        Path(folder).mkdir(parents=True)
    names = ["a, b; c.mp4", 'more/"quoted".webm', "ü 東京.mov"]
    for name in names:
        Path("clips", name).touch()
    pq.write_table(pa.table({"url": ["u"], "caption": ["t"]}), "tables/a.parquet")
    Path("prompts.txt").write_text("a cat\n")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("my.yaml").write_text(textwrap.dedent(block))
    (command,) = re.findall(r"python (-c [^`]+) > clips.csv\n", page)
    made = subprocess.run([sys.executable, *shlex.split(command)], capture_output=True, check=True)
    Path("clips.csv").write_bytes(made.stdout)
    code, out, _ = mav("validate", "my.yaml")
    assert (code, "my.yaml is right" in out) == (0, True), out
    (part,) = split_lists(["clips.csv"], 10)
    assert sorted(clip.path for clip in read_clips(part, 0)) == sorted(names)


def test_commands_that_messages_name_work_as_they_are(mav: Mav, tmp_path: Path) -> None:
    """They name the runs, repeat what --set changed, and are quoted for the shell."""
    recipe = tmp_path / "my own.yaml"
    recipe.write_text("extends: tiny\n")
    where = ["--set", "generate.count=2", "--runs", str(tmp_path / "my runs")]
    for command in (["run", recipe, "--dry-run"], ["report", recipe], ["sample", recipe, "a cat"], ["verify", recipe]):
        told = "".join(mav(*command, *where)[1:])
        words = shlex.split(told.split("`")[1])
        assert words[:3] == ["mav", words[1], str(recipe)]
        assert words[-4:] == where


def test_schema_names_every_key_with_its_comment(mav: Mav) -> None:
    schema = json.loads(mav("schema")[1])
    known = schema["$defs"]["ImageDownload"]["properties"]
    assert known["threads"] | {"title": ""} == {
        "default": 32, "description": "concurrent fetches of one shard; enters no fingerprint", "maximum": 65536,
        "minimum": 1, "title": "", "type": "integer",
    }  # fmt: skip
    assert schema["additionalProperties"] is False
    assert "extends" in schema["properties"]


def test_diff_of_recipes_says_lines_stages_rows_and_metrics(mav: Mav, tmp_path: Path, built: Store) -> None:
    code, out, _ = mav("diff", "tiny", "tiny")
    assert (code, out) == (0, "No difference.\n")
    strict = tmp_path / "strict.yaml"
    code, out, _ = mav("diff", "tiny", strict, "--json", "--runs", built.root.url)
    found = json.loads(out)
    assert code == 1
    assert found["values"] == {
        "image_download.threads": {"a": 32, "b": 3, "effect": "no stage follows"},
        "screening.punsafe_threshold": {"a": 0.5, "b": 0.2, "effect": ""},
    }
    assert "video-shards" not in found["stages"]
    assert {"image-metadata", "train-prior", "report"} <= set(found["stages"])


def test_diff_of_two_runs_compares_their_artifacts(mav: Mav, built: Store, tmp_path: Path) -> None:
    """Of one recipe, in two runs folders: the same bytes are no difference, other bytes are named."""
    other = tmp_path / "other"
    shutil.copytree(built.root.root, other)
    runs = ("--runs", built.root.url, "--other-runs", other)
    name = tmp_path / "same.yaml"
    name.write_text(f"extends: tiny\nworld: {{images: 60, port: {_port(built)}}}\n")
    assert mav("diff", name, name, *runs)[0] == 0
    (table,) = (other / "artifacts" / "demo-world").glob("*/manifest.json")
    manifest = Artifact.open(str(table.parent)).manifest
    fields = {field.name: getattr(manifest, field.name) for field in dataclasses.fields(manifest)}
    del fields["files"]
    (table.parent / "more.json").write_text("1")
    Artifact.publish(Folder(str(table.parent)), **fields | {"metrics": {"fvd": 2.0, "fvd_low": 1.0, "fvd_high": 3.0}})
    code, out, _ = mav("diff", name, name, *runs)
    assert code == 1
    assert "fvd: none -> 2 [1, 3]" in out
    assert "files with other bytes: 1;" in out


def _port(store: Store) -> int:
    (name, *_) = store.root.child("artifacts/demo-world").folders()
    port: int = store.root.read_json(f"artifacts/demo-world/{name}/manifest.json")["config"]["world"]["port"]
    return port


def test_diff_of_artifacts_says_which_rows_came_and_went(mav: Mav, built: Store) -> None:
    folders = [built.root.child(f"artifacts/image-metadata/{name}") for name in
               built.root.child("artifacts/image-metadata").folders()]  # fmt: skip
    one, two = sorted(folders, key=lambda each: -Artifact.open(each).manifest.config["screening"]["punsafe_threshold"])
    code, out, _ = mav("diff", one.url, two.url, "--json")
    found = json.loads(out)["artifacts"]["image-metadata"]
    assert code == 1
    assert found["values"] == {"screening.punsafe_threshold": [0.5, 0.2]}
    before, after = found["counts"]["rows_out"]
    went = sum(change["rows"] for change in found["rows"] if change["before"] == "kept")
    assert before - after > 0
    assert went >= before - after
    code, out, _ = mav("diff", one.url, two.url)
    assert f"rows_out: {before} -> {after}" in out
    assert "screening.punsafe_threshold: 0.5 -> 0.2" in out


def test_a_dry_run_and_status_say_why(mav: Mav, built: Store, port: str) -> None:
    arguments = ("--runs", built.root.url, "--set", "world.images=60", "--set", port)
    changed = (*arguments, "--set", "screening.min_side=3")
    code, out, _ = mav("run", "tiny", "--until", "image-metadata", "--dry-run", *changed)
    assert code == 0
    assert "screening.min_side: 0 -> 3" in " ".join(out.split())
    assert "1 of 2 stages would be built" in out
    code, out, _ = mav("status", "tiny", *changed)
    assert "image-metadata is stale: screening.min_side: 0 -> 3" in out
    code, out, _ = mav("status", "tiny", "--json", *changed, "--set", "seed=4")
    stages = json.loads(out)["stages"]
    assert stages["demo-world"]["changes"] == ["seed: 0 -> 4"]
    assert stages["image-metadata"]["changes"] == ["screening.min_side: 0 -> 3", "it follows demo-world"]
    assert stages["train-prior"]["state"] == "missing"
    code, out, _ = mav("run", "tiny", "--until", "image-metadata", "--dry-run", *arguments)
    assert out.startswith("Nothing to do: all 2 stages of tiny are done")


def test_what_cannot_be_reported_names_the_damaged_stage(
    mav: Mav, built: Store, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("a library's words")

    monkeypatch.setattr("mav.report.page.write_report", fails)
    line = ["report", "tiny", "--runs", built.root.root, "--set", "world.images=60", "--set", port]
    assert "a library's words" in mav(*line)[2], "nothing is damaged"
    for name in built.root.names():  # of both recipes
        if name.endswith("/00000-00000.parquet"):
            part = Path(built.root.path(name))
            part.write_bytes(part.read_bytes()[:-1] + b"x")
    code, _, err = mav(*line)
    assert (code, err.count("\n")) == (2, 1)
    assert "image-metadata of tiny is damaged" in err
    changed = f"--set world.images=60 --set {port} --runs {built.root.root}"
    assert f"`mav rerun tiny image-metadata {changed}` builds it anew" in err
